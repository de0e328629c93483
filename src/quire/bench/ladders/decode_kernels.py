"""The kernels of the decode ladder, each with one idea more: see `quire.bench.ladders.decode`."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.attention.triton_backend import TritonMetadata
from quire.kernels.paged_decode import LOG2_E
from quire.kernels.runtime import jit, tl, triton
from quire.kv.layer import LayerKV

TILE = 64  # keys that a program handles at once, of four blocks
ROWS = 16  # the fewest rows of a matrix product


@dataclass(frozen=True)
class DecodeStep:
    """One new token a sequence, and their keys and values in shuffled blocks."""

    query: Tensor  # [batch, num_heads, head_size]
    kv: LayerKV
    table: Tensor  # int32 [batch, blocks]
    length: int
    metadata: TritonMetadata

    @property
    def scale(self) -> float:
        """Of the scores."""
        return float(self.query.shape[2] ** -0.5)

    def gathered(self) -> tuple[Tensor, Tensor]:
        """Return keys and values in order, [batch, num_kv_heads, length, head_size]."""
        key, value = (
            each[self.table.long()].transpose(1, 2).flatten(2, 3)[:, :, : self.length]
            for each in (self.kv.key, self.kv.value)
        )
        return key, value


def by_query_head(step: DecodeStep) -> Tensor:
    """One program a sequence and query head: the four of a group read the same keys."""
    batch, num_heads, head_size = step.query.shape
    out = torch.empty_like(step.query)
    _query_head_kernel[(num_heads, batch)](
        step.query,
        step.kv.key,
        step.kv.value,
        step.table,
        out,
        step.length,
        step.scale * LOG2_E,
        *step.kv.key.stride()[:3],
        blocks=step.table.shape[1],
        group=num_heads // step.kv.key.shape[1],
        head_size=head_size,
        page=step.kv.key.shape[2],
        tile=TILE,
        num_warps=4,
    )
    return out


def by_kv_head(step: DecodeStep, splits: int) -> Tensor:
    """One program a sequence, KV head and share of its keys; a second kernel merges."""
    batch, num_heads, head_size = step.query.shape
    num_kv_heads, page = step.kv.key.shape[1:3]
    out, device = torch.empty_like(step.query), step.query.device
    parts = torch.empty(splits, batch, num_heads, head_size, device=device, dtype=torch.float32)
    stats = torch.empty(2, splits, batch, num_heads, device=device, dtype=torch.float32)
    share = triton.cdiv(step.length, splits * TILE) * TILE
    _kv_head_kernel[(num_kv_heads, batch, splits)](
        step.query,
        step.kv.key,
        step.kv.value,
        step.table,
        parts,
        stats,
        step.length,
        step.scale * LOG2_E,
        *step.kv.key.stride()[:3],
        blocks=step.table.shape[1],
        share=share,
        group=num_heads // num_kv_heads,
        rows=max(ROWS, triton.next_power_of_2(num_heads // num_kv_heads)),
        head_size=head_size,
        page=page,
        tile=TILE,
        num_warps=4,
        num_stages=3,
    )
    _merge_kernel[(batch * num_heads,)](
        parts,
        stats,
        out,
        splits=splits,
        block=triton.next_power_of_2(splits),
        head_size=head_size,
        num_warps=4,
    )
    return out


@jit
def _query_head_kernel(
    query,  # [batch, num_heads, head_size]
    key,  # [num_blocks, num_kv_heads, page, head_size], strided
    value,
    table,  # int32 [batch, blocks]
    out,  # the shape of query
    length,
    scale,  # in units of log 2
    block_stride,
    head_stride,
    offset_stride,
    blocks: tl.constexpr,
    group: tl.constexpr,
    head_size: tl.constexpr,
    page: tl.constexpr,
    tile: tl.constexpr,
):
    """One program one query head, whose products are sums over a tile of keys."""
    head, sequence = tl.program_id(0), tl.program_id(1)
    size = tl.arange(0, head_size)
    own = (sequence * tl.num_programs(0) + head) * head_size + size
    q = tl.load(query + own).to(tl.float32)
    inside = head // group * head_stride + size[None, :]
    maximum = tl.full((), -float("inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    mixed = tl.zeros((head_size,), tl.float32)
    for start in range(0, length, tile):
        position = start + tl.arange(0, tile)
        there = position < length
        block = tl.load(table + sequence * blocks + position // page, there, other=0)
        place = block.to(tl.int64) * block_stride + position % page * offset_stride
        k = tl.load(key + place[:, None] + inside, there[:, None], other=0.0).to(tl.float32)
        scores = tl.where(there, tl.sum(k * q[None, :], 1) * scale, -float("inf"))
        higher = tl.maximum(maximum, tl.max(scores))
        shrink = tl.exp2(maximum - higher)
        weights = tl.exp2(scores - higher)
        total = total * shrink + tl.sum(weights)
        v = tl.load(value + place[:, None] + inside, there[:, None], other=0.0).to(tl.float32)
        mixed = mixed * shrink + tl.sum(weights[:, None] * v, 0)
        maximum = higher
    tl.store(out + own, (mixed / total).to(out.dtype.element_ty))


@jit
def _kv_head_kernel(
    query,
    key,
    value,
    table,
    parts,  # float32 [splits, batch, num_heads, head_size]
    stats,  # float32 [2, splits, batch, num_heads]: maximum and sum
    length,
    scale,
    block_stride,
    head_stride,
    offset_stride,
    blocks: tl.constexpr,
    share: tl.constexpr,  # keys of a program
    group: tl.constexpr,
    rows: tl.constexpr,
    head_size: tl.constexpr,
    page: tl.constexpr,
    tile: tl.constexpr,
):
    """One program the heads of a group, as rows of one matrix product, over a share of the keys.

    A share that begins behind the last key has the maximum -inf and the sum 0.
    """
    kv_head, sequence, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row, size = tl.arange(0, rows), tl.arange(0, head_size)
    unit = (sequence * tl.num_programs(0) + kv_head) * group + row
    used = row < group
    q = tl.load(query + unit[:, None] * head_size + size[None, :], used[:, None], other=0.0)
    inside = kv_head * head_stride + size[None, :]
    maximum = tl.full((rows,), -float("inf"), tl.float32)
    total = tl.zeros((rows,), tl.float32)
    mixed = tl.zeros((rows, head_size), tl.float32)
    begin = split * share
    for start in range(begin, tl.minimum(begin + share, length), tile):
        position = start + tl.arange(0, tile)
        there = position < length
        block = tl.load(table + sequence * blocks + position // page, there, other=0)
        place = block.to(tl.int64) * block_stride + position % page * offset_stride
        k = tl.load(key + place[:, None] + inside, there[:, None], other=0.0)
        scores = tl.dot(q, k.T, input_precision="ieee") * scale
        scores = tl.where(there[None, :], scores, -float("inf"))
        higher = tl.maximum(maximum, tl.max(scores, 1))  # finite: a tile has at least one key
        shrink = tl.exp2(maximum - higher)
        weights = tl.exp2(scores - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        v = tl.load(value + place[:, None] + inside, there[:, None], other=0.0)
        mixed = tl.dot(weights.to(v.dtype), v, mixed * shrink[:, None], input_precision="ieee")
        maximum = higher
    units = tl.num_programs(1) * tl.num_programs(0) * group
    place = split * units + unit
    tl.store(parts + place.to(tl.int64)[:, None] * head_size + size[None, :], mixed, used[:, None])
    tl.store(stats + place, maximum, used)
    tl.store(stats + tl.num_programs(2) * units + place, total, used)


@jit
def _merge_kernel(
    parts, stats, out, splits: tl.constexpr, block: tl.constexpr, head_size: tl.constexpr
):
    """One program one query head: each share counts by its part of the whole sum."""
    unit, units = tl.program_id(0), tl.num_programs(0)
    split, size = tl.arange(0, block), tl.arange(0, head_size)
    there = split < splits
    place = split * units + unit
    maxima = tl.load(stats + place, there, other=-float("inf"))
    totals = tl.load(stats + splits * units + place, there, other=0.0)
    factor = tl.exp2(maxima - tl.max(maxima))  # 0 for a share without a key
    place = place.to(tl.int64)[:, None] * head_size + size[None, :]
    mixed = tl.load(parts + place, there[:, None], other=0.0)
    result = tl.sum(mixed * factor[:, None], 0) / tl.sum(totals * factor)
    tl.store(out + unit * head_size + size, result.to(out.dtype.element_ty))
