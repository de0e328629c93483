"""`LLM.stream`, interrupts, aborts, traces."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from checkpoints import Scripted, assert_greedy, assert_logprobs
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from quire import LLM, Components, QuireError, SamplingParams, Trace
from quire.messages import Logprob
from quire.runner.pending import PendingStep
from quire.sampling import SamplerOutput, SamplingTensors, TorchSampler

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
PROMPT = "def push(self, item):"


# --- streams -----------------------------------------------------------------


@pytest.mark.parametrize("stop", [[], ["in"]])
def test_stream_equals_generate(llm: LLM, stop: list[str]) -> None:
    params = SamplingParams(
        temperature=1.2, seed=3, max_tokens=40, stop=stop, logprobs=2, prompt_logprobs=1
    )
    (expected,) = llm.generate(PROMPT, params)
    lengths, texts, last = [], [], None
    for output in llm.stream(PROMPT, params):
        lengths.append(len(output.outputs[0].token_ids))
        texts.append(output.outputs[0].text)
        assert output.finished == (output.outputs[0].finish_reason is not None)
        last = output
    assert last is not None
    assert lengths == list(range(1, len(expected.outputs[0].token_ids) + 1))
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    for name in ("text", "token_ids", "finish_reason", "stop_reason", "logprobs"):
        assert getattr(last.outputs[0], name) == getattr(expected.outputs[0], name)
    assert last.prompt_logprobs == expected.prompt_logprobs


def test_stream_of_partial_bytes(text_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Every byte of these characters is a token of its own; none is shown by halves."""
    text = "日本👍é"
    assert len(tokenizer.encode(text)) > len(text)
    llm = LLM(
        text_folder,
        device="cpu",
        components=Components(sampler=lambda: Scripted(1, tokenizer.encode(text))),
    )
    params = SamplingParams(max_tokens=len(tokenizer.encode(text)))
    shown = [o.outputs[0].text for o in llm.stream([5], params)]
    assert shown[-1] == text
    assert set(shown) == {text[:n] for n in range(len(text) + 1)}


def test_leaving_a_stream_early(llm: LLM) -> None:
    stream = llm.stream(PROMPT, SamplingParams(n=3, max_tokens=30, ignore_eos=True))
    output = next(stream)
    before = copy.deepcopy(output)
    del stream
    checkpoints.assert_empty(llm)
    assert output == before  # what was handed out stays what it was
    never_started = llm.stream(PROMPT)
    del never_started
    checkpoints.assert_empty(llm)
    assert len(llm.generate(PROMPT, GREEDY)[0].outputs[0].token_ids) == 10


def test_what_a_reader_does_to_an_output_changes_nothing_else(llm: LLM) -> None:
    """No list of an output is one that the engine, or the next output, goes on with.

    What grows is no list before the end, and nothing in it can be changed.
    """
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=0)
    (expected,) = llm.generate([[5, 6, 7]], params)
    last = None
    for output in llm.stream([5, 6, 7], params):
        last = copy.deepcopy(output)
        (completion,) = output.outputs
        for said in (completion.token_ids, completion.logprobs, output.prompt_token_ids):
            if output.finished:
                said.clear()  # type: ignore[union-attr]
            else:
                with pytest.raises(TypeError):
                    said[0] = None  # type: ignore[index]
        completion.logprobs = None
        output.outputs.clear()
    assert last is not None
    assert (last.outputs, last.prompt_token_ids) == (expected.outputs, [5, 6, 7])


def test_two_streams_at_once(llm: LLM) -> None:
    """Each step serves both; neither loses what the other's steps computed."""
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (12, 5)]
    alone = [llm.generate(PROMPT, p)[0].outputs[0].token_ids for p in params]
    streams = [llm.stream(PROMPT, p) for p in params]
    finals: list[list[int]] = [[], []]
    running = {0, 1}
    while running:
        for i in sorted(running):
            output = next(streams[i], None)
            if output is None:
                running.remove(i)
            else:
                finals[i] = list(output.outputs[0].token_ids)
    assert finals == alone


def test_generate_within_a_stream(llm: LLM) -> None:
    (expected,) = llm.generate(PROMPT, GREEDY)
    last = None
    for count, output in enumerate(llm.stream(PROMPT, GREEDY)):
        if count == 2:
            assert llm.generate(PROMPT, GREEDY)[0].outputs == expected.outputs
        last = output
    assert last is not None
    assert last.finished
    assert last.outputs == expected.outputs


# --- interrupts --------------------------------------------------------------


class Interrupted(BaseException):
    """What Ctrl-C raises, but not taken for it by pytest."""


class InterruptedSampler(TorchSampler):
    """Raises in its third step."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Tensor | None = None
    ) -> SamplerOutput:
        self.calls += 1
        if self.calls == 3:
            raise Interrupted
        return super().__call__(logits, sampling, drafts)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("how", ["generate", "stream"])
def test_an_interrupt_leaves_the_engine_usable(how: str, overlap: bool, text_folder: Path) -> None:
    components = Components(sampler=InterruptedSampler)
    llm = LLM(text_folder, device="cpu", max_num_seqs=2, overlap=overlap, components=components)
    prompts = ["a", "b c", "def"]
    run = {
        "generate": lambda: llm.generate(prompts, GREEDY),
        "stream": lambda: list(llm.stream(prompts[0], GREEDY)),
    }[how]
    with pytest.raises(Interrupted):
        run()
    checkpoints.assert_empty(llm)
    fresh = LLM(text_folder, device="cpu", max_num_seqs=2).generate(prompts, GREEDY)
    again = llm.generate(prompts, GREEDY)
    assert [o.outputs[0].token_ids for o in again] == [o.outputs[0].token_ids for o in fresh]


# Where a step may be interrupted: the runner's stages in their order, then the wait for it.
PLACES: dict[str, Callable[[LLM], tuple[object, str]]] = {
    "rows": lambda llm: (llm.engine.executor.worker.runner._parts.batch, "update"),
    "upload": lambda llm: (llm.engine.executor.worker.runner._parts.staging, "upload"),
    "tables": lambda llm: (llm.engine.executor.worker.runner._parts.batch, "apply"),
    "attention": lambda llm: (llm.engine.executor.worker.runner._parts.backend, "build"),
    "first layer": lambda llm: (llm.engine.executor.worker.runner._parts.backend, "forward"),
    "logits": lambda llm: (llm.engine.executor.worker.runner._parts.model, "compute_logits"),
    "sampling": lambda llm: (llm.engine.executor.worker.runner._parts.batch, "sampling_tensors"),
    "answers": lambda llm: (llm.engine.executor.worker.runner._answers, "fetch"),
    "wait": lambda llm: (PendingStep, "wait"),
}


@contextmanager
def interrupted(llm: LLM, place: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within, the engine gets no further than `place`."""

    def interrupt(*_: object, **__: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(*PLACES[place](llm), interrupt)
        yield


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_an_interrupt_anywhere_in_the_runner(
    place: str, overlap: bool, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(text_folder, device="cpu", max_num_seqs=2, overlap=overlap)
    with interrupted(llm, place, monkeypatch), pytest.raises(Interrupted):
        llm.generate(["a", "b"], GREEDY)
    checkpoints.assert_empty(llm)
    outputs = llm.generate(["a", "b", "c"], GREEDY)
    assert all(len(o.outputs[0].token_ids) == 10 for o in outputs)
    checkpoints.assert_empty(llm)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_an_interrupt_in_one_stream_leaves_the_others_right(
    place: str,
    overlap: bool,
    checkpoint: Callable[[str], Path],
    oracle: Callable[[str], PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step was shared: a request that was in it and stays computes it again.

    One neighbour decodes, one is in the middle of its prompt, one has forked samples; each
    is at another point when the interrupt comes, and keeps its log-probabilities too.
    """
    llm = LLM(
        checkpoint("qwen2-two-groups"),
        device="cpu",
        max_num_seqs=6,
        max_num_batched_tokens=16,
        block_size=8,
        overlap=overlap,
    )
    prompts = checkpoints.random_prompts([5, 9, 40, 18], seed=40)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
    for num_before in (1, 2, 4, 7):
        victim = llm.stream(prompts[0], replace(params, max_tokens=100))
        next(victim)
        kept = [
            llm.engine.add_request(str(prompt), prompt, replace(params, n=n))
            for prompt, n in zip(prompts[1:], (1, 1, 3), strict=True)
        ]
        for _ in range(num_before):
            next(victim)
        with interrupted(llm, place, monkeypatch), pytest.raises(Interrupted):
            next(victim)
        while llm.engine.has_requests:
            llm.engine.step()
        for output in [handle.snapshot() for handle in kept]:
            assert_greedy(oracle("qwen2-two-groups"), output)
            assert_logprobs(oracle("qwen2-two-groups"), output)
            assert [len(c.token_ids) for c in output.outputs] == [12] * len(output.outputs)
        checkpoints.assert_empty(llm)


def test_keyboard_interrupt_while_the_device_works(
    checkpoint: Callable[[str], Path], oracle: Callable[[str], PreTrainedModel]
) -> None:
    """Ctrl-C comes in the middle of a layer, at any of its calls; both streams go on."""
    llm = LLM(checkpoint("llama3-scaled"), device="cpu", max_num_seqs=2, overlap=True)
    backend = llm.engine.executor.worker.runner._parts.backend
    forward, calls = backend.forward, 0

    def sometimes(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls % 17 == 0:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    backend.forward = sometimes  # type: ignore[method-assign]
    prompts = checkpoints.random_prompts([20, 7], seed=41)
    handles = [llm.engine.add_request(str(p), p, replace(GREEDY, max_tokens=40)) for p in prompts]
    interrupts = 0
    while llm.engine.has_requests:
        try:
            llm.engine.step()
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts > 5
    for output in [handle.snapshot() for handle in handles]:
        assert len(output.outputs[0].token_ids) == 40
        assert_greedy(oracle("llama3-scaled"), output)
    checkpoints.assert_empty(llm)


def test_abort(llm: LLM) -> None:
    engine = llm.engine
    first = engine.add_request("first", PROMPT, GREEDY)
    second = engine.add_request("second", PROMPT, SamplingParams(n=6, temperature=0, max_tokens=10))
    engine.step()
    engine.abort_request("second")  # some of its samples run, some still wait
    engine.abort_request("second")
    engine.abort_request("never seen")
    assert second.finished
    assert [c.finish_reason for c in second.snapshot().outputs] == ["abort"] * 6
    while engine.has_requests:
        engine.step()
    completion = first.snapshot().outputs[0]
    assert (completion.finish_reason, len(completion.token_ids)) == ("length", 10)
    assert engine.step() == []  # nothing left to do


# --- traces ------------------------------------------------------------------


def test_trace(text_folder: Path, tmp_path: Path) -> None:
    trace = Trace()
    llm = LLM(text_folder, device="cpu", max_num_seqs=2, max_num_batched_tokens=8, trace=trace)
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2, ignore_eos=True)
    outputs = llm.generate([PROMPT, [1] * 20, "x"], params)
    assert [step.scheduled.step for step in trace.steps] == list(range(1, len(trace.steps) + 1))
    for step in trace.steps:
        assert step.scheduled.step == step.result.step
        assert step.scheduled.num_tokens <= 8
        assert step.begin <= step.end
    replayed: dict[str, list[int]] = {}
    for step in trace.steps:
        for request_id, tokens in step.result.token_ids.items():
            replayed.setdefault(request_id, []).extend(tokens)
    assert list(replayed.values()) == [o.outputs[0].token_ids for o in outputs]
    computed = dict.fromkeys(replayed, 0)
    for step in trace.steps:
        for entry in step.scheduled.entries:
            assert entry.start == computed[entry.request_id]
            computed[entry.request_id] += entry.num_tokens

    trace.save(tmp_path / "trace.json")
    loaded = json.loads((tmp_path / "trace.json").read_text("utf-8"))
    assert loaded == json.loads(json.dumps(trace.to_json()))
    assert len(loaded) == len(trace.steps)
    assert loaded[0]["begin"] == 0
    for step, raw in zip(trace.steps, loaded, strict=True):
        assert [e["request_id"] for e in raw["scheduled"]["entries"]] == [
            entry.request_id for entry in step.scheduled.entries
        ]
        assert raw["result"]["token_ids"] == step.result.token_ids
        for request_id, rows in step.result.logprobs.items():
            back = [
                {int(token): Logprob(**value) for token, value in row.items()}
                for row in raw["result"]["logprobs"][request_id]
            ]
            assert back == rows


def test_random_weights_need_no_checkpoint() -> None:
    from quire.models.config import ModelConfig

    config = ModelConfig("LlamaForCausalLM", 50, 32, 64, 2, 4, 2, 8, 64)
    first, second = (LLM(config, device="cpu", max_num_seqs=1) for _ in range(2))
    outputs = [llm.generate([1, 2, 3], GREEDY)[0].outputs[0] for llm in (first, second)]
    assert outputs[0].token_ids == outputs[1].token_ids
    assert outputs[0].text == ""
    with pytest.raises(QuireError, match="no tokenizer"):
        first.generate("text")
    assert torch.isfinite(next(first.engine.executor.worker.runner._parts.model.parameters())).all()
