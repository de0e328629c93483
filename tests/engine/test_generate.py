"""`LLM.generate` and `LLM.stream`: shapes, endings, streams, interrupts, traces."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from checkpoints import Scripted
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from quire import LLM, Components, QuireError, RequestOutput, SamplingParams, Trace
from quire.messages import Logprob
from quire.sampling import SamplerOutput, SamplingTensors, TorchSampler

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
PROMPT = "def push(self, item):"


def scripted(
    folder: Path, tokenizer: PreTrainedTokenizerFast, text: str, **options: Any
) -> Callable[[SamplingParams], RequestOutput]:
    """An engine that answers `PROMPT` with `text`, then the end of sequence for ever."""
    start = len(tokenizer.encode(PROMPT))
    script = tokenizer.encode(text) + [tokenizer.eos_token_id] * 200
    llm = LLM(
        folder,
        device="cpu",
        max_num_seqs=2,
        components=Components(sampler=lambda: Scripted(start, script)),
        **options,
    )

    def run(params: SamplingParams) -> RequestOutput:
        (output,) = llm.generate(PROMPT, params)
        shown = [step.outputs[0].text for step in llm.stream(PROMPT, params)]
        assert all(later.startswith(earlier) for earlier, later in pairwise(shown))
        assert shown[-1] == output.outputs[0].text
        checkpoints.assert_empty(llm)
        return output

    return run


# --- shapes ------------------------------------------------------------------


def test_one_string(llm: LLM, tokenizer: PreTrainedTokenizerFast) -> None:
    outputs = llm.generate(PROMPT, GREEDY)
    assert isinstance(outputs, list)
    (output,) = outputs
    assert output.prompt == PROMPT
    assert output.prompt_token_ids == tokenizer.encode(PROMPT)
    assert output.finished
    assert output.prompt_logprobs is None
    (completion,) = output.outputs
    assert completion.index == 0
    assert len(completion.token_ids) == 10
    assert completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)
    assert completion.finish_reason == "length"
    assert completion.stop_reason is None
    assert completion.logprobs is None
    assert completion.cumulative_logprob is None


def test_strings_and_ids_in_one_list(llm: LLM, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [PROMPT, tokenizer.encode(PROMPT), tuple(tokenizer.encode("class")), "x"]
    outputs = llm.generate(prompts, GREEDY)
    assert [o.prompt for o in outputs] == [PROMPT, None, None, "x"]
    assert [o.prompt_token_ids for o in outputs[:2]] == [tokenizer.encode(PROMPT)] * 2
    assert outputs[0].outputs[0].token_ids == outputs[1].outputs[0].token_ids
    assert len({o.request_id for o in outputs}) == 4


def test_one_list_of_ids_is_one_prompt(llm: LLM) -> None:
    (output,) = llm.generate([5, 6, 7], GREEDY)
    assert output.prompt_token_ids == [5, 6, 7]
    assert output.prompt is None


def test_no_prompts(llm: LLM) -> None:
    assert llm.generate([], GREEDY) == []


def test_the_callers_list_is_not_the_engines(llm: LLM) -> None:
    prompt = [5, 6, 7]
    (output,) = llm.generate(prompt, GREEDY)
    prompt.append(8)
    assert output.prompt_token_ids == [5, 6, 7]


def test_parameters_for_each(llm: LLM) -> None:
    each = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (1, 5, 3)]
    outputs = llm.generate(["a", "b", "c"], each)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [1, 5, 3]
    default = llm.generate("a")[0].outputs[0]
    assert 1 <= len(default.token_ids) <= 16


def test_more_prompts_than_rows(llm: LLM) -> None:
    """Order and answers are those of the prompts asked one by one."""
    prompts = checkpoints.random_prompts([3, 9, 1, 4, 12, 2, 7, 5, 6], seed=30, vocab=300)
    together = [o.outputs[0].token_ids for o in llm.generate(prompts, GREEDY)]
    assert together == [llm.generate([p], GREEDY)[0].outputs[0].token_ids for p in prompts]


def test_metrics(llm: LLM) -> None:
    (output,) = llm.generate(PROMPT, GREEDY)
    metrics = output.metrics
    assert metrics is not None
    assert len(metrics.token_times) == 10
    assert sorted(metrics.token_times) == metrics.token_times
    assert metrics.ttft is not None
    assert metrics.ttft > 0
    assert metrics.tpot == pytest.approx(sum(metrics.inter_token_latencies) / 9)
    (single,) = llm.generate(PROMPT, SamplingParams(max_tokens=1))
    assert single.metrics is not None
    assert single.metrics.tpot is None
    assert single.metrics.inter_token_latencies == []


# --- log-probabilities -------------------------------------------------------


def test_logprobs(llm: LLM) -> None:
    params = SamplingParams(temperature=3.0, seed=4, max_tokens=8, logprobs=3, ignore_eos=True)
    completion = llm.generate(PROMPT, params)[0].outputs[0]
    assert completion.logprobs is not None
    for row, token in zip(completion.logprobs, completion.token_ids, strict=True):
        assert next(iter(row)) == token  # the chosen one comes first
        assert len(row) == (3 if row[token].rank <= 3 else 4)
        assert {1, 2, 3} <= {value.rank for value in row.values()}
        by_rank = sorted(row.values(), key=lambda value: value.rank)
        values = [value.logprob for value in by_rank]
        assert values == sorted(values, reverse=True)
        assert max(values) <= 0
    assert any(
        row[t].rank > 3 for row, t in zip(completion.logprobs, completion.token_ids, strict=True)
    )


def test_each_gets_the_logprobs_it_asked_for(llm: LLM) -> None:
    each = [
        SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=n, prompt_logprobs=m)
        for n, m in [(None, None), (0, 2), (5, None), (1, 0)]
    ]
    outputs = llm.generate([PROMPT] * 4, each)
    for output, params in zip(outputs, each, strict=True):
        completion = output.outputs[0]
        if params.logprobs is None:
            assert completion.logprobs is None
        else:
            assert completion.logprobs is not None
            assert [len(row) for row in completion.logprobs] == [max(1, params.logprobs)] * 4
        if params.prompt_logprobs is None:
            assert output.prompt_logprobs is None
        else:
            assert output.prompt_logprobs is not None
            assert output.prompt_logprobs[0] is None
            for row, token in zip(
                output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True
            ):
                assert row is not None
                extra = row[token].rank > params.prompt_logprobs
                assert len(row) == params.prompt_logprobs + extra


def test_prompt_logprobs_with_n(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=1, max_tokens=3, prompt_logprobs=1, ignore_eos=True)
    (output,) = llm.generate(PROMPT, params)
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    (one,) = llm.generate([5], params)
    assert one.prompt_logprobs == [None]


# --- endings -----------------------------------------------------------------


def test_end_of_sequence(text_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    run = scripted(text_folder, tokenizer, "return item")
    completion = run(SamplingParams(max_tokens=50)).outputs[0]
    assert completion.finish_reason == "stop"
    assert completion.stop_reason is None
    assert completion.text == "return item"
    assert completion.token_ids == [*tokenizer.encode("return item"), tokenizer.eos_token_id]


def test_ignore_eos(text_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    run = scripted(text_folder, tokenizer, "return item")
    completion = run(SamplingParams(max_tokens=50, ignore_eos=True)).outputs[0]
    assert completion.finish_reason == "length"
    assert len(completion.token_ids) == 50
    assert completion.text == "return item"  # a special token has no text


def test_stop_token(text_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    run = scripted(text_folder, tokenizer, "return item")
    stop = tokenizer.encode("return item")[1]
    for ignore_eos in (False, True):
        params = SamplingParams(max_tokens=50, stop_token_ids=[7, stop], ignore_eos=ignore_eos)
        completion = run(params).outputs[0]
        assert completion.finish_reason == "stop"
        assert completion.stop_reason == stop
        assert completion.token_ids == tokenizer.encode("return item")[:2]
        assert completion.text == tokenizer.decode(completion.token_ids[:1])


def test_max_tokens_wins_over_nothing(
    text_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The last token allowed is text; the end of sequence at that very place is a stop."""
    run = scripted(text_folder, tokenizer, "return item")
    count = len(tokenizer.encode("return item"))
    exact = run(SamplingParams(max_tokens=count)).outputs[0]
    assert (exact.finish_reason, exact.text) == ("length", "return item")
    one_more = run(SamplingParams(max_tokens=count + 1)).outputs[0]
    assert (one_more.finish_reason, one_more.text) == ("stop", "return item")


@pytest.mark.parametrize("stop", ["item", ["zz", "item"], ("em", "n i")])
def test_stop_string(stop: Any, text_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    run = scripted(text_folder, tokenizer, "return item or nothing")
    completion = run(SamplingParams(max_tokens=50, stop=stop)).outputs[0]
    assert completion.finish_reason == "stop"
    expected = "n i" if isinstance(stop, tuple) else "item"
    assert completion.stop_reason == expected
    assert completion.text == "return item or nothing".partition(expected)[0]
    # No token is computed after the one that completed the stop string.
    before = tokenizer.decode(completion.token_ids[:-1])
    assert expected not in before
    assert expected in tokenizer.decode(completion.token_ids)


def test_a_stop_string_completed_by_the_last_token(
    text_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    run = scripted(text_folder, tokenizer, "return item")
    count = len(tokenizer.encode("return item"))
    completion = run(SamplingParams(max_tokens=count, stop="item")).outputs[0]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", "item")
    assert completion.text == "return "


def test_text_held_for_a_stop_string_comes_out_at_the_end(
    text_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    run = scripted(text_folder, tokenizer, "return item")
    completion = run(SamplingParams(max_tokens=50, stop="itemised")).outputs[0]
    assert (completion.finish_reason, completion.text) == ("stop", "return item")
    assert completion.stop_reason is None


def test_the_longest_sequence(text_folder: Path) -> None:
    llm = LLM(text_folder, device="cpu", max_model_len=20, max_num_seqs=2)
    params = SamplingParams(temperature=0, max_tokens=500, ignore_eos=True)
    outputs = llm.generate([[1] * 15, [1] * 19], params)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [5, 1]
    assert [o.outputs[0].finish_reason for o in outputs] == ["length", "length"]
    checkpoints.assert_empty(llm)


def test_several_ends_of_sequence(text_folder: Path, tmp_path: Path) -> None:
    """generation_config.json may name more ids than config.json does."""
    for path in text_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    llm = LLM(tmp_path, device="cpu", components=Components(sampler=lambda: Scripted(2, [9, 4, 9])))
    completion = llm.generate([1, 2])[0].outputs[0]
    assert completion.token_ids == [9, 4]
    assert completion.finish_reason == "stop"


def test_n_end_on_their_own(text_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Samples of one prompt end at different steps; the output is finished with the last."""
    llm = LLM(text_folder, device="cpu", max_num_seqs=2)
    params = SamplingParams(n=5, seed=8, temperature=1.5, max_tokens=30, stop=["e"])
    (output,) = llm.generate(PROMPT, params)
    assert output.finished
    assert len({len(c.token_ids) for c in output.outputs}) > 1
    for completion in output.outputs:
        assert completion.finish_reason in ("stop", "length")
        assert "e" not in completion.text
    checkpoints.assert_empty(llm)


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
    scripted(text_folder, tokenizer, text)(SamplingParams(max_tokens=50))
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
    "place", ["_update_rows", "_gather_indices", "_step_metadata", "_store_tokens"]
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
