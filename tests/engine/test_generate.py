"""`LLM.generate`: shapes, log-probabilities, endings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import small_tokenizers
from checkpoints import Scripted
from transformers import PreTrainedTokenizerFast

from quire import LLM, Components, RequestOutput, SamplingParams

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


def test_progress_bar(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    """On request, else on a terminal only, which a captured stream is not."""
    llm.generate(["a", "b"], GREEDY, use_tqdm=True)
    assert "2/2" in capsys.readouterr().err
    for silent in (False, None):
        llm.generate(["a", "b"], GREEDY, use_tqdm=silent)
        assert capsys.readouterr().err == ""


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


def test_logprobs_say_what_the_tokens_are(llm: LLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """As vLLM does: each token decoded alone, special tokens included."""
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=3, prompt_logprobs=2)
    (output,) = llm.generate([*tokenizer.encode("é f"), tokenizer.eos_token_id, 5], params)
    assert output.prompt_logprobs is not None
    rows = [*output.prompt_logprobs[1:], *(output.outputs[0].logprobs or [])]
    assert len(rows) == len(output.prompt_token_ids) - 1 + len(output.outputs[0].token_ids)
    named = {i: value.decoded_token for row in rows if row is not None for i, value in row.items()}
    assert named == {i: tokenizer.decode([i]) for i in named}
    assert named[tokenizer.eos_token_id] == "<|end|>"
    assert named[tokenizer.encode("é")[1]] == "\ufffd"  # a byte of a character
    (untold,) = llm.generate("f", replace(params, detokenize=False))
    assert untold.outputs[0].text == ""
    assert untold.outputs[0].logprobs is not None
    for row in untold.outputs[0].logprobs:
        assert {value.decoded_token for value in row.values()} == {None}


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


def test_a_stop_kept_in_the_output(text_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A stop string, a stop token and the end of sequence, each with its own text."""
    run = scripted(text_folder, tokenizer, "return item or nothing")
    keep = SamplingParams(max_tokens=50, include_stop_str_in_output=True)
    shown = replace(keep, skip_special_tokens=False)
    string = run(replace(keep, stop=["m or"])).outputs[0]
    assert (string.text, string.stop_reason) == ("return item or", "m or")
    stop = tokenizer.encode("return item or nothing")[1]
    token = run(replace(keep, stop_token_ids=[stop])).outputs[0]
    assert (token.text, token.stop_reason) == (tokenizer.decode(token.token_ids), stop)
    assert run(keep).outputs[0].text == "return item or nothing"  # its end has no text
    assert run(shown).outputs[0].text == "return item or nothing<|end|>"


def test_a_special_token_as_stop_string(
    text_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Where the end of sequence is ignored, a caller may still name it."""
    run = scripted(text_folder, tokenizer, "return item")
    params = SamplingParams(max_tokens=50, ignore_eos=True, stop="<|end|>")
    for skip in (False, True):
        completion = run(replace(params, skip_special_tokens=skip)).outputs[0]
        assert (completion.text, completion.stop_reason) == ("return item", "<|end|>")
        assert completion.finish_reason == "stop"
        assert completion.token_ids == [*tokenizer.encode("return item"), tokenizer.eos_token_id]


def test_special_tokens_in_the_text(text_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    run = scripted(text_folder, tokenizer, "a<|end|>b")
    params = SamplingParams(max_tokens=4, ignore_eos=True, skip_special_tokens=False)
    assert run(params).outputs[0].text == "a<|end|>b<|end|>"


def test_a_prompt_of_full_length_without_output(text_folder: Path) -> None:
    """Only scored: it may fill the model, and a stream of it is its end."""
    llm = LLM(text_folder, device="cpu", max_model_len=20, max_num_seqs=2)
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    (output,) = llm.generate([[1] * 20], params)
    assert output.finished
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == 20
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("", "length")
    (streamed,) = llm.stream([1] * 20, params)
    assert streamed.outputs == output.outputs
    assert streamed.prompt_logprobs == output.prompt_logprobs
    checkpoints.assert_empty(llm)


# --- SentencePiece -----------------------------------------------------------


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer like Llama 2's."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    source = small_tokenizers.llama2()
    source.save_pretrained(folder)
    options = {"vocab_size": len(source), "eos_token_id": source.eos_token_id}
    return checkpoints.write(folder, checkpoints.Spec("llama", options), seed=2)


@pytest.mark.parametrize("prompt", ["a b", "b ", "é", "a日"])
def test_prompt_and_text_are_the_decoded_ids(prompt: str, sentencepiece_folder: Path) -> None:
    """The space before the output's first word is there, though decoded alone it would go."""
    tokenizer = small_tokenizers.llama2()
    output = tokenizer.convert_tokens_to_ids(
        ["\u2581t", "en", "<0xE6>", "<0x97>", "<0xA5>", "</s>"]
    )
    start = len(tokenizer.encode(prompt))
    llm = LLM(
        sentencepiece_folder,
        device="cpu",
        components=Components(sampler=lambda: Scripted(start, output)),
    )
    (found,) = llm.generate(prompt)
    assert found.outputs[0].token_ids == output
    assert found.outputs[0].text == " ten日"
    together = found.prompt_token_ids + output
    assert prompt + " ten日" == tokenizer.decode(together, skip_special_tokens=True)
