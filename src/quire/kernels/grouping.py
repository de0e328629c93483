"""Pairs of token and expert, put in order of the slot that holds the expert's weights."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from quire.kernels.runtime import jit, serves, starts_early, tl

AT_ONCE = 2048  # pairs that a program looks at in one go: those of 256 tokens with 8 experts


def group_pairs(ids: Tensor, slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Return the pairs in order of their slots, and where the pairs of each slot begin.

    Pair t · k + j is the j-th expert of token t. `order[starts[s] : starts[s + 1]]` are the
    pairs of slot s, rising; what stands behind `starts[num_slots]` has no meaning.

    Args:
        ids: int32 [T, k], the experts of each token, as `choose_experts` gives them.
        slots: int32 [E], the slot of each expert; `num_slots` where it has none.
        num_slots: S.

    Returns:
        order int32 [T · k] and starts int32 [S + 1].
    """
    if serves(ids):
        return group_pairs_triton(ids, slots, num_slots)
    return group_pairs_torch(ids, slots, num_slots)


def group_pairs_torch(ids: Tensor, slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """`group_pairs` in torch: a stable sort."""
    slot = slots[ids.flatten()]
    starts = torch.bincount(slot, minlength=num_slots + 1).cumsum(0).roll(1)
    starts[0] = 0  # what was rolled here is the number of all pairs
    return slot.argsort(stable=True).int(), starts.int()


def group_pairs_triton(ids: Tensor, slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """`group_pairs` in one kernel; ids are contiguous."""
    num_pairs = ids.numel()
    order, starts = torch.empty_like(ids).flatten(), slots.new_empty(num_slots + 1)
    early = starts_early(ids)
    _group_kernel[(num_slots + 1,)](
        ids,
        slots,
        order,
        starts,
        num_pairs,
        block=AT_ONCE,
        early=early,
        num_warps=8,
        launch_pdl=early,
    )
    return order, starts


@partial(jit, any_number=("num_pairs",))
def _group_kernel(ids, slots, order, starts, num_pairs, block: tl.constexpr, early: tl.constexpr):
    """One program a slot, and one for the end: each looks at every pair and places its own.

    All of them read the same few kilobytes, and no pair's place depends on who came first.
    """
    slot = tl.program_id(0)
    column = tl.arange(0, block)
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    before = tl.zeros((block,), tl.int32)  # summed once: a sum makes all warps wait
    for start in range(0, num_pairs, block):
        inside = start + column < num_pairs
        of = tl.load(slots + tl.load(ids + start + column, inside, other=0))
        before += (inside & (of < slot)).to(tl.int32)
    begin = tl.sum(before)
    tl.store(starts + slot, begin)
    if slot < tl.num_programs(0) - 1:
        for start in range(0, num_pairs, block):
            inside = start + column < num_pairs
            of = tl.load(slots + tl.load(ids + start + column, inside, other=0))
            own = (inside & (of == slot)).to(tl.int32)
            place = begin + tl.cumsum(own) - 1
            tl.store(order + place, start + column, own > 0)
            begin += tl.sum(own)
