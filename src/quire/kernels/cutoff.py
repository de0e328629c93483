"""Which tokens stay under top-k, top-p and min-p: in torch with a sort, in Triton without.

All three keep the tokens from some logit upward. The kernel finds that logit by bisection over
the row: sorting 151,936 logits would cost more than a small model's layers.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from quire.kernels.runtime import jit, starts_early, tl, triton


# docs: truncation begin
def apply_min_p(logits: Tensor, min_p: Tensor) -> Tensor:
    """Keep tokens with p ≥ min_p · max p; in logits, a distance of log(min_p) from the top."""
    threshold = logits.amax(dim=-1, keepdim=True) + torch.log(min_p)[:, None]
    return logits.masked_fill(logits < threshold, -torch.inf)


def apply_top_k_top_p(logits: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> Tensor:
    """Keep each row's `top_k` largest logits, then the smallest set that holds `top_p`.

    One sort serves both. Ties at the edge of the top k are broken by token id, so that
    exactly k tokens stay. A row's own neutral value (0 or 1) keeps everything.
    """
    ordered, token_ids = logits.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k is not None:
        rank = torch.arange(ordered.shape[-1], device=logits.device)
        keep &= (rank < top_k[:, None]) | (top_k == 0)[:, None]
        ordered = ordered.masked_fill(~keep, -torch.inf)
    if top_p is not None:
        probabilities = ordered.softmax(dim=-1)
        # The mass before a token decides. The first always stays, even where a tiny
        # top_p is 0 in float32.
        mass_before = probabilities.cumsum(dim=-1) - probabilities
        keep &= (mass_before < top_p[:, None]) | (top_p >= 1)[:, None]
        keep[:, 0] = True
    keep_by_id = torch.zeros_like(keep).scatter_(-1, token_ids, keep)
    return logits.masked_fill(~keep_by_id, -torch.inf)


# docs: truncation end


def row_cutoffs(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each row's smallest logit that stays, and the last token that stays with it.

    The same tokens stay as under `apply_min_p` and then `apply_top_k_top_p`, which take logits
    that are divided by the temperature.

    A token stays if its logit is above the cutoff, float32 [R], or equals it and its id is at
    most `last_tie`, int32 [R]. Arguments as those of `quire.kernels.sampling.sample`.
    """
    num_rows, vocab_size = logits.shape
    cutoffs = temperature.new_empty(num_rows)
    last_ties = logits.new_empty(num_rows, dtype=torch.int32)
    block = min(triton.next_power_of_2(vocab_size), 8192)
    early = starts_early(logits)
    _cutoff_kernel[(num_rows,)](
        logits,
        logits.stride(0),
        temperature,
        top_k,
        top_p,
        min_p,
        cutoffs,
        last_ties,
        vocab_size=vocab_size,
        block=block,
        early=early,
        num_warps=max(block // 512, 1),
        launch_pdl=early,
    )
    return cutoffs, last_ties


@partial(jit, any_alignment=("temperatures", "top_ks", "top_ps", "min_ps"))
def _cutoff_kernel(
    logits,
    stride,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    cutoffs,
    last_ties,
    vocab_size: tl.constexpr,
    block: tl.constexpr,
    early: tl.constexpr,
):
    """One program a row: tokens above the cutoff stay, and those at it up to an id."""
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    index = tl.program_id(0)
    temperature = tl.load(temperatures + index)
    top_k = tl.load(top_ks + index).to(tl.float32)
    top_p = tl.load(top_ps + index)
    min_p = tl.load(min_ps + index)
    cutoff = -float("inf")
    last_tie = vocab_size
    if (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0)):
        row = logits + index.to(tl.int64) * stride
        temperature = tl.maximum(temperature, 1e-30)
        scale = 1.4426950408889634 / temperature  # exp2 is what the hardware has
        top = _largest(row, vocab_size, block)
        floor = top + tl.log(min_p) * temperature
        cutoff = _least_from(row, floor, vocab_size, block)
        if top_k > 0:
            cutoff = _lowest_kept(row, cutoff, top, top_k, top, 0.0, False, vocab_size, block)
        if (top_k > 0) | (top_p < 1):
            above, ties, mass = _measure(row, cutoff, top, scale, vocab_size, block)
            allowed = tl.where(top_k > 0, tl.minimum(top_k - above, ties), ties)
            if top_p < 1:
                target = top_p * (mass + allowed * tl.exp2((cutoff - top) * scale))
                edge = cutoff
                cutoff = _lowest_kept(row, cutoff, top, target, top, scale, True, vocab_size, block)
                above, ties, mass = _measure(row, cutoff, top, scale, vocab_size, block)
                wanted = tl.ceil((target - mass) / tl.exp2((cutoff - top) * scale))
                allowed = tl.where(cutoff == edge, allowed, ties)
                allowed = tl.minimum(allowed, tl.maximum(wanted, 1.0))
            if allowed < ties:
                last_tie = _nth_tie(row, cutoff, allowed, vocab_size, block)
    tl.store(cutoffs + index, cutoff)
    tl.store(last_ties + index, last_tie)


@jit
def _lowest_kept(
    row,
    low,
    high,
    target,
    top,
    scale,
    weighs: tl.constexpr,
    vocab_size: tl.constexpr,
    block: tl.constexpr,
):
    """The smallest logit in [low, high] whose betters amount to less than `target`.

    They are counted, or weighed with exp2((logit - top) · scale) each. Both ends are logits
    of the row: a round halves the interval and moves its end on to the next logit, so that
    the search ends after few rounds, exactly.
    """
    while low < high:
        pivot = low + (high - low) * 0.5
        pivot = tl.where(pivot > low, pivot, high)
        amount = tl.zeros((block,), tl.float32)
        least = tl.full((block,), float("inf"), tl.float32)
        most = tl.full((block,), -float("inf"), tl.float32)
        for start in range(0, vocab_size, block):
            logit = _load(row, start, vocab_size, block)
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
def _load(row, start, vocab_size: tl.constexpr, block: tl.constexpr):
    token = start + tl.arange(0, block)
    return tl.load(row + token, token < vocab_size, other=-float("inf")).to(tl.float32)


@jit
def _largest(row, vocab_size: tl.constexpr, block: tl.constexpr):
    best = tl.full((block,), -float("inf"), tl.float32)
    for start in range(0, vocab_size, block):
        best = tl.maximum(best, _load(row, start, vocab_size, block))
    return tl.max(best)


@jit
def _least_from(row, floor, vocab_size: tl.constexpr, block: tl.constexpr):
    """The smallest logit of at least `floor`; what is -inf does not count."""
    least = tl.full((block,), float("inf"), tl.float32)
    for start in range(0, vocab_size, block):
        logit = _load(row, start, vocab_size, block)
        counts = (logit >= floor) & (logit > -float("inf"))
        least = tl.minimum(least, tl.where(counts, logit, float("inf")))
    return tl.min(least)


@jit
def _measure(row, cutoff, top, scale, vocab_size: tl.constexpr, block: tl.constexpr):
    """How many logits are above the cutoff, how many equal it, and what those above weigh."""
    above = tl.zeros((block,), tl.float32)
    ties = tl.zeros((block,), tl.float32)
    mass = tl.zeros((block,), tl.float32)
    for start in range(0, vocab_size, block):
        logit = _load(row, start, vocab_size, block)
        above += (logit > cutoff).to(tl.float32)
        ties += (logit == cutoff).to(tl.float32)
        mass += tl.where(logit > cutoff, tl.exp2((logit - top) * scale), 0.0)
    return tl.sum(above), tl.sum(ties), tl.sum(mass)


@jit
def _nth_tie(row, cutoff, n, vocab_size: tl.constexpr, block: tl.constexpr):
    """The id of the n-th token whose logit is the cutoff."""
    seen = 0
    last = tl.full((block,), vocab_size, tl.int32)
    for start in range(0, vocab_size, block):
        tie = (_load(row, start, vocab_size, block) == cutoff).to(tl.int32)
        rank = seen + tl.cumsum(tie, 0)
        token = start + tl.arange(0, block)
        last = tl.minimum(last, tl.where((tie == 1) & (rank == n.to(tl.int32)), token, vocab_size))
        seen += tl.sum(tie)
    return tl.min(last)
