"""`LLM.stream`, interrupts, aborts, traces."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import checkpoints
import pytest
import torch
from checkpoints import Scripted
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from quire import LLM, Components, QuireError, SamplingParams, Trace
from quire.messages import Logprob
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
    del stream
    checkpoints.assert_empty(llm)
    assert output.finished
    assert [c.finish_reason for c in output.outputs] == ["abort"] * 3
    never_started = llm.stream(PROMPT)
    del never_started
    checkpoints.assert_empty(llm)
    assert len(llm.generate(PROMPT, GREEDY)[0].outputs[0].token_ids) == 10


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


@pytest.mark.parametrize("how", ["generate", "stream"])
def test_an_interrupt_leaves_the_engine_usable(how: str, text_folder: Path) -> None:
    components = Components(sampler=InterruptedSampler)
    llm = LLM(text_folder, device="cpu", max_num_seqs=2, components=components)
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


@pytest.mark.parametrize(
    "place", ["_update_rows", "_gather_indices", "_step_metadata", "_prompt_logprobs"]
)
def test_an_interrupt_anywhere_in_the_runner(
    place: str, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(text_folder, device="cpu", max_num_seqs=2)

    def interrupt(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine._runner, place, interrupt)
        with pytest.raises(Interrupted):
            llm.generate(["a", "b"], GREEDY)
    checkpoints.assert_empty_scheduler(llm)
    outputs = llm.generate(["a", "b", "c"], GREEDY)
    assert all(len(o.outputs[0].token_ids) == 10 for o in outputs)
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
    assert [c.finish_reason for c in second.outputs] == ["abort"] * 6
    while engine.has_requests:
        engine.step()
    assert first.outputs[0].finish_reason == "length"
    assert len(first.outputs[0].token_ids) == 10
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
    assert torch.isfinite(next(first.engine._runner._model.parameters())).all()
