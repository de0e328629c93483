"""What is done to logits before the draw, against a naive meaning: each option and all together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import naive_sampling
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_sampling import assert_distributed, every_other, halve_the_last
from sampling_rows import EOS, VOCAB, Row, batch_of, gather
from torch import Tensor
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from quire import SamplingParams
from quire.kernels.sampling import NO_TOKEN
from quire.sampling import TorchSampler
from quire.sampling.processors import shape_logits
from quire.sampling.trial import sample_with_everything

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
    (token,) = TorchSampler().choose(torch.zeros(1, VOCAB), tensors).tolist()
    assert token == NO_TOKEN
    assert re.fullmatch(
        rf"logits processor .* raised TypeError: it returned {found} and must .* shape \[8\]",
        tensors.failures[0],
    )


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


def test_a_trial_of_every_option_leaves_its_logits_as_they_are() -> None:
    logits = torch.tensor([LOGITS, LOGITS])
    sample_with_everything(logits, 20)
    assert torch.equal(logits, torch.tensor([LOGITS, LOGITS]))
