"""The ladder of a large product, a [M, K] times weight [N, K] transposed: reuse is all.

The first three steps are one kernel: the order of its programs, then the size of its tiles,
then how many tiles are on their way while the matrix units work.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.bench.ladders.ladder import Ladder, add_parts, draw, sets_of
from quire.kernels.runtime import jit, tl, triton


@dataclass(frozen=True)
class Matrices:
    """a [M, K] and weight [N, K]."""

    a: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Tiling:
    """How a product is cut and in which order its tiles are computed."""

    rows: int
    outputs: int
    depth: int
    num_warps: int
    num_stages: int
    group: int  # rows of tiles that are computed together, column by column; 1: row by row
    split: int = 1  # programs that share the columns of a tile


ROW_ORDER = Tiling(64, 64, 64, 4, 1, 1)
GROUPED = replace(ROW_ORDER, group=8)
LARGE = Tiling(128, 256, 64, 8, 1, 8)
PIPELINED = replace(LARGE, num_stages=4)
FEW_ROWS = Tiling(64, 64, 128, 4, 4, 1)
SPLIT_K = replace(FEW_ROWS, split=4)


def ladder(
    device: torch.device, dtype: torch.dtype = torch.bfloat16, size: int = 4096
) -> Ladder[Matrices]:
    """A square product."""
    tilings = {
        "row-order": ROW_ORDER,
        "grouped-order": GROUPED,
        "large-tiles": LARGE,
        "pipelined": PIPELINED,
    }
    return ladder_of("matmul", device, dtype, (size, size, size), tilings)


def wide(
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    shape: tuple[int, int, int] = (4096, 65536, 4096),
) -> Ladder[Matrices]:
    """Many outputs, as of a head: a weight of 537 MB, which passes by once for each row of tiles.

    At 4096³ the whole weight, 34 MB, stays in an L2 cache of 60 MB, and no order can help.
    """
    tilings = {"row-order": replace(PIPELINED, group=1), "grouped-order": PIPELINED}
    return ladder_of("wide-matmul", device, dtype, shape, tilings)


def few_rows(
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    shape: tuple[int, int, int] = (64, 4096, 4096),
) -> Ladder[Matrices]:
    """64 rows, whose 64 tiles leave half of an H200's 132 multiprocessors without work."""
    return ladder_of("matmul-m64", device, dtype, shape, {"tiles": FEW_ROWS, "split-k": SPLIT_K})


def deep(
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    shape: tuple[int, int, int] = (64, 4096, 14336),
) -> Ladder[Matrices]:
    """64 rows and the 8B model's down projection: as few tiles, each of more than three times the
    columns, so that sharing them is worth a second kernel."""
    return ladder_of("deep-m64", device, dtype, shape, {"tiles": FEW_ROWS, "split-k": SPLIT_K})


def ladder_of(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    tilings: dict[str, Tiling],
) -> Ladder[Matrices]:
    rows, size, depth = shape
    num_bytes = (rows * depth + size * depth) * dtype.itemsize
    inputs = [
        Matrices(
            draw(2 * i, rows, depth, device=device, dtype=dtype),
            draw(2 * i + 1, size, depth, device=device, dtype=dtype) / depth**0.5,
        )
        for i in range(sets_of(num_bytes, device))
    ]
    return Ladder(
        name,
        inputs,
        {step: _step(tiling) for step, tiling in tilings.items()},
        {"torch F.linear": lambda pair: F.linear(pair.a, pair.weight)},
        lambda pair: pair.a.double() @ pair.weight.double().T,
        num_bytes + rows * size * dtype.itemsize,
        2.0 * rows * size * depth,
        beside_copy=rows < 256,
        parameters={"rows": float(rows), "outputs": float(size), "depth": float(depth)},
    )


def _step(tiling: Tiling) -> Callable[[Matrices], Tensor]:
    return lambda pair: matmul(pair.a, pair.weight, tiling)


def matmul(a: Tensor, weight: Tensor, tiling: Tiling) -> Tensor:
    """Return a · weightᵀ, [M, N]; a [M, K] and weight [N, K] contiguous."""
    (rows, depth), size = a.shape, weight.shape[0]
    kind = a.dtype if tiling.split == 1 else torch.float32
    out = torch.empty(tiling.split, rows, size, device=a.device, dtype=kind)
    tiles = triton.cdiv(rows, tiling.rows) * triton.cdiv(size, tiling.outputs)
    share = triton.cdiv(depth, tiling.split * tiling.depth) * tiling.depth
    _matmul_kernel[(tiles, tiling.split)](
        a,
        weight,
        out,
        rows,
        size,
        depth=depth,
        share=share,
        block_rows=tiling.rows,
        block_outputs=tiling.outputs,
        block_depth=tiling.depth,
        group=tiling.group,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    return out[0] if tiling.split == 1 else add_parts(out, a.dtype)


@jit
def _tile_of(program, down, across, group: tl.constexpr):
    """Return row and column of a program's tile: `group` rows of tiles, column by column.

    With a group of 1 that is row by row. Programs that run at the same time should share rows
    of `a` and of the weight, so that the second to ask finds them in the L2 cache.
    """
    first = program // (group * across) * group
    height = tl.minimum(down - first, group)
    inside = program % (group * across)
    return first + inside % height, inside // height


@jit
def _matmul_kernel(
    a,  # [num_rows, depth]
    weight,  # [size, depth]
    out,  # [programs that share a tile, num_rows, size]
    num_rows,
    size,
    depth: tl.constexpr,
    share: tl.constexpr,  # columns of a program
    block_rows: tl.constexpr,
    block_outputs: tl.constexpr,
    block_depth: tl.constexpr,
    group: tl.constexpr,
):
    """One program a tile of the output, and of the columns its share."""
    down, across = tl.cdiv(num_rows, block_rows), tl.cdiv(size, block_outputs)
    tile_row, tile_column = _tile_of(tl.program_id(0), down, across, group)
    row = tile_row * block_rows + tl.arange(0, block_rows)
    output = tile_column * block_outputs + tl.arange(0, block_outputs)
    # A row beyond the last is read as the last and not stored, so that loads need no mask for it.
    rows_at = a + tl.minimum(row, num_rows - 1).to(tl.int64)[:, None] * depth
    weights_at = weight + tl.minimum(output, size - 1).to(tl.int64)[None, :] * depth
    total = tl.zeros((block_rows, block_outputs), tl.float32)
    begin = tl.program_id(1) * share
    for start in range(begin, begin + share, block_depth):
        k = start + tl.arange(0, block_depth)
        left = tl.load(rows_at + k[None, :], (k < depth)[None, :], other=0.0)
        right = tl.load(weights_at + k[:, None], (k < depth)[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    part = out + tl.program_id(1).to(tl.int64) * num_rows * size
    place = part + row.to(tl.int64)[:, None] * size + output[None, :]
    inside = (row < num_rows)[:, None] & (output < size)[None, :]
    tl.store(place, total.to(out.dtype.element_ty), inside)
