"""A long sequence's decode attention in splits: what its programs exchange, and their merging."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.kernels.runtime import jit, tl, triton
from quire.kernels.tuning import DecodeTuning
from quire.kv.layer import LayerKV

MAX_SPLITS = 64  # as many partial results are merged
FEW_SPLITS = 16  # fewer were never faster


@jit
def _some_splits(
    parts,
    stats,
    begin,
    num_splits,
    PADDED: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Return parts [CHUNK, PADDED, HEAD_SIZE] and maxima [CHUNK, PADDED] from split `begin` on.

    Behind the last split they are 0 and -inf.
    """
    some = begin + tl.arange(0, CHUNK)
    there = some < num_splits
    head = tl.arange(0, PADDED)[None, :]
    inside = tl.arange(0, PADDED)[:, None] * HEAD_SIZE + tl.arange(0, HEAD_SIZE)[None, :]
    part = tl.load(
        parts + some[:, None, None] * PADDED * HEAD_SIZE + inside[None, :, :],
        mask=there[:, None, None],
        other=0.0,
        cache_modifier=".cg",
    )
    top = tl.load(
        stats + some[:, None] * 2 * PADDED + head,
        mask=there[:, None],
        other=float("-inf"),
        cache_modifier=".cg",
    )
    return part, top


@jit
def merge_splits(
    parts,  # float32 [splits, PADDED, HEAD_SIZE]
    stats,  # float32 [splits, 2, PADDED]
    num_splits,
    PADDED: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    MOST: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Join the softmaxes of splits: each is weighted by its share of the whole sum."""
    # First of all, so that these loads are under way while the maxima arrive.
    part, top = _some_splits(parts, stats, 0, num_splits, PADDED, HEAD_SIZE, CHUNK)
    head = tl.arange(0, PADDED)[None, :]
    every = tl.arange(0, MOST)[:, None]
    stat = stats + every * 2 * PADDED + head
    maxima = tl.load(stat, mask=every < num_splits, other=float("-inf"), cache_modifier=".cg")
    totals = tl.load(stat + PADDED, mask=every < num_splits, other=0.0, cache_modifier=".cg")
    maximum = tl.max(maxima, 0)
    total = tl.sum(totals * tl.exp2(maxima - maximum[None, :]), 0)
    merged = tl.sum(part * tl.exp2(top - maximum[None, :])[:, :, None], 0)
    for begin in range(CHUNK, num_splits, CHUNK):
        part, top = _some_splits(parts, stats, begin, num_splits, PADDED, HEAD_SIZE, CHUNK)
        merged += tl.sum(part * tl.exp2(top - maximum[None, :])[:, :, None], 0)
    return merged / total[:, None]


@dataclass(frozen=True)
class DecodeScratch:
    """What the programs of one sequence exchange; the layers of a step use it in turn."""

    partials: Tensor
    sums: Tensor
    arrivals: Tensor
    splits: int

    @classmethod
    def allocate(
        cls,
        items: int,
        tokens: int,
        query: Tensor,
        kv: LayerKV,
        tuning: DecodeTuning,
        longest: int,
    ) -> DecodeScratch:
        """Choose the number of splits for `items` sequences of `tokens` new tokens each.

        It depends on sizes alone, never on lengths, so that a captured launch fits them all.
        """
        num_kv_heads, head_size = kv.key.shape[1], kv.key.shape[3]
        units = items * num_kv_heads
        # Reading takes keys / splits, merging splits: the sum is least at a root. Measured, 16
        # were best up to 2,000 keys, 32 at 8,000 and 64 at 32,000.
        worth = min(max(math.isqrt(longest // 8), FEW_SPLITS), MAX_SPLITS)
        splits = max(min(tuning.programs // units, longest // tuning.min_keys, worth), 1)
        padded = triton.next_power_of_2(tokens * query.shape[1] // num_kv_heads)
        return cls(
            partials=query.new_empty(units * splits * padded * head_size, dtype=torch.float32),
            sums=query.new_empty(units * splits * 2 * padded, dtype=torch.float32),
            arrivals=query.new_zeros(units, dtype=torch.int32),
            splits=splits,
        )
