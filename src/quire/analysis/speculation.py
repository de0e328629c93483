"""What speculation gains: how often a draft stands, tokens a round, and the speed-up.

A *round* is k draft tokens, then one step of the target model that verifies them and adds a
token of its own. Two costs are in units of one step of the target without drafts: v, a step over
1 + k tokens a request, and c, one draft token. Sources: the i.i.d. count of tokens and the
speed-up with v = 1 are of Leviathan, Kalman and Matias (2023, arXiv 2211.17192); the bound of two
who may not talk is of Daliri, Musco and Suresh (2024, arXiv 2408.07978). Every formula is derived
where it stands. The explorables "The shared race" and "Does it pay?" evaluate the same formulas
in the browser. See the chapter "Speculative decoding".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quire.errors import QuireError
from quire.sampling.values import is_int, is_number, plain

SUM_TOLERANCE = 1e-3  # probabilities that float32 or bfloat16 has rounded may miss 1 by as much


# docs: expected-tokens begin
def expected_tokens(acceptance: float | Sequence[float], k: int) -> float:
    """Return the tokens that a round of k drafts gives on average, in 1…1 + k.

    Draft i counts if it and all before it are accepted, and one token comes in any case:
    E = 1 + a₁ + a₁a₂ + … + a₁⋯a_k. With one number a for every draft, that is
    (1 − a^(k+1)) / (1 − a).

    Args:
        acceptance: the probability that a draft is accepted, given that those before it were:
            one number, which takes drafts to be independent of each other, or a number for each
            position, of which the first k count.
        k: drafts a round, at least 0.

    Raises:
        QuireError: k is no count; a probability outside [0, 1]; fewer probabilities than k.
    """
    _require_count("k", k)
    return 1.0 + sum(accumulate(_conditionals(acceptance, k), mul))


# docs: expected-tokens end


def speedup(tokens: float, k: int, draft_cost: float, verify_cost: float) -> float:
    """Return how many times faster text comes with k drafts a round: E / (v + k·c).

    Without drafts a step gives one token and takes one unit. What a round takes besides, such as
    the host's work, is part of v.

    Args:
        tokens: E, the tokens of a round, in 1…1 + k.
        k: drafts a round, at least 0.
        draft_cost: c, the time of one draft token over that of a step without drafts.
        verify_cost: v, the time of a step over 1 + k tokens a request over that of such a step.

    Raises:
        QuireError: more tokens than a round can have; a cost that is no time.
    """
    _require_count("k", k)
    if not _is_finite(tokens) or not 1 <= tokens <= 1 + k:
        raise QuireError(f"tokens={tokens!r}: a round of k={k} drafts has between 1 and {1 + k}")
    _require_cost("draft_cost", draft_cost, zero=True)
    _require_cost("verify_cost", verify_cost, zero=False)
    return tokens / (verify_cost + k * draft_cost)


def best_k(
    acceptance: float | Sequence[float], draft_cost: float, verify_costs: Sequence[float]
) -> int:
    """Return the number of drafts a round with the greatest speed-up; 0 where none pays.

    Of two that are equally fast it is the smaller.

    Args:
        acceptance: as for `expected_tokens`; a sequence needs a number for every draft.
        draft_cost: c, in steps without drafts.
        verify_costs: v of a step over 1, 2, … tokens a request, so k is at most one less than
            their number.

    Raises:
        QuireError: no verify_costs, or what the two functions above refuse.
    """
    if not len(verify_costs):
        raise QuireError("verify_costs is empty: give at least the cost of a step without drafts")
    speedups = [
        speedup(expected_tokens(acceptance, k), k, draft_cost, verify_cost)
        for k, verify_cost in enumerate(verify_costs)
    ]
    return max(range(len(speedups)), key=speedups.__getitem__)  # the first of equals


def total_variation(p: ArrayLike, q: ArrayLike) -> float:
    """Return TV(p, q) = ½ Σ|pᵢ − qᵢ|, in 0…1: the mass that one has and the other has not.

    Args:
        p: the target's probabilities, [V].
        q: the draft's, [V].

    Raises:
        QuireError: as all functions below, where p or q is no distribution or their lengths
            differ.
    """
    target, draft = _distributions(p, q)
    return min(float(np.abs(target - draft).sum()) / 2, 1.0)


def rejection_acceptance(p: ArrayLike, q: ArrayLike) -> float:
    """Return how often rejection sampling keeps a draft that was drawn from q: 1 − TV(p, q).

    Draft i is drawn with probability qᵢ and kept with probability min(1, pᵢ/qᵢ):
    Σ min(pᵢ, qᵢ) = 1 − TV. Whoever draws from p and from q, the two are equal no more often,
    since both are i with probability at most min(pᵢ, qᵢ).
    """
    return 1.0 - total_variation(p, q)


# docs: coupled-agreement begin
def coupled_agreement(p: ArrayLike, q: ArrayLike) -> float:
    """Return how often two draws with shared noise are equal: Σᵢ 1 / Σⱼ max(pⱼ/pᵢ, qⱼ/qᵢ).

    One exponential variate εⱼ a token; the target says argmax pⱼ/εⱼ, the draft argmax qⱼ/εⱼ.
    Both say i where every other εⱼ is above both εᵢ·pⱼ/pᵢ and εᵢ·qⱼ/qᵢ. At εᵢ = t that has the
    probability exp(−t·Σ_{j≠i} max(pⱼ/pᵢ, qⱼ/qᵢ)); over t, weighted with exp(−t), it gives the
    term of i. A token that p or q gives no probability has no term.

    With r = p/q, the larger of the two ratios is pⱼ/pᵢ where rⱼ ≥ rᵢ and else qⱼ/qᵢ. So in falling
    order of r each sum is the p up to i and the q behind it: one sort, O(V log V).
    """
    target, draft = _distributions(p, q)
    with np.errstate(over="ignore"):  # infinite is what it is then, as for no draft at all
        ratio = np.divide(target, draft, out=np.full_like(target, np.inf), where=draft > 0)
    order = np.argsort(-ratio, kind="stable")
    target, draft = target[order], draft[order]
    p_to_here, q_behind = np.cumsum(target), np.append(np.cumsum(draft[:0:-1])[::-1], 0.0)
    both = (target > 0) & (draft > 0)
    target, draft, p_to_here, q_behind = (x[both] for x in (target, draft, p_to_here, q_behind))
    return min(float((1 / (p_to_here / target + q_behind / draft)).sum()), 1.0)


# docs: coupled-agreement end


def agreement_bound(p: ArrayLike, q: ArrayLike) -> float:
    """Return (1 − TV) / (1 + TV): draws with shared noise are equal at least as often.

    Daliri, Musco and Suresh show it, and that it is the best promise: whatever two do who share
    random numbers and no messages, on some pair of distributions they are equal no more often.
    """
    distance = total_variation(p, q)
    return (1.0 - distance) / (1.0 + distance)


def independent_agreement(p: ArrayLike, q: ArrayLike) -> float:
    """Return how often two independent draws are equal: Σ pᵢ·qᵢ."""
    target, draft = _distributions(p, q)
    return float(target @ draft)


def argmax_agreement(p: ArrayLike, q: ArrayLike) -> float:
    """Return how often a draw from p is the draft's likeliest token: p at argmax q.

    The first of equals, as a greedy draft takes it. A draft that is one fixed token is kept as
    often by rejection sampling (q is 1 there, so min(1, p/q) = p), and by equality with the
    target's draw, whatever the noise. It can be more or less than 1 − TV.
    """
    target, draft = _distributions(p, q)
    return float(target[np.argmax(draft)])


def _conditionals(acceptance: float | Sequence[float], k: int) -> list[float]:
    """Return the k numbers that count, each checked."""
    one = plain(acceptance)
    if isinstance(one, str | bytes) or not (is_number(one) or hasattr(one, "__len__")):
        raise QuireError(f"acceptance={acceptance!r}: must be a number or one for each position")
    given = [one] if is_number(one) else [plain(value) for value in one]
    for value in given:
        if not is_number(value) or not 0 <= value <= 1:
            raise QuireError(f"acceptance={value!r}: must lie in [0, 1], it is a probability")
    if is_number(one):
        given *= k
    if len(given) < k:
        raise QuireError(
            f"acceptance has {len(given)} numbers, and k={k} drafts need one each: "
            "give more, or lower k"
        )
    return [float(value) for value in given[:k]]


def _distributions(p: ArrayLike, q: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both as float64 [V], each of them summing to 1 exactly."""
    found = []
    for name, values in (("p", p), ("q", q)):
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1 or not len(array):
            raise QuireError(f"{name} has shape {array.shape}: must be one row of probabilities")
        if not np.isfinite(array).all() or array.min() < 0:
            wrong = array[~(np.isfinite(array) & (array >= 0))][0]
            raise QuireError(f"{name} holds {wrong}: probabilities are at least 0; softmax logits")
        total = float(array.sum())
        if abs(total - 1) > SUM_TOLERANCE:
            raise QuireError(f"{name} sums to {total:.6g}: must sum to 1, so divide it by that")
        found.append(array / total)
    if len(found[0]) != len(found[1]):
        raise QuireError(
            f"p has {len(found[0])} tokens and q {len(found[1])}: both need one vocabulary"
        )
    return found[0], found[1]


def _require_count(name: str, value: object) -> None:
    if not is_int(plain(value)) or plain(value) < 0:
        raise QuireError(f"{name}={value!r}: must be an integer of at least 0")


def _require_cost(name: str, value: object, *, zero: bool) -> None:
    if not _is_finite(value) or plain(value) < 0 or (plain(value) == 0 and not zero):
        raise QuireError(
            f"{name}={value!r}: must be a time over that of a step without drafts, "
            f"{'at least' if zero else 'greater than'} 0"
        )


def _is_finite(value: object) -> bool:
    return is_number(plain(value)) and math.isfinite(plain(value))
