"""Which tokens stay under top-k, top-p and min-p: in torch with a sort, in Triton without.

All three keep the tokens from some logit upward. The kernel finds that logit by bisection
(`quire.kernels.search`) over a short list of candidates (`quire.kernels.candidates`), or over the
row where a list would be long: sorting 151,936 logits would cost more than a small model's layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quire.kernels.candidates import (
    LISTS,
    Candidates,
    ListTuning,
    find_groups,
    is_cut,
)
from quire.kernels.listing import list_candidates, mass_of_groups
from quire.kernels.runtime import jit, starts_early, tl, triton
from quire.kernels.search import cut


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


@dataclass(frozen=True)
class SearchTuning:
    """How a program makes and searches a list.

    Which tokens stay depends on it where a sum meets top-p to its last bits, and nowhere else.
    """

    block: int = 1024  # groups or candidates that it looks at in a turn
    gather_block: int = 2048  # logits of the groups that it looks into
    num_warps: int = 8


SEARCH = SearchTuning()


@dataclass(frozen=True)
class Cutoffs:
    """What stays of each row: a token above the cutoff, or at it with an id up to the last."""

    logits: Tensor  # float32 [R], -inf where all stay
    last_ties: Tensor  # int32 [R]
    candidates: Candidates  # where all that stays is listed


def row_cutoffs(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    lists: ListTuning = LISTS,
    search: SearchTuning = SEARCH,
) -> Cutoffs:
    """Return each row's smallest logit that stays, and the last token that stays with it.

    The same tokens stay as under `apply_min_p` and then `apply_top_k_top_p`, which take logits
    that are divided by the temperature. Arguments as those of `quire.kernels.sampling.sample`.
    """
    num_rows, vocab_size = logits.shape
    filters = temperature, top_k, top_p, min_p
    groups = find_groups(logits, *filters, lists)
    candidates = Candidates.allocate(logits, lists)
    cutoffs = Cutoffs(
        temperature.new_empty(num_rows), logits.new_empty(num_rows, dtype=torch.int32), candidates
    )
    num_parts = groups.tops.shape[1]
    early = starts_early(logits)
    _list_kernel[(num_rows,)](
        logits,
        logits.stride(0),
        *filters,
        groups.maxima,
        groups.tops,
        groups.masses,
        groups.chosen,
        candidates.logits,
        candidates.token_ids,
        candidates.counts,
        cutoffs.logits,
        cutoffs.last_ties,
        vocab_size=vocab_size,
        num_groups=groups.maxima.shape[1],
        group=lists.group,
        num_parts=num_parts,
        padded_parts=triton.next_power_of_2(num_parts),
        few=lists.few,
        most=lists.most,
        capacity=candidates.capacity,
        block=search.block,
        gather_block=search.gather_block,
        early=early,
        num_warps=search.num_warps,
        launch_pdl=early,
    )
    block = min(triton.next_power_of_2(vocab_size), 8192)
    _cutoff_kernel[(num_rows,)](
        logits,
        logits.stride(0),
        *filters,
        groups.tops,
        candidates.counts,
        cutoffs.logits,
        cutoffs.last_ties,
        vocab_size=vocab_size,
        num_parts=num_parts,
        padded_parts=triton.next_power_of_2(num_parts),
        block=block,
        early=early,
        num_warps=max(block // 512, 1),
        launch_pdl=early,
    )
    return cutoffs


_A_NUMBER_A_ROW = ("temperatures", "top_ks", "top_ps", "min_ps", "tops", "counts")


@partial(jit, any_alignment=_A_NUMBER_A_ROW)
def _list_kernel(
    logits,
    stride,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    maxima,
    tops,
    masses,
    chosen,
    values,
    token_ids,
    counts,
    cutoffs,
    last_ties,
    vocab_size: tl.constexpr,
    num_groups: tl.constexpr,
    group: tl.constexpr,
    num_parts: tl.constexpr,
    padded_parts: tl.constexpr,
    few: tl.constexpr,
    most: tl.constexpr,
    capacity: tl.constexpr,
    block: tl.constexpr,
    gather_block: tl.constexpr,
    early: tl.constexpr,
):
    """One program a row: it lists candidates and cuts off the list; no list, no cutoff."""
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
    count = 0
    if is_cut(temperature, top_k, top_p, min_p):
        top = _top_of_row(tops + index * num_parts, num_parts, padded_parts)
        if tl.abs(top) < float("inf"):  # else the row holds no distribution
            temperature = tl.maximum(temperature, 1e-30)
            scale = 1.4426950408889634 / temperature  # exp2 is what the hardware has
            floor = top + tl.log(min_p) * temperature
            maxima += index * num_groups
            tops += index * num_parts
            masses += index * num_groups
            total = 0.0
            if (top_k <= 0) & (min_p <= 0):
                total = mass_of_groups(
                    maxima, tops, masses, floor, top, scale, num_groups, num_parts, block
                )
            values += index.to(tl.int64) * capacity
            token_ids += index.to(tl.int64) * capacity
            count = list_candidates(
                logits + index.to(tl.int64) * stride, maxima, tops, masses,
                chosen + index * num_groups, values, token_ids, floor, top, scale, top_k, top_p,
                total, vocab_size, num_groups, group, num_parts, few, most, capacity, block,
                gather_block,
            )  # fmt: skip
            if count > 0:
                cutoff, last = cut(values, count, floor, top, scale, top_k, top_p, total, block)
                if last < count:
                    last_tie = tl.load(token_ids + last)
    tl.store(counts + index, count)
    tl.store(cutoffs + index, cutoff)
    tl.store(last_ties + index, last_tie)


@partial(jit, any_alignment=(*_A_NUMBER_A_ROW, "cutoffs", "last_ties"))
def _cutoff_kernel(
    logits,
    stride,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    tops,
    counts,
    cutoffs,
    last_ties,
    vocab_size: tl.constexpr,
    num_parts: tl.constexpr,
    padded_parts: tl.constexpr,
    block: tl.constexpr,
    early: tl.constexpr,
):
    """One program a row: it cuts off the row itself, if that has no list."""
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    index = tl.program_id(0)
    temperature = tl.load(temperatures + index)
    top_k = tl.load(top_ks + index).to(tl.float32)
    top_p = tl.load(top_ps + index)
    min_p = tl.load(min_ps + index)
    if is_cut(temperature, top_k, top_p, min_p) & (tl.load(counts + index) == 0):
        top = _top_of_row(tops + index * num_parts, num_parts, padded_parts)
        if tl.abs(top) < float("inf"):
            temperature = tl.maximum(temperature, 1e-30)
            scale = 1.4426950408889634 / temperature
            floor = top + tl.log(min_p) * temperature
            row = logits + index.to(tl.int64) * stride
            cutoff, last_tie = cut(row, vocab_size, floor, top, scale, top_k, top_p, 0.0, block)
            tl.store(cutoffs + index, cutoff)
            tl.store(last_ties + index, last_tie)


@jit
def _top_of_row(tops, num_parts: tl.constexpr, padded_parts: tl.constexpr):
    part = tl.arange(0, padded_parts)
    return tl.max(tl.load(tops + part, part < num_parts, other=-float("inf")))
