"""Choosing a token's experts: the k largest logits, and the softmax of them as weights.

Where experts have copies, the choice may go on to the copy that serves each pair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels.routes import CopyTables, spread_pairs
from quire.kernels.runtime import jit, serves, starts_early, tl, triton


def choose_experts(
    logits: Tensor, top_k: int, renormalize: bool, tables: CopyTables | None = None
) -> tuple[Tensor, Tensor]:
    """Return the experts of each token, int32 [T, k], and their weights, float32 [T, k].

    The weights are softmax(logits) in float32, those of the k largest logits, largest first;
    of equal logits the expert of the lower number counts as larger.

    Args:
        logits: [T, E] of the router.
        top_k: k, at most E.
        renormalize: whether a token's weights are scaled to a sum of 1.
        tables: of copies; each expert is then given as the slot that
            `quire.kernels.routes.spread_pairs` gives for it, row 0 being the step's first.
    """
    if serves(logits):
        return choose_experts_triton(logits, top_k, renormalize, tables)
    return choose_experts_torch(logits, top_k, renormalize, tables)


def choose_experts_torch(
    logits: Tensor, top_k: int, renormalize: bool, tables: CopyTables | None = None
) -> tuple[Tensor, Tensor]:
    """`choose_experts` in torch. Its own `topk` leaves open which of equal logits it takes."""
    ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = logits.softmax(-1, dtype=torch.float32).gather(-1, ids)
    if renormalize:
        weights /= weights.sum(-1, keepdim=True)
    if tables is not None:
        return spread_pairs(ids, tables), weights
    return ids.int(), weights


def choose_experts_triton(
    logits: Tensor, top_k: int, renormalize: bool, tables: CopyTables | None = None
) -> tuple[Tensor, Tensor]:
    """`choose_experts` in one kernel; logits and tables are contiguous."""
    num_tokens, num_experts = logits.shape
    ids = torch.empty(num_tokens, top_k, dtype=torch.int32, device=logits.device)
    weights = torch.empty(num_tokens, top_k, dtype=torch.float32, device=logits.device)
    early = starts_early(logits)
    _choose_kernel[(num_tokens,)](
        logits,
        ids,
        weights,
        None if tables is None else tables.copies,
        None if tables is None else tables.places,
        most_copies=1 if tables is None else tables.places.shape[1],
        num_experts=num_experts,
        block=triton.next_power_of_2(num_experts),
        top_k=top_k,
        padded_k=triton.next_power_of_2(top_k),
        renormalize=renormalize,
        early=early,
        num_warps=1,
        launch_pdl=early,
    )
    return ids, weights


@jit
def _choose_kernel(
    logits,
    ids,
    weights,
    copies,
    places,
    most_copies: tl.constexpr,
    num_experts: tl.constexpr,
    block: tl.constexpr,
    top_k: tl.constexpr,
    padded_k: tl.constexpr,
    renormalize: tl.constexpr,
    early: tl.constexpr,
):
    """One program a token: k rounds of taking the largest that is left.

    Where there are `copies`, what is written for an expert is the slot of its copy for this row.
    """
    token = tl.program_id(0).to(tl.int64)
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    key, logit = ranked_keys(logits, token, num_experts, block)
    place = tl.arange(0, padded_k)
    best_keys = tl.zeros((padded_k,), key.dtype)
    for j in tl.static_range(top_k):
        best = tl.max(key)
        best_keys = tl.where(place == j, best, best_keys)
        key = without_key(key, best)
    largest = largest_logit(logit)
    value = tl.exp(logit_of(best_keys, logits) - largest) / tl.sum(tl.exp(logit - largest))
    value = tl.where(place < top_k, value, 0.0)
    if renormalize:
        value = value / tl.sum(value)
    stored = place < top_k
    chosen = expert_of(best_keys, logits)
    if copies is not None:
        copy = tl.program_id(0) % tl.load(copies + chosen, stored, other=1)
        chosen = tl.load(places + chosen * most_copies + copy, stored)
    tl.store(ids + token * top_k + place, chosen, stored)
    tl.store(weights + token * top_k + place, value, stored)


@jit
def ranked_keys(logits, token, num_experts: tl.constexpr, block: tl.constexpr):
    """Return the keys [block] of a token's experts, and its logits as float32 [block].

    A key is a logit's bits, made to rise with it, above a number that falls with the expert's, so
    that the largest key is the largest logit's, and of equal logits that of the lower expert. A
    logit that is NaN is chosen last and makes every weight NaN, as it does in torch. Logits are
    read past the first-level cache, which may hold an earlier layer's.
    """
    expert = tl.arange(0, block)
    inside = expert < num_experts
    place = logits + token * num_experts + expert
    logit = tl.load(place, inside, other=float("-inf"), cache_modifier=".cg").to(tl.float32)
    dtype: tl.constexpr = logits.dtype.element_ty
    width: tl.constexpr = dtype.primitive_bitwidth  # of a logit; a key has twice as many bits
    bits: tl.constexpr = tl.int16 if width == 16 else tl.int32
    keys: tl.constexpr = tl.int32 if width == 16 else tl.int64
    signless: tl.constexpr = 2 ** (width - 1) - 1
    number = tl.where(logit == logit, logit, float("-inf")) + 0.0  # 0 for -0, which equals it
    rising = number.to(dtype).to(bits, bitcast=True)
    rising = tl.where(rising < 0, rising ^ signless, rising).to(keys)
    key = (rising << width) | (signless - expert).to(keys)
    return tl.where(inside, key, -(2 ** (2 * width - 1))), logit


@jit
def without_key(key, taken):
    """Return the keys with the least possible one in place of one that was taken."""
    least: tl.constexpr = -(2 ** (key.dtype.primitive_bitwidth - 1))
    return tl.where(key == taken, least, key)


@jit
def largest_logit(logit):
    """Return the largest of a token's logits that is a number."""
    return tl.max(tl.where(logit == logit, logit, float("-inf")))


@jit
def expert_of(key, logits):
    """Return the number of the expert that a key of `logits` belongs to, int32."""
    width: tl.constexpr = logits.dtype.element_ty.primitive_bitwidth
    return (2 ** (width - 1) - 1 - (key & (2**width - 1))).to(tl.int32)


@jit
def logit_of(key, logits):
    """Return the logit of a key of `logits`, float32."""
    dtype: tl.constexpr = logits.dtype.element_ty
    width: tl.constexpr = dtype.primitive_bitwidth
    bits: tl.constexpr = tl.int16 if width == 16 else tl.int32
    signless: tl.constexpr = 2 ** (width - 1) - 1
    rising = (key >> width).to(bits)
    rising = tl.where(rising < 0, rising ^ signless, rising)
    return rising.to(dtype, bitcast=True).to(tl.float32)
