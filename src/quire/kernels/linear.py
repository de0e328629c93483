"""Products of a few rows with a weight, which are bound by reading the weight once.

With one row a product has no reuse at all, so the weight goes from memory to registers and
is multiplied there. A program's share of it is in flight before the program waits for x:
while one kernel of a captured step ends, the next one's weight is already on its way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from quire.kernels.runtime import capability, jit, serves, starts_early, tl, triton
from quire.kernels.skinny_matrix import matrix_linear
from quire.kernels.tiled_matrix import tile_for as shared_tile_for
from quire.kernels.tiled_matrix import tiled_linear
from quire.kernels.tiles import Tile as SharedTile

MAX_ROWS = 16
FEW_ROWS = 4  # up to so many, a small weight stays in registers and each row passes by it
SMALL_WEIGHT = 5_000_000  # elements; a larger one is better off with the matrix units
LARGE_WEIGHT = 2**25  # elements; for more than 8 rows cuBLAS is as fast
DEEP = 4096  # columns from which a weight is unpacked behind the wait; see `_few_rows_kernel`


def prefers_skinny(x: Tensor, weight: Tensor) -> bool:
    """Whether x [rows, K] · weight [N, K]ᵀ is as fast here as in cuBLAS, or faster.

    For the layers of the 0.6B and 8B shapes (the skinny rows of measurements/kernels-h200.json)
    it is, up to 8 rows, and up to 16 where the weight is not large. float32 has no matrix
    units to use, so there only a single row is.
    """
    rows = x.shape[0]
    if not serves(x) or rows > MAX_ROWS:
        return False
    return rows == 1 or (x.dtype.itemsize == 2 and (rows <= 8 or weight.numel() < LARGE_WEIGHT))


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x · weightᵀ + bias, [rows, N]; x [rows, K] with 1 to 16 rows, weight [N, K]."""
    rows = x.shape[0]
    small = x.dtype.itemsize == 2 and weight.numel() <= SMALL_WEIGHT
    if rows == 1 or (rows <= FEW_ROWS and small):
        return few_rows_linear(x, weight, bias, tile_for(weight))
    return matrix_linear(x, weight, bias)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, counters: Tensor | None = None
) -> Tensor:
    """Return x · weightᵀ + bias, [rows, N], by whatever is fastest.

    Args:
        counters: of `quire.kernels.tiles.make_counters`; None: no product is split.
    """
    tile = shared_tile(x, weight)
    if tile is not None and (tile.split == 1 or counters is not None):
        return tiled_linear(x, weight, bias, counters, tile)
    if prefers_skinny(x, weight):
        return skinny_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def shared_tile(x: Tensor, weight: Tensor) -> SharedTile | None:
    """Return the tile of `tiled_linear` for x [rows, K] · weight [N, K]ᵀ; None: not its case.

    Hopper's alone: the tiles were chosen there, and smaller GPUs' shared memory has no room for
    them. Where x or the weight has gaps between rows, cuBLAS serves.
    """
    tile = shared_tile_for(len(x), *weight.shape)
    if tile is None or x.dtype.itemsize != 2 or capability(x.device) != (9, 0) or not serves(x):
        return None
    return tile if x.is_contiguous() and weight.is_contiguous() else None


@dataclass(frozen=True)
class Tile:
    """What a program reads: rows of the weight, and how much of them a load covers."""

    outputs: int
    depth: int
    num_warps: int


def tile_for(weight: Tensor) -> Tile:
    """Return the best tile of a sweep over the products of the 0.6B and 8B shapes on an H200.

    Programs are small where the weight is, so that all multiprocessors get some; a deep row
    is shared by more warps, so that all of it is in flight at once. What counts is the whole step:
    from 4,096 columns on 8 warps are faster by themselves (23.8 us where 4 take 25.1, for 12,288
    rows of 4,096), and with 8 for all of them a step of the 8B is 4 % slower.
    """
    size, depth = weight.shape
    if depth <= 1024:
        return Tile(8, 128, 2) if size * depth > SMALL_WEIGHT else Tile(4, 256, 2)
    if depth <= 2048:
        return Tile(2, 256, 4)
    return Tile(2, 512, 4) if depth <= 3072 else Tile(2, 1024, 4)


def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None, tile: Tile) -> Tensor:
    """`skinny_linear` with the weight in registers; x and weight are contiguous."""
    num_rows, depth = x.shape
    size = weight.shape[0]
    out = x.new_empty(num_rows, size)
    early = starts_early(x)
    _few_rows_kernel[(triton.cdiv(size, tile.outputs),)](
        x,
        weight,
        weight if bias is None else bias,
        out,
        size,
        num_rows=num_rows,
        depth=depth,
        adds_bias=bias is not None,
        block_outputs=tile.outputs,
        block_depth=tile.depth,
        unpacks_late=depth >= DEEP,
        early=early,
        num_warps=tile.num_warps,
        launch_pdl=early,
    )
    return out


@jit
def _few_rows_kernel(
    x,
    weight,
    bias,
    out,
    size,
    num_rows: tl.constexpr,
    depth: tl.constexpr,
    adds_bias: tl.constexpr,
    block_outputs: tl.constexpr,
    block_depth: tl.constexpr,
    unpacks_late: tl.constexpr,
    early: tl.constexpr,
):
    """A program's share of the weight is all in flight before it waits for x.

    Left to itself the compiler puts the first instructions of unpacking in front of the wait, so
    that a program first waits for memory. A branch keeps them behind: a token of the 8B takes 2 %
    less. A token of the 0.6B, whose rows are short, takes 1 % more (`measurements/LEDGER.md`).
    """
    output = tl.program_id(0) * block_outputs + tl.arange(0, block_outputs)
    needed = output < size
    k = tl.arange(0, block_depth)[None, :]
    tiles = ()
    for start in tl.static_range(0, depth, block_depth):
        place = weight + output.to(tl.int64)[:, None] * depth + start + k
        mask = needed[:, None] & (start + k < depth)
        tile = tl.load(place, mask, other=0.0, eviction_policy="evict_first")
        tiles += (tile,)  # type: ignore[assignment]
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        if not unpacks_late or size > 0:  # always true, which the compiler does not know
            tl.extra.cuda.gdc_wait()
    for row in tl.static_range(num_rows):
        total = tl.zeros((block_outputs, block_depth), tl.float32)
        for i in tl.static_range(len(tiles)):
            column = tl.broadcast_to(i * block_depth + k, total.shape)
            values = tl.load(x + row * depth + column, column < depth, other=0.0)
            total += tiles[i].to(tl.float32) * values.to(tl.float32)
        result = tl.sum(total, axis=1)
        if adds_bias:
            result += tl.load(bias + output, needed, other=0.0).to(tl.float32)
        tl.store(out + row * size + output, result.to(out.dtype.element_ty), needed)
