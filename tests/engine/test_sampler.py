"""The sampler against a naive one: distributions, edges, processors, log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import naive_sampling
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_sampling import assert_distributed
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from quire import SamplingParams
from quire.kernels.cutoff import apply_min_p, apply_top_k_top_p
from quire.kernels.sampling import apply_temperature
from quire.sampling import Penalties, SamplingTensors, TorchSampler
from quire.sampling.processors import apply_penalties
from quire.sampling.sampler import gather_logprobs

CPU = torch.device("cpu")
DRAWS = 20_000
# Gaps, a tie of the two best, a tie in the middle, a tail.
LOGITS = [2.0, 2.0, 1.5, 0.9, 0.9, 0.3, -0.2, -1.0, -1.0, -2.5, -4.0, -9.0]


def tensors(
    params: Sequence[SamplingParams],
    seeds: Sequence[int],
    positions: Sequence[int],
    penalties: Penalties | None = None,
) -> SamplingTensors:
    return SamplingTensors.build(params, seeds, positions, CPU, penalties)


def count_tokens(
    params: Sequence[SamplingParams],
    prompt: Sequence[int],
    output: Sequence[int],
    vocab_size: int,
) -> Penalties:
    """Give every row one prompt and output; behind them lies what must not be counted."""
    ends = [len(prompt), len(prompt) + len(output)]
    row = [*prompt, *output, *range(vocab_size)]
    prompt_ends, row_ends = torch.tensor(ends)[:, None].expand(2, len(params))
    token_ids = torch.tensor([row] * len(params))
    return Penalties.build(params, token_ids, prompt_ends, row_ends, vocab_size)


def draw(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    count: int = DRAWS,
) -> list[int]:
    """Draw one token for each of `count` seeds."""
    rows = [params] * count
    penalties = count_tokens(rows, prompt, output, len(logits))
    sampling = tensors(rows, range(count), [7] * count, penalties)
    sampled = TorchSampler()(torch.tensor([logits] * count), sampling)
    assert sampled.tokens.shape == (count, 1)
    assert sampled.num_accepted is None  # one a row
    return list(sampled.tokens[:, 0].tolist())


DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": 0.4},
    "hot": {"temperature": 3.0},
    "hottest": {"temperature": 100.0},
    "top_k=1": {"top_k": 1},
    "top_k=4 cuts a tie": {"top_k": 4},
    "top_k=5": {"top_k": 5, "temperature": 2.0},
    "top_k of all": {"top_k": 12},
    "top_k beyond all": {"top_k": 10**6},
    "top_p=0.1": {"top_p": 0.1},
    "top_p=0.5": {"top_p": 0.5},
    "top_p=0.9": {"top_p": 0.9},
    "top_p=0.999": {"top_p": 0.999},
    "min_p=0.3": {"min_p": 0.3},
    "min_p=0.02": {"min_p": 0.02, "temperature": 1.7},
    "min_p=1": {"min_p": 1.0},
    "top_k, top_p": {"top_k": 6, "top_p": 0.8},
    "top_p of what top_k left": {"top_k": 3, "top_p": 0.65},
    "top_p of what min_p left": {"min_p": 0.3, "top_p": 0.65},
    "temperature before top_p": {"temperature": 2.5, "top_p": 0.6},
    "temperature before min_p": {"temperature": 0.5, "min_p": 0.2},
    "all": {"temperature": 1.3, "top_k": 8, "top_p": 0.93, "min_p": 0.05},
    "repetition": {"repetition_penalty": 1.8},
    "reward": {"repetition_penalty": 0.6},
    "presence": {"presence_penalty": 1.1},
    "frequency": {"frequency_penalty": 0.7},
    "negative": {"presence_penalty": -0.9, "frequency_penalty": -0.4},
    "penalties before the rest": {
        "repetition_penalty": 1.4,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
        "temperature": 0.8,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.01,
    },
}
PROMPT, OUTPUT = [0, 3, 3, 9], [1, 1, 1, 5, 3]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distribution(name: str) -> None:
    params = SamplingParams(**DISTRIBUTIONS[name])
    probabilities = naive_sampling.distribution(LOGITS, params, PROMPT, OUTPUT)
    assert_distributed(draw(LOGITS, params, PROMPT, OUTPUT), probabilities)


def test_chi_square_finds_a_wrong_sampler() -> None:
    """The check can fail: draws at temperature 1.0 are no draws at 1.1."""
    probabilities = naive_sampling.distribution(LOGITS, SamplingParams(temperature=1.1))
    with pytest.raises(AssertionError):
        assert_distributed(draw(LOGITS, SamplingParams()), probabilities)


def test_positions_are_as_good_as_seeds() -> None:
    """One request's successive draws follow the distribution, as draws of many seeds do."""
    params = [SamplingParams(temperature=1.5)] * DRAWS
    sampling = tensors(params, [3] * DRAWS, range(DRAWS))
    tokens = TorchSampler().choose(torch.tensor([LOGITS] * DRAWS), sampling).tolist()
    assert_distributed(tokens, naive_sampling.distribution(LOGITS, params[0]))


finite = st.floats(-12, 12, width=32)
some_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-3, 0.3, 1.0, 2.0, 100.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 3, 7, 50]),
    top_p=st.sampled_from([1.0, 1.0, 1e-9, 0.2, 0.5, 0.77, 0.95]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.3, 0.9, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3]),
    presence_penalty=st.sampled_from([0.0, -1.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, -0.5, 0.4]),
)


@settings(deadline=None, derandomize=True)
@given(
    rows=st.lists(
        st.tuples(some_params, st.lists(finite, min_size=8, max_size=8)), min_size=1, max_size=5
    ),
    seen=st.lists(st.integers(0, 7), max_size=6),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_mixed_rows_draw_only_what_each_allows(
    rows: list[tuple[SamplingParams, list[float]]], seen: list[int], seed: int
) -> None:
    """Greedy, sampled and penalised rows side by side, against the naive support."""
    params = [p for p, _ in rows]
    prompt, output = seen[:2], seen[2:]
    penalties = count_tokens(params, prompt, output, 8)
    logits = torch.tensor([row for _, row in rows])
    before = logits.clone()
    tokens = TorchSampler().choose(
        logits, tensors(params, [seed] * len(rows), range(len(rows)), penalties)
    )
    assert torch.equal(logits, before)  # the argument is left as it was
    for (own, row), token in zip(rows, tokens.tolist(), strict=True):
        allowed = naive_sampling.distribution(row, own, prompt, output)
        # A token on the very edge of a threshold may fall either way in float32.
        loose = replace(
            own,
            top_p=min(1.0, own.top_p * (1 + 1e-5)),
            min_p=own.min_p * (1 - 1e-5),
        )
        values = naive_sampling.penalised(row, own, prompt, output)
        near_ties = abs(values[token] - max(values)) < 1e-4 or any(
            # A value a hair above an allowed one is its equal in the oracle's exponential.
            share > 0 and 0 < abs(values[token] - value) < 1e-6
            for value, share in zip(values, allowed, strict=True)
        )
        assert (
            allowed[token] > 0
            or naive_sampling.distribution(row, loose, prompt, output)[token] > 0
            or near_ties
        )


# --- edges -------------------------------------------------------------------


@pytest.mark.parametrize("top_p", [1e-300, 1e-46, 1e-10])
def test_the_smallest_top_p_keeps_the_best_token(top_p: float) -> None:
    logits = [0.0, 1.0, 5.0, 4.99]
    assert set(draw(logits, SamplingParams(top_p=top_p), count=200)) == {2}


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-38, 1e-20, 1e-4])
def test_the_smallest_temperature_is_greedy(temperature: float) -> None:
    logits = [30.0, -4.0, 50.0, 49.0, 0.0]
    assert set(draw(logits, SamplingParams(temperature=temperature), count=200)) == {2}


def test_greedy_takes_the_first_of_a_tie() -> None:
    assert draw(LOGITS, SamplingParams(temperature=0), count=3) == [0, 0, 0]


def test_a_single_allowed_token_wins_whatever_the_noise() -> None:
    """The rest is removed, not made unlikely: noise of 20 nats must not bring it back."""
    logits = [0.0] * 50
    assert set(draw(logits, SamplingParams(top_k=1), count=5000)) == {0}
    assert set(draw([100.0, 99.0, 0.0], SamplingParams(min_p=0.9), count=5000)) == {0}


def test_greedy_rows_beside_sampled_rows() -> None:
    sampled, greedy = SamplingParams(temperature=5.0), SamplingParams(temperature=0)
    rows = [greedy, sampled] * 500
    tokens = TorchSampler().choose(
        torch.tensor([LOGITS] * 1000), tensors(rows, range(1000), [0] * 1000)
    )
    assert set(tokens[::2].tolist()) == {0}
    assert len(set(tokens[1::2].tolist())) > 6


def test_a_row_without_an_option_is_untouched_by_its_neighbours() -> None:
    """Neutral values must be neutral when another row makes the column exist."""
    plain = SamplingParams()
    busy = SamplingParams(top_k=2, top_p=0.3, min_p=0.5, repetition_penalty=2.0)
    logits = torch.tensor([LOGITS] * 200)
    seeds, positions = list(range(200)), [5] * 200
    alone = TorchSampler().choose(logits, tensors([plain] * 200, seeds, positions))
    rows = [plain, busy] * 100
    penalties = count_tokens(rows, PROMPT, PROMPT, len(LOGITS))
    mixed = TorchSampler().choose(logits, tensors(rows, seeds, positions, penalties))
    assert mixed[::2].tolist() == alone[::2].tolist()
    assert mixed[1::2].tolist() != alone[1::2].tolist()


# --- processors against transformers -----------------------------------------


@settings(deadline=None, derandomize=True)
@given(
    rows=st.lists(st.lists(finite, min_size=9, max_size=9, unique=True), min_size=1, max_size=4),
    value=st.sampled_from([0.05, 0.3, 0.5, 0.8, 0.99]),
    k=st.integers(1, 12),
)
def test_processors_are_those_of_transformers(
    rows: list[list[float]], value: float, k: int
) -> None:
    logits = torch.tensor(rows)
    count = len(rows)
    column = torch.full((count,), value)
    ids = torch.zeros(count, 1, dtype=torch.int64)

    def compare(ours: Tensor, warper: Any) -> None:
        theirs = warper(ids, logits.clone())
        torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), atol=1e-6, rtol=0)

    compare(apply_temperature(logits, column), TemperatureLogitsWarper(value))
    compare(apply_top_k_top_p(logits, torch.full((count,), k), None), TopKLogitsWarper(k))
    compare(apply_min_p(logits, column), MinPLogitsWarper(value))
    cumulative = logits.sort(dim=-1, descending=True).values.softmax(-1).cumsum(-1)
    if (cumulative - value).abs().min() > 1e-5:  # no token on the very edge
        compare(apply_top_k_top_p(logits, None, column), TopPLogitsWarper(value))


@settings(deadline=None, derandomize=True)
@given(
    logits=st.lists(finite, min_size=9, max_size=9),
    prompt=st.lists(st.integers(0, 8), min_size=1, max_size=6),
    output=st.lists(st.integers(0, 8), max_size=6),
    penalty=st.sampled_from([0.5, 1.0, 1.2, 3.0]),
)
def test_penalties(
    logits: list[float], prompt: list[int], output: list[int], penalty: float
) -> None:
    params = SamplingParams(
        repetition_penalty=penalty, presence_penalty=0.7, frequency_penalty=-0.2
    )
    penalties = count_tokens([params], prompt, output, 9)
    ours = apply_penalties(torch.tensor([logits]), penalties)
    expected = naive_sampling.penalised(logits, params, prompt, output)
    torch.testing.assert_close(ours, torch.tensor([expected]), atol=1e-5, rtol=1e-5)
    alone = [replace(params, presence_penalty=0.0, frequency_penalty=0.0)]
    only = count_tokens(alone, prompt, output, 9)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(
        torch.tensor([prompt + output]), torch.tensor([logits])
    )
    torch.testing.assert_close(apply_penalties(torch.tensor([logits]), only), theirs)


def test_rows_of_different_lengths_are_counted_apart() -> None:
    """Prompt and output of each row end where the row says, whatever lies behind."""
    params = [SamplingParams(presence_penalty=1.0)] * 3
    token_ids = torch.tensor([[3, 3, 1, 0, 5], [2, 4, 4, 4, 0], [5, 5, 5, 5, 5]])
    counted = Penalties.build(
        params, token_ids, torch.tensor([2, 1, 5]), torch.tensor([3, 4, 5]), 6
    )
    assert counted.prompt_counts.tolist() == [
        [0, 0, 0, 2, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 5],
    ]
    assert counted.output_counts.tolist() == [
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 3, 0],
        [0, 0, 0, 0, 0, 0],
    ]


# --- log-probabilities -------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(
    logits=st.lists(st.integers(-9000, 9000).map(lambda i: i / 1000), min_size=6, max_size=6),
    token=st.integers(0, 5),
    num_top=st.integers(0, 9),
)
def test_logprobs(logits: list[float], token: int, num_top: int) -> None:
    values = gather_logprobs(torch.tensor([logits]), torch.tensor([token]), num_top)
    expected = naive_sampling.log_softmax(logits)
    assert values.chosen.item() == pytest.approx(expected[token], abs=1e-5)
    assert values.rank.item() == 1 + sum(logit > logits[token] for logit in logits)
    best = sorted(expected, reverse=True)[:num_top]
    assert values.top_values[0].tolist() == pytest.approx(best, abs=1e-5)
    for token_id, value in zip(values.top_ids[0].tolist(), values.top_values[0], strict=True):
        assert value.item() == pytest.approx(expected[token_id], abs=1e-5)


def test_logprobs_are_the_models_own() -> None:
    """Before penalties, temperature and truncation."""
    params = [SamplingParams(temperature=0.1, top_k=2, repetition_penalty=2.0, logprobs=3)]
    penalties = count_tokens(params, [2], [2], len(LOGITS))
    sampled = TorchSampler()(torch.tensor([LOGITS]), tensors(params, [0], [0], penalties))
    assert sampled.logprobs is not None
    expected = naive_sampling.log_softmax(LOGITS)
    assert sampled.logprobs.chosen.item() == pytest.approx(expected[sampled.tokens.item()])
    assert sampled.logprobs.top_values[0].tolist() == pytest.approx(sorted(expected)[:-4:-1])
