"""The engine behind asyncio: requests join, stream and leave while others run."""

from __future__ import annotations

import asyncio
import copy
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import checkpoints
import pytest
from runs import run_async

from quire import LLM, AsyncEngine, RequestOutput, SamplingParams
from quire.async_engine import _Listener
from quire.errors import InvalidRequestError, QuireError
from quire.prompts import TokenizedPrompt

T = TypeVar("T")
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=90, ignore_eos=True)
PROMPTS = checkpoints.random_prompts([5, 9, 2, 14, 7, 3], seed=11)


@pytest.fixture
def engine(checkpoint: Any) -> Iterator[AsyncEngine]:
    engine = AsyncEngine(checkpoint("qwen3-sharded"), device="cpu", max_num_seqs=3)
    yield engine
    engine.close()
    checkpoints.assert_empty(engine.llm)


async def collect(engine: AsyncEngine, prompt: list[int], params: SamplingParams, **options: Any):
    outputs = [output async for output in engine.generate(prompt, params, **options)]
    return outputs[-1]


def test_many_at_once_equal_generate(engine: AsyncEngine, checkpoint: Any) -> None:
    async def all_of_them() -> list[list[int]]:
        outputs = await asyncio.gather(*(collect(engine, p, GREEDY) for p in PROMPTS))
        return [output.outputs[0].token_ids for output in outputs]

    llm = LLM(checkpoint("qwen3-sharded"), device="cpu")
    expected = [o.outputs[0].token_ids for o in llm.generate(PROMPTS, GREEDY)]
    assert run_async(all_of_them()) == expected


def test_tokens_arrive_before_the_end(engine: AsyncEngine) -> None:
    async def sizes() -> list[int]:
        return [
            len(output.outputs[0].token_ids) async for output in engine.generate(PROMPTS[0], LONG)
        ]

    seen = run_async(sizes())
    assert seen[0] < 90
    assert seen[-1] == 90
    assert seen == sorted(seen)


def test_leaving_a_stream_withdraws_it(engine: AsyncEngine) -> None:
    async def leave_and_stay() -> int:
        stream = engine.generate(PROMPTS[0], LONG)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        return len((await collect(engine, PROMPTS[1], GREEDY)).outputs[0].token_ids)

    assert run_async(leave_and_stay()) == 12
    assert not engine.llm.engine.has_requests


def test_cancelled_task(engine: AsyncEngine) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(collect(engine, PROMPTS[0], LONG))
        async for _ in engine.generate(PROMPTS[1], GREEDY):
            pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await collect(engine, PROMPTS[2], GREEDY)

    run_async(cancel())
    assert not engine.llm.engine.has_requests


def test_abort_by_name(engine: AsyncEngine) -> None:
    async def abort() -> Any:
        stream = engine.generate(PROMPTS[0], LONG, request_id="mine")
        await anext(stream)
        engine.abort("mine")
        engine.abort("nobody's")
        return [output async for output in stream][-1]

    output = run_async(abort())
    assert output.finished
    assert output.outputs[0].finish_reason == "abort"


def test_a_bad_request_harms_nobody(engine: AsyncEngine) -> None:
    async def both() -> list[Any]:
        return await asyncio.gather(
            collect(engine, [10**9], GREEDY),
            collect(engine, PROMPTS[0], GREEDY),
            return_exceptions=True,
        )

    bad, good = run_async(both())
    assert isinstance(bad, InvalidRequestError)
    assert "1000000000" in str(bad)
    assert len(good.outputs[0].token_ids) == 12


def test_the_same_name_twice(engine: AsyncEngine) -> None:
    async def twice() -> list[Any]:
        return await asyncio.gather(
            collect(engine, PROMPTS[0], LONG, request_id="one"),
            collect(engine, PROMPTS[1], GREEDY, request_id="one"),
            return_exceptions=True,
        )

    first, second = run_async(twice())
    assert len(first.outputs[0].token_ids) == 90
    assert isinstance(second, InvalidRequestError)


def test_closing_ends_streams_and_refuses_more(engine: AsyncEngine) -> None:
    async def close() -> Any:
        stream = engine.generate(PROMPTS[0], LONG)
        await anext(stream)
        await asyncio.to_thread(engine.close)
        rest = [output async for output in stream]
        with pytest.raises(QuireError, match="stopped"):
            await anext(engine.generate(PROMPTS[0], GREEDY))
        return rest

    rest = run_async(close())
    assert all(output.finished for output in rest)


def test_a_failing_step_reaches_every_reader(engine: AsyncEngine) -> None:
    def broken() -> None:
        raise RuntimeError("the device is gone")

    async def fail() -> list[Any]:
        streams = [engine.generate(prompt, LONG) for prompt in PROMPTS[:2]]
        for stream in streams:
            await anext(stream)
        engine.llm.engine.advance = broken  # type: ignore[method-assign, assignment]

        async def rest(stream: Any) -> None:
            async for _ in stream:
                pass

        return await asyncio.gather(*(rest(s) for s in streams), return_exceptions=True)

    errors = run_async(fail())
    assert [str(error) for error in errors] == ["the device is gone"] * 2
    with pytest.raises(QuireError, match="stopped"):
        run_async(collect(engine, PROMPTS[0], GREEDY))
    del engine.llm.engine.advance  # the fixture looks the engine over
    for request_id in list(engine.llm.engine._handles):
        engine.llm.engine.abort_request(request_id)


def test_text(text_folder: Path) -> None:
    async def run() -> str:
        async with AsyncEngine(text_folder, device="cpu") as engine:
            output = await collect(engine, "def f", GREEDY)  # type: ignore[arg-type]
            return output.outputs[0].text

    expected = LLM(text_folder, device="cpu").generate("def f", GREEDY)[0].outputs[0].text
    assert run_async(run()) == expected


def test_slow_readers_see_the_end(engine: AsyncEngine) -> None:
    """Whoever comes late finds the last text and the reason, and no output that changes."""

    async def read(prompt: list[int]) -> list[RequestOutput]:
        outputs, copies = [], []
        async for output in engine.generate(prompt, replace(GREEDY, logprobs=0)):
            outputs.append(output)
            copies.append(copy.deepcopy(output))
            await asyncio.sleep(0.05)  # several tokens, or all of them, come meanwhile
        assert outputs == copies
        return outputs

    async def all_of_them() -> list[list[RequestOutput]]:
        return await asyncio.gather(*(read(prompt) for prompt in PROMPTS))

    for outputs in run_async(all_of_them()):
        assert [output.finished for output in outputs[:-1]] == [False] * (len(outputs) - 1)
        assert outputs[-1].finished
        (completion,) = outputs[-1].outputs
        assert (completion.finish_reason, len(completion.token_ids)) == ("length", 12)
        assert len(completion.logprobs or []) == 12


def test_what_came_before_an_error_is_read_first(engine: AsyncEngine) -> None:
    async def told() -> tuple[RequestOutput, Exception]:
        listener = _Listener()
        output = engine.llm.generate(PROMPTS[0], GREEDY)[0]
        listener.tell(output)
        listener.tell(QuireError("the device is gone"))
        await asyncio.sleep(0)  # both have arrived
        first = await listener.news()
        with pytest.raises(QuireError) as caught:
            await listener.news()
        return first, caught.value

    output, error = run_async(told())
    assert output.finished
    assert str(error) == "the device is gone"


def test_prompts_are_read_off_the_engines_thread(text_folder: Path) -> None:
    """A long prompt is somebody's own time, not everybody's."""
    engine = AsyncEngine(text_folder, device="cpu")
    readers: set[str] = set()
    read = engine.llm.engine.prompts.read

    def recording(*args: Any) -> Any:
        if not isinstance(args[0], TokenizedPrompt):
            readers.add(threading.current_thread().name)
        return read(*args)

    engine.llm.engine.prompts.read = recording  # type: ignore[method-assign]
    try:
        run_async(collect(engine, "def push(", GREEDY))  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError):
            run_async(collect(engine, "def push(" * 10_000, GREEDY))  # type: ignore[arg-type]
    finally:
        engine.close()
    assert readers
    assert "quire-engine" not in readers


SCRIPT = """
import asyncio, sys
from quire import AsyncEngine, SamplingParams

engine = AsyncEngine(sys.argv[1], device="cpu")

async def begin():
    stream = engine.generate([1, 2, 3], SamplingParams(max_tokens=3000, ignore_eos=True))
    await anext(stream)
    print("begun", flush=True)
    while True:
        await asyncio.sleep(60)

async def leave():
    task = asyncio.create_task(begin())
    await asyncio.sleep(float(sys.argv[2]))

asyncio.get_event_loop_policy().new_event_loop().run_until_complete(leave())
"""


def test_a_script_may_end_with_the_engine_at_work(checkpoint: Any) -> None:
    """The interpreter waits for the step, not for the request; it does not die by a signal."""
    folder = checkpoint("qwen3-sharded")
    command = [sys.executable, "-c", SCRIPT, str(folder), "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "begun\n"


def test_closing_lets_go_of_the_device(checkpoint: Any) -> None:
    engine = AsyncEngine(checkpoint("qwen2"), device="cpu")
    worker = weakref.ref(engine.llm.engine.executor.worker)  # type: ignore[attr-defined]
    assert worker() is not None
    run_async(collect(engine, PROMPTS[0], GREEDY))
    engine.close()
    gc.collect()
    assert worker() is None
    with pytest.raises(QuireError, match="was shut down: make a new one"):
        engine.llm.generate(PROMPTS[0], GREEDY)


def test_the_llm_may_be_used_beside_streams(checkpoint: Any) -> None:
    """Streams and `llm.generate` in threads run in the same steps, and get their own tokens."""
    folder = checkpoint("qwen3-sharded")
    expected = [o.outputs[0].token_ids for o in LLM(folder, device="cpu").generate(PROMPTS, GREEDY)]

    async def both() -> list[list[int]]:
        async with AsyncEngine(folder, device="cpu", max_num_seqs=4) as engine:
            streams = [collect(engine, prompt, GREEDY) for prompt in PROMPTS[:3]]
            beside = [
                asyncio.to_thread(engine.llm.generate, [prompt], GREEDY) for prompt in PROMPTS[3:]
            ]
            found = await asyncio.gather(*streams, *beside)
            again = await collect(engine, PROMPTS[0], GREEDY)
        outputs = [*found[:3], *(outputs[0] for outputs in found[3:]), again]
        return [output.outputs[0].token_ids for output in outputs]

    for _ in range(3):
        assert run_async(both()) == [*expected, expected[0]]


def test_an_abort_while_the_prompt_is_read(engine: AsyncEngine) -> None:
    """The request is known by its name from the call of `generate` on."""
    may_go_on = threading.Event()
    read = engine.llm.engine.prompts.read

    def slowly(*args: Any) -> Any:
        may_go_on.wait(20)
        return read(*args)

    async def abort() -> RequestOutput:
        engine.llm.engine.prompts.read = slowly  # type: ignore[method-assign]
        task = asyncio.create_task(collect(engine, PROMPTS[0], LONG, request_id="r"))
        while "r" not in engine._announced:
            await asyncio.sleep(0.001)
        engine.abort("r")
        may_go_on.set()
        return await task

    (completion,) = run_async(abort()).outputs
    assert completion.finish_reason == "abort"


@pytest.mark.parametrize(
    "options",
    [
        {"request_id": ["a"]},
        {"cache_salt": b"tenant"},
        {"client_id": 3},
        {"priority": None},
        {"priority": "high"},
        {"priority": float("nan")},
    ],
)
def test_a_label_of_the_wrong_type_harms_nobody(
    options: dict[str, Any], engine: AsyncEngine
) -> None:
    async def serve() -> RequestOutput:
        stream = asyncio.create_task(collect(engine, PROMPTS[0], GREEDY))
        with pytest.raises(InvalidRequestError, match=f"{next(iter(options))}=.*: must be a"):
            await collect(engine, PROMPTS[1], GREEDY, **options)
        engine.abort(["a"])  # type: ignore[arg-type]
        return await stream

    assert len(run_async(serve()).outputs[0].token_ids) == 12


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_ends_without_an_error_tells_its_readers(engine: AsyncEngine) -> None:
    def leave() -> None:
        raise SystemExit(3)

    async def serve() -> None:
        engine.llm.engine.advance = leave  # type: ignore[method-assign, assignment]
        with pytest.raises(QuireError, match=r"thread ended by SystemExit\(3\)"):
            await collect(engine, PROMPTS[0], GREEDY)
        del engine.llm.engine.advance

    run_async(serve())
    for request_id in list(engine.llm.engine._handles):
        engine.llm.engine.abort_request(request_id)
