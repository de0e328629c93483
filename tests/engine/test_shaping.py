"""What is done to logits before the draw, against a naive meaning: each option and all together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import naive_sampling
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_sampling import assert_distributed
from sampling_rows import EOS, VOCAB, Row, batch_of, gather
from torch import Tensor
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    PreTrainedTokenizerFast,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from quire import LLM, QuireError, SamplingParams, Trace
from quire.kernels.sampling import NO_TOKEN
from quire.sampling import TorchSampler
from quire.sampling.processors import shape_logits


def halve_the_last(output: list[int], logits: Tensor) -> Tensor:
    """What was just said: half its logit."""
    if output:
        logits[output[-1]] *= 0.5
    return logits


def every_other(output: list[int], logits: Tensor) -> Tensor:
    """Forbid the even or the odd tokens, as the output's length says."""
    return logits.masked_fill(torch.arange(len(logits)) % 2 == len(output) % 2, -torch.inf)


finite = st.floats(-12, 12, width=32)
token = st.integers(0, VOCAB - 1)
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "min_tokens": st.integers(0, 5),
    "stop_token_ids": st.lists(token | st.just(10**12), max_size=2),
    "logit_bias": st.dictionaries(token, st.floats(-100, 100, width=32), max_size=3),
    "allowed_token_ids": st.none() | st.lists(token, min_size=1, max_size=6),
    # Short words of few letters, so that outputs hold them.
    "bad_words_ids": st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=5),
    "logits_processors": st.lists(st.sampled_from([halve_the_last, every_other]), max_size=2),
    "repetition_penalty": st.sampled_from([1.0, 0.5, 1.3]),
    "presence_penalty": st.sampled_from([0.0, -1.0, 1.5]),
    "frequency_penalty": st.sampled_from([0.0, -0.5, 0.4]),
    "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    "top_k": st.sampled_from([0, 0, 1, 3, 50]),
    "min_p": st.sampled_from([0.0, 0.0, 0.01, 0.3]),
}
ALONE = {
    "min_tokens": ["min_tokens", "stop_token_ids"],
    **{name: [name] for name in ("logit_bias", "allowed_token_ids", "bad_words_ids")},
    "logits_processors": ["logits_processors"],
}


def requests(names: Sequence[str]) -> st.SearchStrategy[list[Row]]:
    """Some requests, of which some use the options of these names."""
    options = st.fixed_dictionaries({name: OPTIONS[name] for name in names})
    params = options.map(lambda drawn: SamplingParams(max_tokens=None, **drawn))
    said = st.lists(st.integers(0, 2) | token, max_size=6)
    row = st.tuples(said.filter(bool), said, params | st.just(SamplingParams()))
    return st.lists(row, min_size=1, max_size=4)


def check_rows(requests: Sequence[Row], logits: Sequence[list[float]]) -> None:
    """Each request chooses at its last three positions at once, as where drafts are verified."""
    batch = batch_of(*requests)
    chosen = [
        (row, len(prompt) + count)
        for row, (prompt, output, _) in enumerate(requests)
        for count in range(max(0, len(output) - 2), len(output) + 1)
    ]
    tensors = gather(batch, chosen)
    given = torch.tensor([logits[row] for row, _ in chosen])
    before = given.clone()
    shaped = shape_logits(given, tensors)
    tokens = TorchSampler().choose(given, tensors).tolist()
    assert torch.equal(given, before)  # the argument is left as it was
    for (row, position), values, choice in zip(chosen, shaped, tokens, strict=True):
        prompt, output, params = requests[row]
        output = output[: position - len(prompt)]
        expected = naive_sampling.shaped(logits[row], params, prompt, output, EOS)
        torch.testing.assert_close(values, torch.tensor(expected), atol=1e-4, rtol=1e-5)
        if max(expected) == -torch.inf:
            assert choice == NO_TOKEN
        else:
            assert expected[choice] > -torch.inf


some_logits = st.lists(st.lists(finite, min_size=VOCAB, max_size=VOCAB), min_size=4, max_size=4)


@pytest.mark.parametrize("name", ALONE)
def test_each_option_alone(name: str) -> None:
    @settings(deadline=None, derandomize=True, max_examples=60)
    @given(requests(ALONE[name]), some_logits)
    def check(rows: list[Row], logits: list[list[float]]) -> None:
        check_rows(rows, logits)

    check()


@settings(deadline=None, derandomize=True, max_examples=200)
@given(requests(list(OPTIONS)), some_logits)
def test_all_options_together(rows: list[Row], logits: list[list[float]]) -> None:
    check_rows(rows, logits)


LOGITS = [2.0, 2.0, 1.5, 0.9, 0.3, -0.2, -1.0, 1.0]
PROMPT, OUTPUT = [0, 3, 1], [1, 1, 5, 2]
DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "no end yet": {"min_tokens": 5, "stop_token_ids": [0]},
    "the end may come": {"min_tokens": 4, "stop_token_ids": [0]},
    "favoured": {"logit_bias": {6: 3.0, 0: -1.5}},
    "excluded": {"logit_bias": {6: 100.0}},
    "allowed": {"allowed_token_ids": [1, 2, 6]},
    "one allowed": {"allowed_token_ids": [4]},
    "bad words": {"bad_words_ids": [[5, 2, 0], [2, 4], [1, 2, 3]]},
    "a function": {"logits_processors": [every_other]},
    "what is forbidden is none of the top k": {"allowed_token_ids": [2, 3, 4, 5], "top_k": 2},
    "what is forbidden has no share of top p": {"bad_words_ids": [[0], [1]], "top_p": 0.6},
    "min_p of the best that is allowed": {"allowed_token_ids": [3, 4, 5, 6], "min_p": 0.5},
    "a penalty after the bias": {"logit_bias": {1: -3.0}, "repetition_penalty": 2.0},
    "all": {
        "min_tokens": 8,
        "logit_bias": {6: 2.5, 2: -0.5},
        "allowed_token_ids": [0, 2, 3, 5, 6, 7],
        "bad_words_ids": [[2, 0]],
        "logits_processors": [halve_the_last],
        "frequency_penalty": 0.3,
        "temperature": 1.4,
        "top_k": 3,
    },
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distribution(name: str) -> None:
    """Draws of many seeds for one token of one request."""
    count = 8000
    params = SamplingParams(**DISTRIBUTIONS[name])
    end = len(PROMPT) + len(OUTPUT)
    tensors = gather(batch_of((PROMPT, OUTPUT, params)), [(0, end)])
    values = shape_logits(torch.tensor([LOGITS]), tensors).expand(count, -1)

    def each(column: Tensor | None) -> Tensor | None:
        return None if column is None else column.expand(count)

    drawn = replace(
        tensors,
        bias=None,
        functions=(),
        penalties=None,
        seeds=torch.arange(count),
        positions=tensors.positions.expand(count),
        temperature=tensors.temperature.expand(count),
        top_k=each(tensors.top_k),
        top_p=each(tensors.top_p),
        min_p=each(tensors.min_p),
    )
    tokens = TorchSampler().choose(values, drawn).tolist()
    assert_distributed(tokens, naive_sampling.distribution(LOGITS, params, PROMPT, OUTPUT, EOS))


# --- against transformers --------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(
    output=st.lists(st.integers(0, 3), min_size=4, max_size=8),
    words=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=4),
    bias=st.dictionaries(token, st.floats(-9, 9, width=32), min_size=1, max_size=4),
    allowed=st.lists(token, min_size=1, max_size=7, unique=True),
    min_tokens=st.integers(0, 10),
)
def test_options_are_those_of_transformers(
    output: list[int],
    words: list[list[int]],
    bias: dict[int, float],
    allowed: list[int],
    min_tokens: int,
) -> None:
    logits = torch.linspace(-2, 3, VOCAB)[None]
    ids = torch.tensor([output])

    def compare(theirs: Any, **options: Any) -> None:
        params = SamplingParams(max_tokens=None, **options)
        tensors = gather(batch_of(([5], output, params)), [(0, 1 + len(output))])
        torch.testing.assert_close(shape_logits(logits, tensors), theirs(ids, logits.clone()))

    compare(NoBadWordsLogitsProcessor(words), bad_words_ids=words)
    compare(
        SequenceBiasLogitsProcessor([[[token_id], value] for token_id, value in bias.items()]),
        logit_bias=bias,
    )
    others = [token_id for token_id in range(VOCAB) if token_id not in allowed]
    compare(SuppressTokensLogitsProcessor(others), allowed_token_ids=allowed)
    theirs = MinNewTokensLengthLogitsProcessor(0, min_tokens, [7, 2])
    compare(theirs, min_tokens=min_tokens, stop_token_ids=[2])


# --- functions ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda output, logits: None, "NoneType"),
        (lambda output, logits: logits[:3], r"\[3\]"),
        (lambda output, logits: logits[None], r"\[1, 8\]"),
        (lambda output, logits: logits.tolist(), "list"),
    ],
)
def test_a_function_that_returns_no_row(function: Any, found: str) -> None:
    tensors = gather(batch_of(([1], [], SamplingParams(logits_processors=[function]))), [(0, 1)])
    with pytest.raises(QuireError, match=rf"logits processor .* returned {found}: .* shape \[8\]"):
        TorchSampler().choose(torch.zeros(1, VOCAB), tensors)


def test_a_function_changes_its_own_row_only() -> None:
    """What it does to its arguments in place stays with it."""

    def spoil(output: list[int], logits: Tensor) -> Tensor:
        output.clear()
        return logits.fill_(-torch.inf).index_fill_(0, torch.tensor(4), 0.0)

    params = SamplingParams(temperature=0, logits_processors=[spoil, halve_the_last])
    greedy = SamplingParams(temperature=0)
    tensors = gather(batch_of(([1], [2], params), ([1], [2], greedy)), [(0, 2), (1, 2)])
    logits = torch.tensor([LOGITS, LOGITS])
    assert TorchSampler().choose(logits, tensors).tolist() == [4, 0]
    assert torch.equal(logits, torch.tensor([LOGITS, LOGITS]))


# --- in the engine -------------------------------------------------------------------


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
