"""One `LLM` in several threads, and in a forked process."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import checkpoints
import pytest
from runs import run_async
from torch import Tensor
from tqdm import tqdm

from quire import LLM, AsyncEngine, QuireError, RequestHandle, SamplingParams
from quire.turns import Turns

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture
def switching_often() -> Iterator[None]:
    """Threads take turns a hundred times as often as they do by default."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("overlap", [False, True])
def test_generate_from_four_threads(
    overlap: bool, text_folder: Path, switching_often: None
) -> None:
    """Every output is what the prompt gets alone, texts and log-probabilities included."""
    llm = LLM(text_folder, device="cpu", max_num_seqs=4, overlap=overlap)
    params = SamplingParams(temperature=0.9, seed=5, max_tokens=12, ignore_eos=True, logprobs=1)
    batches = [
        checkpoints.random_prompts([3, 9, 5, 2, 7, 4], seed=seed, vocab=300) for seed in range(4)
    ]
    alone = [[llm.generate([p], params)[0].outputs for p in batch] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: llm.generate(batch, params), batches))
    for batch, outputs, expected in zip(batches, together, alone, strict=True):
        assert [output.prompt_token_ids for output in outputs] == batch
        for output, right in zip(outputs, expected, strict=True):
            assert output.outputs[0].token_ids == right[0].token_ids
            assert output.outputs[0].text == right[0].text
            assert output.finished
    checkpoints.assert_empty(llm)


def test_streams_and_generate_from_threads(text_folder: Path, switching_often: None) -> None:
    """Some streams are left early; the others lose nothing by it."""
    llm = LLM(text_folder, device="cpu", max_num_seqs=3)
    prompts = checkpoints.random_prompts([4] * 8, seed=9, vocab=300)
    alone = [llm.generate([p], GREEDY)[0].outputs[0].token_ids for p in prompts]

    def stream(prompt: list[int]) -> list[int]:
        (*_, last) = llm.stream(prompt, GREEDY)
        return last.outputs[0].token_ids

    def leave(prompt: list[int]) -> list[int]:
        return next(llm.stream(prompt, GREEDY)).outputs[0].token_ids

    def generate(prompt: list[int]) -> list[int]:
        return llm.generate([prompt], GREEDY)[0].outputs[0].token_ids

    ways = [stream, leave, generate, stream] * 2
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda way, prompt: way(prompt), ways, prompts))
    for way, tokens, expected in zip(ways, found, alone, strict=True):
        assert tokens == (expected[: len(tokens)] if way is leave else expected)
    llm.generate([1], GREEDY)  # what was withdrawn in another's turn is gone by the next
    checkpoints.assert_empty(llm)


def test_what_a_stream_yields_is_of_one_moment(text_folder: Path, switching_often: None) -> None:
    """Its tokens, text and log-probabilities agree, while another thread's steps go on."""
    llm = LLM(text_folder, device="cpu", max_num_seqs=4)
    tokenizer = llm.get_tokenizer()
    busy = SamplingParams(temperature=0, max_tokens=250, ignore_eos=True)
    thread = threading.Thread(target=lambda: llm.generate([[1], [2]], busy))
    thread.start()
    params = SamplingParams(max_tokens=120, seed=1, ignore_eos=True, logprobs=0)
    for output in llm.stream([3, 4], params):
        completion = output.outputs[0]
        assert output.metrics is not None
        assert completion.logprobs is not None
        count = len(completion.token_ids)
        assert (len(completion.logprobs), len(output.metrics.token_times)) == (count, count)
        together = tokenizer.decode([3, 4, *completion.token_ids], skip_special_tokens=True)
        shown = tokenizer.decode([3, 4]) + completion.text
        assert together.startswith(shown)
        assert len(together) - len(shown) <= 1  # a U+FFFD that may yet become a character
    thread.join()


def test_requests_of_several_threads_share_steps(text_folder: Path) -> None:
    """Two threads of 40 tokens each take hardly more steps than one."""
    llm = LLM(text_folder, device="cpu", max_num_seqs=2)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    steps = 0
    begin = threading.Barrier(2)
    advance = llm.engine.advance

    def counted() -> object:
        nonlocal steps
        steps += 1
        if steps == 1:  # the other one's request comes in while this step runs
            begin.wait()
        return advance()

    llm.engine.advance = counted  # type: ignore[method-assign, assignment]

    def second() -> None:
        begin.wait()
        llm.generate([4, 5], params)

    thread = threading.Thread(target=second)
    thread.start()
    llm.generate([1, 2], params)
    thread.join()
    assert 40 <= steps < 60


def test_a_bad_prompt_in_one_thread_leaves_the_others_alone(text_folder: Path) -> None:
    llm = LLM(text_folder, device="cpu", max_num_seqs=4)
    (expected,) = llm.generate([1, 2], GREEDY)

    def run(prompt: list[int]) -> object:
        try:
            return llm.generate([[1, 2], prompt], GREEDY)[0].outputs
        except QuireError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, [[1], [10**6], [], [2]]))
    assert found[0] == found[3] == expected.outputs
    assert "outside the vocabulary" in str(found[1])
    assert "no tokens" in str(found[2])
    checkpoints.assert_empty(llm)


def test_an_error_in_another_threads_step_is_not_missed(
    text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may end a request while the thread that waits for it looks elsewhere."""
    llm = LLM(text_folder, device="cpu", max_num_seqs=2)
    advance = LLM._advance

    def ended_elsewhere(self: LLM, handle: RequestHandle) -> None:
        advance(self, handle)
        monkeypatch.setattr(tqdm, "update", fail)

    def fail(*_: object) -> None:  # between two looks at the request
        (handle,) = llm.engine._handles.values()
        llm.engine._fail({f"{handle.request_id}-0": "no token"})

    monkeypatch.setattr(LLM, "_advance", ended_elsewhere)
    with pytest.raises(QuireError, match="no token"):
        llm.generate([1, 2], GREEDY)


def test_a_stream_collected_in_the_middle_of_a_step(text_folder: Path) -> None:
    """The collector runs anywhere: it must not wait for the turn that its own thread has."""
    llm = LLM(text_folder, device="cpu", max_num_seqs=2)
    abandoned = llm.stream([1, 2], SamplingParams(max_tokens=200, ignore_eos=True))
    next(abandoned)
    cycle: list[object] = [abandoned]
    cycle.append(cycle)
    del abandoned, cycle
    advance, collected = llm.engine.advance, 0

    def collecting() -> object:
        nonlocal collected
        if collected == 0:
            collected = gc.collect()
        return advance()

    llm.engine.advance = collecting  # type: ignore[method-assign, assignment]
    outputs = llm.generate([3], GREEDY)
    assert collected > 0
    assert len(outputs[0].outputs[0].token_ids) == 12
    checkpoints.assert_empty(llm)


# --- turns -------------------------------------------------------------------


def test_turns_are_given_in_the_order_asked_for() -> None:
    turns = Turns()
    order: list[int] = []
    threads = []

    def take(number: int) -> None:
        with turns.wait():
            order.append(number)

    with turns.wait():
        for number in range(6):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            while len(turns._line) < number + 2:
                pass
        assert order == []
        with turns.if_free() as free:
            assert not free
    for thread in threads:
        thread.join()
    assert order == list(range(6))
    with turns.if_free() as free:
        assert free


def test_an_interrupt_gives_the_turn_back() -> None:
    turns = Turns()
    with pytest.raises(KeyboardInterrupt), turns.wait():
        raise KeyboardInterrupt
    with turns.if_free() as free:
        assert free


def test_an_interrupt_while_waiting_leaves_the_line() -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals go to the main thread")
    turns = Turns()
    held, done = threading.Event(), threading.Event()
    waiting = True

    def interrupt(*_: object) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            raise KeyboardInterrupt

    def hold() -> None:
        with turns.wait():
            held.set()
            while len(turns._line) < 2:
                pass
            while waiting:  # a signal just before the other one waits does not wake it
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                done.wait(0.01)
            done.wait()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        with pytest.raises(KeyboardInterrupt), turns.wait():
            pass
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    with turns.if_free() as free:
        assert free


def test_an_engine_that_would_wait_for_itself(text_folder: Path) -> None:
    """A logits processor cannot use the engine whose step it is part of."""
    llm = LLM(text_folder, device="cpu", max_num_seqs=2)

    def asks_the_model(output: list[int], logits: Tensor) -> Tensor:
        llm.generate([1, 2], GREEDY)
        return logits

    params = SamplingParams(max_tokens=4, logits_processors=[asks_the_model])
    with pytest.raises(QuireError, match="amid a step of this very engine"):
        llm.generate([5, 6], params)
    assert len(llm.generate([5, 6], GREEDY)[0].outputs[0].token_ids) == 12


# --- forks -------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # from Python 3.12 on
@pytest.mark.parametrize("how", ["generate", "stream", "stream begun before", "chat", "asyncio"])
def test_a_forked_child_is_told(how: str, text_folder: Path) -> None:
    """A step there would wait for threads that fork does not copy."""
    engine = AsyncEngine(text_folder, device="cpu", max_num_seqs=2)
    llm = LLM(text_folder, device="cpu", max_num_seqs=2)

    async def serve() -> None:
        async for _ in engine.generate("a", GREEDY):
            pass

    begun = llm.stream([1, 2], GREEDY)
    calls: dict[str, Callable[[], object]] = {
        "stream begun before": lambda: next(begun),
        "generate": lambda: llm.generate("a", GREEDY),
        "stream": lambda: next(llm.stream("a", GREEDY)),
        "chat": lambda: llm.chat(
            [{"role": "user", "content": "a"}], chat_template="{{ messages[0].content }}"
        ),
        "asyncio": lambda: run_async(serve()),
    }
    calls[how]()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # no test framework here: say what happened and vanish
        signal.alarm(30)  # a child that waits for ever ends, too, and has said nothing
        try:
            calls[how]()
            said = "no error"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert said.startswith(f"QuireError: this LLM was made in process {os.getpid()}")
    assert "spawn" in said
    calls[how]()  # the parent's works as before
    engine.close()
