"""Search among the logits of an array, in a kernel's program: passes over it, and no sort.

An array is a pointer and a size, which need not be a constant: a row, the maxima of its groups, a
list of its candidates. NaN compares as less than everything.
"""

from __future__ import annotations

from quire.kernels.runtime import jit, tl


@jit
def cut(data, size, floor, top, scale, top_k, top_p, total, block: tl.constexpr):
    """The least logit that stays, and the place of the last of its ties that does, or `size`.

    Args:
        floor: the least logit that min-p keeps, -inf if it keeps all.
        top: the largest logit of the row, which is finite. The array holds it, and all that is
            no less than the cutoff.
        scale: of weights exp2((logit - top) · scale), log₂ e over the temperature.
        top_k: float32, 0 if it keeps all.
        top_p: float32, 1 if it keeps all.
        total: what all tokens weigh, if the array lacks some and top-p is alone; else 0.
    """
    last = size
    cutoff = least_from(data, size, floor, block)
    if top_k > 0:
        cutoff = lowest_kept(data, size, cutoff, top, top_k, top, 0.0, False, block)
    if (top_k > 0) | (top_p < 1):
        above, ties, mass = measure(data, size, cutoff, top, scale, block)
        allowed = tl.where(top_k > 0, tl.minimum(top_k - above, ties), ties)
        if top_p < 1:
            mass += allowed * tl.exp2((cutoff - top) * scale)
            target = top_p * tl.where(total > 0, total, mass)
            edge = cutoff
            cutoff = lowest_kept(data, size, cutoff, top, target, top, scale, True, block)
            above, ties, mass = measure(data, size, cutoff, top, scale, block)
            wanted = tl.ceil((target - mass) / tl.exp2((cutoff - top) * scale))
            allowed = tl.where(cutoff == edge, allowed, ties)
            allowed = tl.minimum(allowed, tl.maximum(wanted, 1.0))
        if allowed < ties:
            last = nth_tie(data, size, cutoff, allowed, block)
    return cutoff, last


@jit
def lowest_kept(
    data, size, low, high, target, top, scale, weighs: tl.constexpr, block: tl.constexpr
):
    """The smallest logit in [low, high] whose betters amount to less than `target`, or `high`.

    They are counted, or weighed with exp2((logit - top) · scale) each. Both ends are logits
    of the array: a round halves the interval and moves its end on to the next logit, so that
    the search ends after few rounds, exactly.
    """
    while low < high:
        pivot = low * 0.5 + high * 0.5  # their difference might be too large for float32
        pivot = tl.where((pivot > low) & (pivot <= high), pivot, high)
        amount = tl.zeros((block,), tl.float32)
        least = tl.full((block,), float("inf"), tl.float32)
        most = tl.full((block,), -float("inf"), tl.float32)
        for start in range(0, size, block):
            logit = load_logits(data, size, start, block)
            better = logit >= pivot
            if weighs:
                amount += tl.where(better, tl.exp2((logit - top) * scale), 0.0)
            else:
                amount += better.to(tl.float32)
            least = tl.minimum(least, tl.where(better, logit, float("inf")))
            most = tl.maximum(most, tl.where(better, -float("inf"), logit))
        if tl.sum(amount) < target:
            high = tl.max(most)
        else:
            low = tl.min(least)
    return low


@jit
def load_logits(data, size, start, block: tl.constexpr):
    place = start + tl.arange(0, block)
    return tl.load(data + place, place < size, other=-float("inf")).to(tl.float32)


@jit
def least_from(data, size, floor, block: tl.constexpr):
    """The smallest logit of at least `floor`; what is -inf does not count."""
    least = tl.full((block,), float("inf"), tl.float32)
    for start in range(0, size, block):
        logit = load_logits(data, size, start, block)
        counts = (logit >= floor) & (logit > -float("inf"))
        least = tl.minimum(least, tl.where(counts, logit, float("inf")))
    return tl.min(least)


@jit
def measure(data, size, cutoff, top, scale, block: tl.constexpr):
    """How many logits are above the cutoff, how many equal it, and what those above weigh."""
    above = tl.zeros((block,), tl.float32)
    ties = tl.zeros((block,), tl.float32)
    mass = tl.zeros((block,), tl.float32)
    for start in range(0, size, block):
        logit = load_logits(data, size, start, block)
        above += (logit > cutoff).to(tl.float32)
        ties += (logit == cutoff).to(tl.float32)
        mass += tl.where(logit > cutoff, tl.exp2((logit - top) * scale), 0.0)
    return tl.sum(above), tl.sum(ties), tl.sum(mass)


@jit
def nth_tie(data, size, cutoff, n, block: tl.constexpr):
    """The place of the n-th logit that is the cutoff."""
    seen = 0
    last = size + tl.zeros((block,), tl.int32)
    for start in range(0, size, block):
        tie = (load_logits(data, size, start, block) == cutoff).to(tl.int32)
        rank = seen + tl.cumsum(tie, 0)
        place = start + tl.arange(0, block)
        last = tl.minimum(last, tl.where((tie == 1) & (rank == n.to(tl.int32)), place, size))
        seen += tl.sum(tie)
    return tl.min(last)
