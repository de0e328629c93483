"""Shaped logits in the engine: greedy tokens on transformers' logits, ends, words, scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import naive_sampling
import pytest
from naive_sampling import every_other, halve_the_last
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from quire import LLM, SamplingParams, Trace


def engine_options(stop: list[int]) -> dict[str, dict[str, Any]]:
    return {
        "min_tokens": {"min_tokens": 20, "stop_token_ids": stop},
        "logit_bias": {"logit_bias": {5: 2.0, 9: -3.0, 40: 1.5}},
        "allowed_token_ids": {"allowed_token_ids": list(range(20, 60))},
        "bad_words_ids": {"bad_words_ids": [[stop[0]], stop[1:3], stop[:3]]},
        "logits_processors": {"logits_processors": [halve_the_last, every_other]},
        "all": {
            "min_tokens": 24,
            "stop_token_ids": stop,
            "logit_bias": {5: 2.0, stop[0]: 100.0},
            "allowed_token_ids": [*range(70), *stop],
            "bad_words_ids": [[5, 5], [5, stop[1]]],
            "logits_processors": [halve_the_last],
            "repetition_penalty": 1.2,
            "frequency_penalty": 0.3,
        },
    }


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", engine_options([0, 1, 2]))
def test_engine_shapes_logits(
    name: str, overlap: bool, checkpoint: Callable[[str], Path], oracle: Callable[[str], Any]
) -> None:
    """Greedy, step by step against the naive meaning on transformers' logits.

    Two requests use the option and two do not; the cache is too small for all four, so that
    some are preempted and come back in other rows.
    """
    prompts = checkpoints.random_prompts([30, 9], seed=21)
    plain = SamplingParams(temperature=0, max_tokens=28)
    trace = Trace()
    llm = LLM(
        checkpoint("qwen2"),
        trace=trace,
        device="cpu",
        max_num_seqs=4,
        max_model_len=64,
        num_blocks=9,
        overlap=overlap,
    )
    alone = [output.outputs[0].token_ids for output in llm.generate(prompts, plain)]
    params = replace(plain, **engine_options(alone[0][1:9:2])[name])
    each = [params, params, plain, plain]
    outputs = [o.outputs[0].token_ids for o in llm.generate(prompts * 2, each)]
    assert any(step.scheduled.preempted_ids for step in trace.steps)
    assert outputs[2:] == alone
    assert outputs[:2] != alone
    model = oracle("qwen2")
    for prompt, tokens in zip(prompts, outputs, strict=False):
        logits = checkpoints.oracle_logits(model, prompt + tokens)[len(prompt) - 1 : -1]
        for i, chosen in enumerate(tokens):
            values = naive_sampling.shaped(logits[i].tolist(), params, prompt, tokens[:i])
            assert values[chosen] >= max(values) - checkpoints.TOLERANCE
    checkpoints.assert_empty(llm)


def test_the_end_comes_after_min_tokens(llm: LLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """A request that would end at once: by the model's own token, by one of the caller's."""
    eos = tokenizer.eos_token_id
    assert eos is not None

    def wants(token_id: int) -> Any:
        def function(output: list[int], logits: Tensor) -> Tensor:
            logits[token_id] += 1000
            return logits

        return function

    for end, options in [(eos, {}), (9, {"stop_token_ids": [9]})]:
        params = SamplingParams(
            temperature=0, max_tokens=12, logits_processors=[wants(end)], **options
        )
        (at_once,) = llm.generate([[5, 6]], params)
        assert at_once.outputs[0].token_ids == [end]
        (later,) = llm.generate([[5, 6]], replace(params, min_tokens=5))
        assert later.outputs[0].finish_reason == "stop"
        assert later.outputs[0].token_ids.index(end) == 5 == len(later.outputs[0].token_ids) - 1
    (on,) = llm.generate(
        [[5, 6]], replace(params, logits_processors=[wants(eos)], ignore_eos=True, min_tokens=5)
    )
    assert on.outputs[0].token_ids[5:] == [eos] * 7
    assert eos not in on.outputs[0].token_ids[:5]


def test_a_bad_word_is_not_said(llm: LLM, tokenizer: PreTrainedTokenizerFast) -> None:
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    before = llm.generate(["def "], params)[0].outputs[0]
    said = [i for i in before.token_ids if tokenizer.decode([i]).strip().isalpha()][3:5]
    words = [tokenizer.decode([i]).strip() for i in said]
    assert len(words) == 2
    assert all(word in before.text for word in words)
    after = llm.generate(["def "], replace(params, bad_words=words))[0].outputs[0]
    assert after.token_ids != before.token_ids
    assert not {*said} & {*after.token_ids}
    for word in words:
        for spelt in (word, f" {word}"):
            ids = tokenizer.encode(spelt, add_special_tokens=False)
            runs = zip(*(after.token_ids[i:] for i in range(len(ids))), strict=False)
            assert tuple(ids) not in set(runs)


def test_log_probabilities_are_those_before_any_shaping(checkpoint: Callable[[str], Path]) -> None:
    llm = LLM(checkpoint("qwen2"), device="cpu", max_num_seqs=2)
    plain = SamplingParams(temperature=0, max_tokens=1, logprobs=5)
    (free,) = llm.generate([[1, 2, 3]], plain)
    best = free.outputs[0].token_ids[0]
    (bound,) = llm.generate([[1, 2, 3]], replace(plain, bad_words_ids=[[best]]))
    assert free.outputs[0].logprobs is not None
    assert bound.outputs[0].logprobs is not None
    second = bound.outputs[0].token_ids[0]
    assert second != best
    row, other = free.outputs[0].logprobs[0], bound.outputs[0].logprobs[0]
    assert (other[second].rank, other[best].rank) == (2, 1)
    for token_id, logprob in row.items():
        assert other[token_id].logprob == pytest.approx(logprob.logprob, abs=1e-5)
