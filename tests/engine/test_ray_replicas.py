"""Replicas as actors of Ray: that they change no answer, and what is said when one is lost."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import pytest

from quire import LLM, InvalidRequestError, QuireError, RequestOutput, SamplingParams
from quire.parallel.ray_replicas import Held, RayReplicas
from quire.parallel.router import Load

PARAMS = SamplingParams(temperature=0.9, seed=3, max_tokens=12, n=2, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=2000, ignore_eos=True)
DRAFT = "quire-mini-draft"  # which computes long enough to be interrupted
OPTIONS: dict[str, Any] = {"device": "cpu", "max_num_seqs": 4}


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(QuireError, match=r"not installed: pip install 'quire\[ray\]'"):
        RayReplicas("quire-mini", num_replicas=2)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of this machine alone, whose processes find the modules that the tests do."""
    module = pytest.importorskip("ray", reason="needs the extra quire[ray]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else it writes a token to the home folder
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        module.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        yield module
        module.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("ray"), checkpoints.SPECS["qwen2"])


async def last(replicas: RayReplicas, prompt: Any, params: SamplingParams) -> RequestOutput:
    async for output in replicas.generate(prompt, params):
        assert (Held.of(output).num_tokens == 0) == output.finished
    return output


def tokens(output: RequestOutput) -> list[list[int]]:
    return [completion.token_ids for completion in output.outputs]


def test_replicas_change_no_answer(ray: Any, folder: Path) -> None:
    """Nor do the ranks that each has; every prompt goes where the fewest tokens are."""
    prompts = checkpoints.random_prompts([20, 5, 33, 17, 40], seed=1)
    expected = [tokens(output) for output in LLM(folder, **OPTIONS).generate(prompts, PARAMS)]

    async def serve() -> None:
        ranks = {"tensor_parallel_size": 2, "distributed_executor_backend": "lockstep"}
        async with RayReplicas(folder, num_replicas=2, **OPTIONS, **ranks) as replicas:
            tasks = [asyncio.create_task(last(replicas, p, PARAMS)) for p in prompts]
            while not all(load.num_tokens for load in replicas.loads()):
                await asyncio.sleep(0)
            assert [tokens(output) for output in await asyncio.gather(*tasks)] == expected
            assert replicas.loads() == [Load(0, False)] * 2
            with pytest.raises(InvalidRequestError, match="at least one"):
                await last(replicas, [], PARAMS)
            outside = SamplingParams(logit_bias={10**6: 1.0})
            with pytest.raises(InvalidRequestError, match="1000000"):  # the replica's own
                await last(replicas, [1], outside)
            assert replicas.loads() == [Load(0, False)] * 2
        with pytest.raises(QuireError, match="none of 2 replicas is left"):
            await last(replicas, [1], PARAMS)

    asyncio.run(serve())


def test_requests_are_withdrawn(ray: Any) -> None:
    async def serve() -> None:
        async with RayReplicas(DRAFT, num_replicas=1, **OPTIONS) as replicas:
            stream = replicas.generate([1, 2, 3], LONG, request_id="a")
            await anext(stream)
            assert replicas.loads(3)[0].is_full is False
            assert replicas.loads(4)[0].is_full is True  # of four rows one is taken
            again = replicas.generate([1, 2, 3], LONG, request_id="a")
            with pytest.raises(InvalidRequestError, match="'a' still runs"):
                await anext(again)
            replicas.abort("a")
            *_, output = [output async for output in stream]
            assert output.outputs[0].finish_reason == "abort"
            left = replicas.generate([1, 2, 3], LONG, request_id="b")
            await anext(left)
            await left.aclose()
            assert replicas.loads(4) == [Load(0, False)]
            output = await last(replicas, [1, 2, 3], PARAMS)  # its seat is free again
            assert len(output.outputs[0].token_ids) == 12

    asyncio.run(serve())


async def lose(ray: Any, replicas: RayReplicas, index: int, *, for_good: bool) -> None:
    """Kill the replica that a request runs on; the request must say so."""
    stream = replicas.generate([1, 2, 3], LONG)
    await anext(stream)
    ray.kill(replicas._actors[index], no_restart=for_good)
    with pytest.raises(QuireError, match="a replica was lost, and its requests with it"):
        async for _ in stream:
            pass


async def patiently(attempt: Callable[[], Awaitable[RequestOutput]]) -> RequestOutput:
    """Submit until a replica that starts again has started."""
    while True:
        try:
            return await attempt()
        except QuireError:
            await asyncio.sleep(0.2)


def test_a_lost_replica_is_left_out_or_started_again(ray: Any) -> None:
    async def serve() -> None:
        async with RayReplicas(DRAFT, num_replicas=2, **OPTIONS) as replicas:
            whole = tokens(await last(replicas, [5, 6], PARAMS))
            await lose(ray, replicas, 0, for_good=True)
            assert replicas.loads() == [Load(math.inf, True), Load(0, False)]
            assert tokens(await last(replicas, [5, 6], PARAMS)) == whole
        async with RayReplicas(DRAFT, num_replicas=1, max_restarts=1, **OPTIONS) as replicas:
            await lose(ray, replicas, 0, for_good=False)
            output = await patiently(lambda: last(replicas, [5, 6], PARAMS))
            assert tokens(output) == whole

    asyncio.run(asyncio.wait_for(serve(), 120))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_replicas": 0}, "num_replicas=0"),
        ({"num_replicas": 1, "max_restarts": -1}, "max_restarts=-1"),
        ({"num_replicas": 1, "data_parallel_size": 2}, "num_replicas says how many"),
        ({"num_replicas": 1, "device": "cpu", "block_size": 7}, "block_size=7: must be a power"),
    ],
)
def test_bad_input_is_named(ray: Any, options: dict[str, Any], message: str, folder: Path) -> None:
    """By the replica, too, whose errors arrive as they are."""
    with pytest.raises(QuireError, match=message):
        RayReplicas(folder, **options)
