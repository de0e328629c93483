"""Ctrl-C at any moment: whoever goes on afterwards goes on rightly."""

from __future__ import annotations

import random
import signal
import threading
from typing import Any

import checkpoints
import pytest
from runs import Folder

from quire import LLM, SamplingParams
from quire.interrupts import uninterrupted
from quire.kv.kv_cache_manager import PagedKVCacheManager
from quire.step_builder import StepBuilder

PARAMS = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=0)


def ctrl_c(times: int = 1) -> None:
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_is_held_back_to_the_end() -> None:
    done = []

    @uninterrupted()
    def work(times: int) -> None:
        ctrl_c(times)
        done.append(times)

    @uninterrupted()
    def around() -> None:
        work(1)
        done.append(7)

    with pytest.raises(KeyboardInterrupt):
        work(1)
    assert done == [1]
    with pytest.raises(KeyboardInterrupt):
        work(2)  # whoever asks twice does not want to wait
    assert done == [1]
    with pytest.raises(KeyboardInterrupt):
        around()
    assert done == [1, 1, 7]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_and_an_interrupt() -> None:
    @uninterrupted()
    def work() -> None:
        ctrl_c()
        raise ValueError("both")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__context__, ValueError)


def test_other_threads_are_left_alone() -> None:
    handlers: list[Any] = []

    def look() -> None:
        with uninterrupted():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (StepBuilder, "build"),
        (StepBuilder, "schedule"),
        (StepBuilder, "admit"),
        (PagedKVCacheManager, "reserve"),
        (PagedKVCacheManager, "commit"),
        (PagedKVCacheManager, "free"),
    ],
)
def test_amid_the_schedulers_decisions(
    owner: type, name: str, overlap: bool, checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are interrupted at random in their host half; every request ends as it should."""
    prompts = checkpoints.random_prompts([40, 9, 25, 3], seed=75)
    options: dict[str, Any] = {
        "max_num_batched_tokens": 16,
        "max_num_seqs": 3,
        "max_model_len": 80,
        "num_blocks": 9,
        "overlap": overlap,
    }
    expected = [
        o.outputs
        for o in LLM(checkpoint("qwen2"), device="cpu", max_num_seqs=3).generate(prompts, PARAMS)
    ]
    llm = LLM(checkpoint("qwen2"), device="cpu", **options)
    rng, armed = random.Random(76), [True]
    original = getattr(owner, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        answer = original(*args, **kwargs)
        if armed and rng.random() < 0.5:
            armed.clear()  # once a step
            ctrl_c()
        return answer

    handles = [llm.engine.add_request(str(i), prompt, PARAMS) for i, prompt in enumerate(prompts)]
    monkeypatch.setattr(owner, name, interrupted)
    num_interrupts = 0
    for _ in range(1000):
        if not llm.engine.has_requests:
            break
        armed.append(True)
        try:
            llm.engine.step()
        except KeyboardInterrupt:
            num_interrupts += 1
    monkeypatch.undo()
    assert num_interrupts
    for handle, right in zip(handles, expected, strict=True):
        (ours,), (theirs,) = handle.snapshot().outputs, right
        assert ours.token_ids == theirs.token_ids
        assert ours.cumulative_logprob == pytest.approx(theirs.cumulative_logprob, abs=1e-3)
    checkpoints.assert_empty(llm)
