"""The formulas of speculation against enumeration, their definitions, and quire's own noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_sampling import ALPHA
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from quire.analysis import (
    agreement_bound,
    argmax_agreement,
    best_k,
    coupled_agreement,
    expected_tokens,
    independent_agreement,
    rejection_acceptance,
    speedup,
    total_variation,
)
from quire.errors import QuireError
from quire.kernels.noise import Purpose, exponential, uniform

P, Q = (0.5, 0.3, 0.2), (0.2, 0.3, 0.5)
NUM_DRAWS = 100_000
PAIR_FORMULAS = (
    total_variation,
    rejection_acceptance,
    coupled_agreement,
    agreement_bound,
    independent_agreement,
    argmax_agreement,
)

# ---- tokens, speed-up, k


def tokens_by_enumeration(conditionals: Sequence[float]) -> float:
    """Every outcome of the k coins, weighted: the drafts before the first failure, and one."""
    total = 0.0
    for coins in product((True, False), repeat=len(conditionals)):
        weight = math.prod(
            a if coin else 1 - a for a, coin in zip(conditionals, coins, strict=True)
        )
        accepted = coins.index(False) if False in coins else len(coins)
        total += weight * (accepted + 1)
    return total


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=7))
def test_tokens_of_a_round_are_the_mean_over_all_outcomes(conditionals: list[float]) -> None:
    expected = tokens_by_enumeration(conditionals)
    assert expected_tokens(conditionals, len(conditionals)) == pytest.approx(expected)
    # What the later positions accept is of no matter to a shorter round.
    assert expected_tokens([*conditionals, 0.3], len(conditionals)) == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 0.99), st.integers(0, 40))
def test_equal_acceptances_give_the_geometric_sum(a: float, k: int) -> None:
    assert expected_tokens(a, k) == pytest.approx((1 - a ** (k + 1)) / (1 - a))
    assert expected_tokens(np.full(k, a), k) == expected_tokens(a, k)


def test_tokens_at_the_ends() -> None:
    assert expected_tokens(1, 5) == 6
    assert expected_tokens(0.0, 5) == 1
    assert expected_tokens([], 0) == 1
    assert expected_tokens([0.0, 1.0, 1.0], 3) == 1  # what follows a failure does not count


def test_a_low_first_position_costs_more_than_its_share() -> None:
    """Failures in a row: the same mean acceptance gives fewer tokens."""
    clustered = [0.5, 0.7, 0.9, 0.9]
    assert expected_tokens(clustered, 4) < expected_tokens(sum(clustered) / 4, 4)


def test_speedup_is_tokens_over_the_time_of_a_round() -> None:
    assert speedup(1.0, 0, 0.3, 1.0) == 1
    assert speedup(2.5, 3, 0.2, 1.4) == pytest.approx(2.5 / (1.4 + 0.6))
    assert speedup(2.0, 1, 0.0, 2.0) == 1  # verification that costs a step a token gains nothing


@settings(max_examples=100, deadline=None)
@given(
    a=st.lists(st.floats(0, 1), min_size=8, max_size=8),
    c=st.floats(0, 1),
    rises=st.lists(st.floats(0, 0.5), max_size=8),
)
def test_the_best_k_is_the_first_that_no_other_beats(
    a: list[float], c: float, rises: list[float]
) -> None:
    costs = [1.0, *(1.0 + sum(rises[: i + 1]) for i in range(len(rises)))]
    chosen = best_k(a, c, costs)
    rate = {k: tokens_by_enumeration(a[:k]) / (v + k * c) for k, v in enumerate(costs)}
    assert rate[chosen] >= max(rate.values()) * (1 - 1e-12)
    assert best_k(a, c, costs[: chosen + 1]) == chosen


def test_the_best_k_of_known_cases() -> None:
    assert best_k(0.9, 0.0, [1.0] * 6) == 5  # free drafts, free verification: all
    assert best_k(0.0, 0.0, [1.0] * 6) == 0  # nothing gained, nothing lost: the fewest
    assert best_k(0.6, 0.7, [1.0, 1.1, 1.2]) == 0  # a draft dearer than what it saves
    assert best_k(0.9, 0.0, np.array([1.0, 2.0, 3.0])) == 0  # a step a token: drafts save none


# ---- how often two draws are equal


def race(p: ArrayLike, noise: NDArray[np.float64]) -> NDArray[np.intp]:
    """What a race says, for each row of noise: the sampler's argmax."""
    return np.argmax(np.asarray(p) / noise, axis=1)


def engine_noise(width: int, purpose: Purpose, first_seed: int = 0) -> NDArray[np.float64]:
    seeds = torch.arange(first_seed, first_seed + NUM_DRAWS)
    positions = torch.full((NUM_DRAWS,), 17)
    return exponential(seeds, positions, purpose, width).double().numpy()


def random_pair(seed: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    p, q = generator.dirichlet(np.full(width, 0.6), 2)
    return p, 0.5 * p + 0.5 * q


PAIRS = {
    "reversed": (np.array(P), np.array(Q)),
    "no common support": (np.array([0.4, 0.6, 0.0, 0.0]), np.array([0.0, 0.0, 0.1, 0.9])),
    "zeros": (np.array([0.7, 0.3, 0.0]), np.array([0.6, 0.0, 0.4])),
    "five tokens": random_pair(1, 5),
    "forty tokens": random_pair(2, 40),
}


@pytest.mark.parametrize("name", PAIRS)
def test_formulas_against_draws_with_the_engines_noise(name: str) -> None:
    p, q = PAIRS[name]
    width = len(p)
    shared = engine_noise(width, Purpose.TOKEN)
    target, draft = race(p, shared), race(q, shared)
    other = race(q, engine_noise(width, Purpose.TOKEN, first_seed=1 << 40))
    positions = torch.full((NUM_DRAWS,), 17)
    coin = uniform(torch.arange(NUM_DRAWS), positions, Purpose.ACCEPT, 1)[:, 0].double().numpy()
    counts = {
        coupled_agreement: np.sum(target == draft),
        independent_agreement: np.sum(target == other),
        argmax_agreement: np.sum(target == np.argmax(q)),
        rejection_acceptance: np.sum(coin * q[other] < p[other]),
    }
    for formula, count in counts.items():
        exact = formula(p, q)
        if exact < 1e-12:
            assert count == 0, formula.__name__
        else:
            test = stats.binomtest(int(count), NUM_DRAWS, exact)
            assert test.pvalue > ALPHA, (formula.__name__, count / NUM_DRAWS, exact)


def coupled_by_definition(p: Sequence[float], q: Sequence[float]) -> float:
    """The double sum as it is written."""
    total = 0.0
    for pi, qi in zip(p, q, strict=True):
        if pi > 0 and qi > 0:
            total += 1 / sum(max(pj / pi, qj / qi) for pj, qj in zip(p, q, strict=True))
    return total


weights = st.lists(
    st.tuples(*[st.one_of(st.just(0.0), st.floats(1e-6, 1.0))] * 2), min_size=1, max_size=12
).filter(lambda pairs: all(sum(side) > 0 for side in zip(*pairs, strict=True)))


@settings(max_examples=300, deadline=None)
@given(weights)
def test_the_sorted_sum_is_the_double_sum_and_lies_between_its_bounds(
    pairs: list[tuple[float, float]],
) -> None:
    p, q = (np.array(side) / sum(side) for side in zip(*pairs, strict=True))
    coupled = coupled_agreement(p, q)
    assert coupled == pytest.approx(coupled_by_definition(p, q), abs=1e-12)
    assert coupled == pytest.approx(coupled_agreement(q, p), abs=1e-12)
    # Never below the bound, never above the most that any two draws reach.
    assert agreement_bound(p, q) - 1e-12 <= coupled <= rejection_acceptance(p, q) + 1e-12
    assert rejection_acceptance(p, q) == pytest.approx(np.minimum(p, q).sum())
    assert independent_agreement(p, q) <= rejection_acceptance(p, q) + 1e-12


@settings(max_examples=100, deadline=None)
@given(weights)
def test_a_distribution_agrees_with_itself(pairs: list[tuple[float, float]]) -> None:
    p = np.array([first for first, _ in pairs]) / sum(first for first, _ in pairs)
    for formula in (coupled_agreement, rejection_acceptance, agreement_bound):
        assert formula(p, p) == pytest.approx(1)
    assert independent_agreement(p, p) == pytest.approx(np.sum(p**2))


def test_known_values() -> None:
    assert total_variation(P, Q) == pytest.approx(0.3)
    assert rejection_acceptance(P, Q) == pytest.approx(0.7)
    assert agreement_bound(P, Q) == pytest.approx(0.7 / 1.3)
    assert independent_agreement(P, Q) == pytest.approx(0.29)
    assert argmax_agreement(P, Q) == 0.2
    assert argmax_agreement(P, (0.4, 0.4, 0.2)) == 0.5  # the first of equals
    # Terms: 1/(1 + 3/2 + 5/2), 1/(5/3 + 1 + 5/3), 1/(5/2 + 3/2 + 1).
    assert coupled_agreement(P, Q) == pytest.approx(2 / 5 + 3 / 13)


def test_a_fixed_draft_can_beat_every_draw_from_q() -> None:
    """A flat draft that is right about the first place: its argmax is kept more than 1 − TV."""
    p, q = (0.95, 0.03, 0.02), (0.4, 0.3, 0.3)
    assert argmax_agreement(p, q) > rejection_acceptance(p, q) > coupled_agreement(p, q)


def test_a_whole_vocabulary_in_float32() -> None:
    """One sort: 150,000 tokens; of a thousand of them, renormalised, the double sum agrees."""
    logits = torch.randn(2, 150_000, generator=torch.Generator().manual_seed(0)) * 3
    logits[1] = logits[0] + 0.7 * logits[1] / 3
    p, q = logits.softmax(-1)
    assert agreement_bound(p, q) < coupled_agreement(p, q) < rejection_acceptance(p, q)
    short_p, short_q = (np.asarray(x[:1000].double() / x[:1000].double().sum()) for x in (p, q))
    expected = coupled_by_definition(short_p.tolist(), short_q.tolist())
    assert coupled_agreement(short_p, short_q) == pytest.approx(expected, rel=1e-9)


def test_what_rounding_took_from_a_sum_changes_nothing() -> None:
    for formula in PAIR_FORMULAS:
        rounded = formula(0.9995 * np.array(P), 1.0005 * np.array(Q))
        assert rounded == pytest.approx(formula(P, Q), abs=1e-12), formula.__name__


# ---- what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expected_tokens(0.5, -1), "k=-1"),
        (lambda: expected_tokens(0.5, 2.5), "k=2.5"),  # type: ignore[arg-type]
        (lambda: expected_tokens(0.5, True), "k=True"),
        (lambda: expected_tokens(1.5, 2), "acceptance=1.5"),
        (lambda: expected_tokens(-0.1, 0), "acceptance=-0.1"),
        (lambda: expected_tokens(math.nan, 2), "acceptance=nan"),
        (lambda: expected_tokens([0.5, 1.5], 1), "acceptance=1.5"),
        (lambda: expected_tokens("0.5", 1), "acceptance='0.5'"),  # type: ignore[arg-type]
        (lambda: expected_tokens([0.5, 0.5], 3), "acceptance has 2 numbers, and k=3"),
        (lambda: speedup(0.5, 3, 0.1, 1.0), "tokens=0.5"),
        (lambda: speedup(4.5, 3, 0.1, 1.0), "tokens=4.5"),
        (lambda: speedup(2.0, 3, -0.1, 1.0), "draft_cost=-0.1"),
        (lambda: speedup(2.0, 3, 0.1, 0.0), "verify_cost=0.0"),
        (lambda: speedup(2.0, 3, 0.1, math.inf), "verify_cost=inf"),
        (lambda: speedup(2.0, 3, math.nan, 1.0), "draft_cost=nan"),
        (lambda: best_k(0.5, 0.1, []), "verify_costs is empty"),
        (lambda: best_k([0.5], 0.1, [1.0, 1.0, 1.0]), "k=2 drafts need one each"),
    ],
)
def test_bad_counts_and_costs_are_refused_by_name(call: Callable[[], object], message: str) -> None:
    with pytest.raises(QuireError, match=message):
        call()


@pytest.mark.parametrize("formula", PAIR_FORMULAS, ids=lambda formula: formula.__name__)
@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        ([0.5, 0.4], [0.5, 0.5], r"p sums to 0\.9: must sum to 1"),
        ([0.5, 0.5], [2.0, 3.0], r"q sums to 5: must sum to 1"),
        ([1.5, -0.5], [0.5, 0.5], r"p holds -0\.5"),
        ([0.5, 0.5], [math.nan, 1.0], "q holds nan"),
        ([0.5, 0.5], [1.0], "p has 2 tokens and q 1"),
        ([], [], r"p has shape \(0,\)"),
        ([[0.5, 0.5]], [0.5, 0.5], r"p has shape \(1, 2\)"),
    ],
)
def test_what_is_no_distribution_is_refused_by_name(
    formula: Callable[[Any, Any], float], p: Any, q: Any, message: str
) -> None:
    with pytest.raises(QuireError, match=message):
        formula(p, q)
