"""The ladder of a product with one row: a weight [N, K] is read once, and that is all there is.

The kernel of the first three steps is one: what changes is how many bytes a thread asks for at
once, and how many programs share a row.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.bench.ladders.ladder import Ladder, add_parts, draw, sets_of
from quire.kernels.linear import few_rows_linear, tile_for
from quire.kernels.runtime import jit, tl, triton

SHAPE = (14336, 4096)  # N and K of the 8B model's gate projection


@dataclass(frozen=True)
class Product:
    """One row x [1, K] and a weight [N, K]."""

    x: Tensor
    weight: Tensor


def ladder(
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    shape: tuple[int, int] = SHAPE,
    name: str = "gemv",
) -> Ladder[Product]:
    """x · weightᵀ for one row."""
    size, depth = shape
    num_bytes = size * depth * dtype.itemsize
    x = draw(0, 1, depth, device=device, dtype=dtype)
    inputs = [
        Product(x, draw(i, size, depth, device=device, dtype=dtype) / depth**0.5)
        for i in range(1, sets_of(num_bytes, device) + 1)
    ]
    return Ladder(
        name,
        inputs,
        {
            "small-loads": small_loads,
            "wide-loads": wide_loads,
            "split-columns": split_columns,
            "engine": engine,
        },
        {"torch F.linear": lambda product: F.linear(product.x, product.weight)},
        lambda product: product.x.double() @ product.weight.double().T,
        num_bytes + (size + depth) * dtype.itemsize,
        2.0 * size * depth,
        parameters={"outputs": float(size), "depth": float(depth)},
    )


def small_loads(product: Product) -> Tensor:
    """A program has four outputs; a thread loads one weight, two bytes, at a time."""
    return _multiply(product, block_outputs=4, block_depth=32, split=1)


def wide_loads(product: Product) -> Tensor:
    """Of the same four outputs a thread loads eight neighbouring weights, 16 bytes, at a time."""
    return _multiply(product, block_outputs=4, block_depth=256, split=1)


def split_columns(product: Product) -> Tensor:
    """Four programs share the columns of an output; a second kernel adds their parts."""
    return _multiply(product, block_outputs=4, block_depth=256, split=4)


def engine(product: Product) -> Tensor:
    """The engine's: all loads of a program are in flight before the first is used."""
    return few_rows_linear(product.x, product.weight, None, tile_for(product.weight))


def _multiply(product: Product, *, block_outputs: int, block_depth: int, split: int) -> Tensor:
    size, depth = product.weight.shape
    share = triton.cdiv(depth, split * block_depth) * block_depth
    kind = torch.float32 if split > 1 else product.x.dtype
    parts = torch.empty(split, 1, size, device=product.x.device, dtype=kind)
    _gemv_kernel[(triton.cdiv(size, block_outputs), split)](
        product.x,
        product.weight,
        parts,
        size,
        depth=depth,
        share=share,
        block_outputs=block_outputs,
        block_depth=block_depth,
        num_warps=4,
    )
    return parts[0] if split == 1 else add_parts(parts, product.x.dtype)


@jit
def _gemv_kernel(
    x,  # [1, depth]
    weight,  # [size, depth]
    out,  # [programs that share a row, 1, size]
    size,
    depth: tl.constexpr,
    share: tl.constexpr,  # columns of a program
    block_outputs: tl.constexpr,
    block_depth: tl.constexpr,
):
    """One program `block_outputs` rows of the weight, and of their columns a share."""
    output = tl.program_id(0) * block_outputs + tl.arange(0, block_outputs)
    needed = output < size
    row = weight + output.to(tl.int64)[:, None] * depth
    total = tl.zeros((block_outputs, block_depth), tl.float32)
    begin = tl.program_id(1) * share
    for start in range(begin, begin + share, block_depth):
        k = start + tl.arange(0, block_depth)
        tile = tl.load(row + k[None, :], needed[:, None] & (k < depth)[None, :], other=0.0)
        values = tl.load(x + k, k < depth, other=0.0)
        total += tile.to(tl.float32) * values.to(tl.float32)[None, :]
    result = tl.sum(total, axis=1)
    place = out + tl.program_id(1) * size + output
    tl.store(place, result.to(out.dtype.element_ty), needed)
