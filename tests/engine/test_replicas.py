"""Replicas behind a router: where prompts go, and that it changes no answer."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import faulty_parts
import pytest

from quire import LLM, InvalidRequestError, QuireError, SamplingParams, Trace
from quire.parallel.replicas import ReplicatedEngine
from quire.parallel.router import Router
from quire.request import Request

PARAMS = SamplingParams(temperature=0.9, seed=3, max_tokens=12, n=2, ignore_eos=True)


def request(tokens: list[int], *keys: str) -> Request:
    return Request("r", tokens, PARAMS, extra_keys=keys)


def test_a_prompt_goes_where_the_fewest_tokens_are() -> None:
    router = Router(3, 16, 100)
    assert router.choose([50, 20, 30], request([1] * 10)) == 1
    assert router.choose([20, 20, 20], request([1] * 10)) == 0


def test_a_known_prefix_counts_as_many_tokens_as_it_saves() -> None:
    """32 tokens are known on replica 1: worth as much as 32 tokens of load, no more."""
    router, prompt = Router(2, 16, 100), list(range(40))
    assert router.choose([10, 0], request(prompt)) == 1
    assert router.choose([0, 31], request(prompt)) == 1
    again = Router(2, 16, 100)
    again.choose([10, 0], request(prompt))
    assert again.choose([0, 33], request(prompt)) == 0
    salted = Router(2, 16, 100)
    salted.choose([10, 0], request(prompt, "salt"))
    assert salted.choose([0, 31], request(prompt)) == 0


def test_the_last_token_is_never_found() -> None:
    """A prompt of 32 tokens has one block that can be found, not two: one token is computed."""
    router, prompt = Router(2, 16, 100), list(range(32))
    router.choose([10, 0], request(prompt))
    assert router.choose([0, 17], request(prompt)) == 0
    assert Router(2, 16, 0).choose([0, 0], request(prompt)) == 0


def test_a_router_forgets_what_the_caches_must_have_lost() -> None:
    router = Router(2, 16, 2)
    router.choose([10, 0], request(list(range(33))))
    router.choose([10, 0], request(list(range(100, 133))))
    assert router.choose([0, 1], request(list(range(33)))) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("replicas"), checkpoints.SPECS["qwen2"])


def engine(llm: LLM) -> ReplicatedEngine:
    assert isinstance(llm.engine, ReplicatedEngine)
    return llm.engine


@pytest.mark.parametrize("backend", ["lockstep", "mp"])
def test_replicas_change_no_answer(backend: str, folder: Path) -> None:
    prompts = checkpoints.random_prompts([20, 5, 33, 17, 40], seed=1)
    alone = LLM(folder, device="cpu", max_num_seqs=4)
    llm = LLM(
        folder,
        device="cpu",
        max_num_seqs=4,
        data_parallel_size=2,
        distributed_executor_backend=backend,
    )
    expected = [[c.token_ids for c in o.outputs] for o in alone.generate(prompts, PARAMS)]
    handles = [engine(llm).add_request(str(i), prompt, PARAMS) for i, prompt in enumerate(prompts)]
    assert all(replica.num_held_tokens > 0 for replica in engine(llm).engines)
    while engine(llm).has_requests:
        engine(llm).step()
    assert [[c.token_ids for c in h.snapshot().outputs] for h in handles] == expected
    assert [replica.num_held_tokens for replica in engine(llm).engines] == [0, 0]
    assert not engine(llm)._where
    outputs = llm.generate(prompts, PARAMS)
    assert [[c.token_ids for c in output.outputs] for output in outputs] == expected
    if backend == "mp":
        pids = [
            process.pid
            for replica in engine(llm).engines
            for process in replica.executor.ranks._processes  # type: ignore[attr-defined]
        ]
        engine(llm).shutdown()
        assert faulty_parts.wait_until_ended(pids, 5)


def test_requests_are_known_by_their_names(folder: Path) -> None:
    llm = LLM(folder, device="cpu", data_parallel_size=2, distributed_executor_backend="lockstep")
    replicas = engine(llm)
    replicas.add_request("a", [1, 2, 3], PARAMS)
    with pytest.raises(InvalidRequestError, match="request_id='a' still runs"):
        replicas.add_request("a", [1, 2, 3], PARAMS)
    assert replicas.abort_request("b") is None
    aborted = replicas.abort_request("a")
    assert aborted is not None
    assert aborted.finished
    assert not replicas.has_requests
    replicas.add_request("a", [1, 2, 3], PARAMS)


def test_a_trace_of_replicas_is_refused(folder: Path) -> None:
    with pytest.raises(QuireError, match="data_parallel_size=2 with a trace"):
        LLM(folder, device="cpu", data_parallel_size=2, trace=Trace())
