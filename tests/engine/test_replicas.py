"""Replicas behind a router: where prompts go, and that it changes no answer."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import checkpoints
import faulty_parts
import pytest

from quire import LLM, InvalidRequestError, QuireError, RequestOutput, SamplingParams, Trace
from quire.executor import QueuedStep
from quire.messages import SchedulerOutput
from quire.parallel.replicas import ReplicatedEngine
from quire.parallel.router import Load, Router
from quire.request import Request

PARAMS = SamplingParams(temperature=0.9, seed=3, max_tokens=12, n=2, ignore_eos=True)


def request(tokens: list[int], *keys: str) -> Request:
    return Request("r", tokens, PARAMS, extra_keys=keys)


def loads(*num_tokens: int) -> list[Load]:
    return [Load(tokens, is_full=False) for tokens in num_tokens]


def test_a_prompt_goes_where_it_need_not_wait_for_a_row() -> None:
    router = Router(3, 16, 100)
    given = [Load(5, is_full=True), Load(900, is_full=False), Load(800, is_full=False)]
    assert router.choose(given, request([1] * 10)) == 2
    full = [Load(7, is_full=True), Load(5, is_full=True), Load(6, is_full=True)]
    assert router.choose(full, request([1] * 10)) == 1


def test_a_prompt_goes_where_the_fewest_tokens_are() -> None:
    router = Router(3, 16, 100)
    assert router.choose(loads(50, 20, 30), request([1] * 10)) == 1
    assert router.choose(loads(20, 20, 20), request([1] * 10)) == 0


def test_a_known_prefix_counts_as_many_tokens_as_it_saves() -> None:
    """32 tokens are known on replica 1: worth as much as 32 tokens of load, no more."""
    router, prompt = Router(2, 16, 100), list(range(40))
    assert router.choose(loads(10, 0), request(prompt)) == 1
    assert router.choose(loads(0, 31), request(prompt)) == 1
    again = Router(2, 16, 100)
    again.choose(loads(10, 0), request(prompt))
    assert again.choose(loads(0, 33), request(prompt)) == 0
    salted = Router(2, 16, 100)
    salted.choose(loads(10, 0), request(prompt, "salt"))
    assert salted.choose(loads(0, 31), request(prompt)) == 0


def test_the_last_token_is_never_found() -> None:
    """A prompt of 32 tokens has one block that can be found, not two: one token is computed."""
    router, prompt = Router(2, 16, 100), list(range(32))
    router.choose(loads(10, 0), request(prompt))
    assert router.choose(loads(0, 17), request(prompt)) == 0
    assert Router(2, 16, 0).choose(loads(0, 0), request(prompt)) == 0


def test_a_router_forgets_what_the_caches_must_have_lost() -> None:
    router = Router(2, 16, 2)
    router.choose(loads(10, 0), request(list(range(33))))
    router.choose(loads(10, 0), request(list(range(100, 133))))
    assert router.choose(loads(0, 1), request(list(range(33)))) == 0


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
    assert all(replica.unfinished for replica in engine(llm).engines)
    while engine(llm).has_requests:
        engine(llm).step()
    assert [[c.token_ids for c in h.snapshot().outputs] for h in handles] == expected
    assert [replica.unfinished for replica in engine(llm).engines] == [[], []]
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


def test_replicas_fill_their_rows_before_a_prompt_waits(folder: Path) -> None:
    """Four rows each, prompts of two sequences: no replica has a fifth while the other has room."""
    llm = LLM(folder, device="cpu", max_num_seqs=4, data_parallel_size=2)
    for i, length in enumerate((60, 5, 5, 5)):
        engine(llm).add_request(str(i), list(range(length)), PARAMS)
    assert [len(replica.unfinished) for replica in engine(llm).engines] == [4, 4]


class Slow:
    """A queued step of which a test says when it has ended."""

    def __init__(self, step: QueuedStep) -> None:
        self.output, self.wait, self.is_done = step.output, step.wait, False


def test_the_replica_whose_step_has_ended_is_advanced(folder: Path) -> None:
    """The other's goes on: nobody waits for it, and it has its steps queued."""
    llm = LLM(folder, device="cpu", data_parallel_size=2, distributed_executor_backend="lockstep")
    replicas, steps = engine(llm), {}
    for number, replica in enumerate(replicas.engines):
        replicas.add_request(str(number), [1, 2, 3 + number], PARAMS)
        execute = replica.executor.execute

        def slow(
            output: SchedulerOutput, execute: Any = execute, number: int = number
        ) -> QueuedStep:
            return steps.setdefault((number, output.step), Slow(execute(output)))

        replica.executor.execute = slow  # type: ignore[method-assign]
        replica.queue_steps()
    for number in (1, 0, 0, 1):
        replica = replicas.engines[number]
        replica.queue_steps()
        replica._in_flight[0][0].is_done = True  # type: ignore[misc]
        (grown,) = replicas.advance()
        assert grown.request_id == str(number)
        assert all(len(each._in_flight) > 0 for each in replicas.engines if each is not replica)
    for step in steps.values():
        step.is_done = True


def test_a_replica_that_stands_still_keeps_nobody_else_waiting(folder: Path) -> None:
    """Its process is stopped in the middle of its text, while the other's text is finished."""
    llm = LLM(folder, device="cpu", data_parallel_size=2, distributed_executor_backend="mp")
    replicas = engine(llm)
    for number in range(2):
        replicas.add_request(str(number), [1, 2, 3 + number], PARAMS)
    replicas.step()
    (stopped,) = replicas.engines[0].executor.ranks._processes  # type: ignore[attr-defined]
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        grown = [output for _ in range(40) for output in one_step(replicas)]
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    assert any(output.finished for output in grown if output.request_id == "1")
    assert not any(output.finished for output in grown if output.request_id == "0")
    while replicas.has_requests:
        grown += replicas.step()
    assert sum(output.finished for output in grown) == 2
    replicas.shutdown()


def one_step(replicas: ReplicatedEngine) -> list[RequestOutput]:
    """Advance the second replica, as long as it has work: the first cannot go on."""
    return replicas.step() if replicas.engines[1].has_requests else []


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
