"""The first step of the prefill ladder: all scores in memory, three kernels and two round trips."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.kernels.runtime import jit, tl, triton
from quire.kernels.softmax import softmax_triton

BLOCK = 128  # queries, and keys, of a program


@dataclass(frozen=True)
class Prompts:
    """Queries, keys and values of prompts of one length, one behind the other."""

    query: Tensor  # [batch * length, num_heads, head_size]
    key: Tensor  # [batch * length, num_kv_heads, head_size]
    value: Tensor
    length: int

    def by_head(self) -> list[Tensor]:
        """Return query, key and value as views [batch, heads, length, head_size]."""
        return [
            each.unflatten(0, (-1, self.length)).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        ]


def scores_in_memory(prompts: Prompts) -> Tensor:
    """Three kernels: all scores to memory, softmax of each row, product with the values."""
    tokens, num_heads, head_size = prompts.query.shape
    num_kv_heads, length = prompts.key.shape[1], prompts.length
    count = tokens // length * num_heads
    scores = torch.empty(count, length, length, device=prompts.key.device, dtype=prompts.key.dtype)
    out = torch.empty_like(prompts.query)
    tiles = triton.cdiv(length, BLOCK)
    sizes = {"group": num_heads // num_kv_heads, "num_kv_heads": num_kv_heads}
    sizes |= {"head_size": head_size, "block": BLOCK, "num_warps": 8}
    grid = (tiles * tiles, count)
    _scores_kernel[grid](
        prompts.query, prompts.key, scores, length, head_size**-0.5, num_stages=1, **sizes
    )
    weights = softmax_triton(scores.view(-1, length))
    grid = (tiles, count)
    _values_kernel[grid](weights, prompts.value, out, length, depth=64, num_stages=4, **sizes)
    return out


@jit
def _scores_kernel(
    query,  # [batch * length, num_heads, head_size]
    key,  # [batch * length, num_kv_heads, head_size]
    scores,  # [batch * num_heads, length, length]
    length,
    scale,
    group: tl.constexpr,
    num_kv_heads: tl.constexpr,
    head_size: tl.constexpr,
    block: tl.constexpr,
):
    """One program a tile of one head's scores; what a query may not see is -inf."""
    across = tl.cdiv(length, block)
    row = tl.program_id(0) // across * block + tl.arange(0, block)
    column = tl.program_id(0) % across * block + tl.arange(0, block)
    item = tl.program_id(1).to(tl.int64)
    first, head = item // (group * num_kv_heads) * length, item % (group * num_kv_heads)
    size = tl.arange(0, head_size)
    place = ((first + row) * (group * num_kv_heads) + head)[:, None] * head_size + size[None, :]
    q = tl.load(query + place, (row < length)[:, None], other=0.0)
    place = ((first + column) * num_kv_heads + head // group)[None, :] * head_size + size[:, None]
    k = tl.load(key + place, (column < length)[None, :], other=0.0)
    found = tl.dot(q, k, input_precision="ieee") * scale
    found = tl.where(column[None, :] <= row[:, None], found, -float("inf"))
    # 4 · 32 · 4,096² is 2³¹ elements: 32 bits would not reach the last of them.
    place = (item * length + row)[:, None] * length + column[None, :]
    inside = (row < length)[:, None] & (column < length)[None, :]
    tl.store(scores + place, found.to(scores.dtype.element_ty), inside)


@jit
def _values_kernel(
    weights,  # [batch * num_heads, length, length]
    value,  # [batch * length, num_kv_heads, head_size]
    out,  # [batch * length, num_heads, head_size]
    length,
    depth: tl.constexpr,
    group: tl.constexpr,
    num_kv_heads: tl.constexpr,
    head_size: tl.constexpr,
    block: tl.constexpr,
):
    """One program the output of `block` queries of one head."""
    row = tl.program_id(0) * block + tl.arange(0, block)
    item = tl.program_id(1).to(tl.int64)
    first, head = item // (group * num_kv_heads) * length, item % (group * num_kv_heads)
    size = tl.arange(0, head_size)[None, :]
    total = tl.zeros((block, head_size), tl.float32)
    for start in range(0, length, depth):
        column = start + tl.arange(0, depth)
        inside = (row < length)[:, None] & (column < length)[None, :]
        place = (item * length + row)[:, None] * length + column[None, :]
        mine = tl.load(weights + place, inside, other=0.0)
        place = ((first + column) * num_kv_heads + head // group)[:, None] * head_size + size
        v = tl.load(value + place, (column < length)[:, None], other=0.0)
        total = tl.dot(mine, v, total, input_precision="ieee")
    place = ((first + row) * (group * num_kv_heads) + head)[:, None] * head_size + size
    tl.store(out + place, total.to(out.dtype.element_ty), (row < length)[:, None])
