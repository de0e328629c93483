"""Products of 9 to 64 rows with a 16-bit weight, in tiles whose columns several programs share.

cuBLAS's kernels are ordinary ones: in a captured step each begins when the kernel in front has
ended. These start early, and let the next one in.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from quire.kernels.runtime import jit, starts_early, tl
from quire.kernels.tiles import Tile, finish_tile, grid_of

DEPTH = 128  # columns of a turn
LEAST_ROWS, MOST_ROWS = 9, 64
OUTPUTS = 64  # of a tile
LARGE = 16384  # outputs from which tiles are many enough, and fewer stages faster


def tile_for(rows: int, outputs: int, depth: int) -> Tile | None:
    """Return the best tile of a sweep over the 0.6B, 8B and 30B-A3B shapes on an H200.

    None: another kernel is as fast, or the weight's outputs or columns do not fill tiles.

    Args:
        rows: of x, the tokens of a step.
        outputs, depth: N and K of the weight.
    """
    if not LEAST_ROWS <= rows <= MOST_ROWS or outputs % OUTPUTS or depth % DEPTH:
        return None
    large, few = outputs > LARGE, outputs <= 4096
    if rows <= 16:
        if large:
            return Tile(16, OUTPUTS, 1, 4, 3)
        return Tile(16, OUTPUTS, 4, 4, 4) if few and depth >= 2048 else None
    if large:
        return Tile(32, OUTPUTS, 1, 4, 3) if rows <= 32 else None
    split = 1 if not few or depth <= 1024 else 2 if outputs > 2048 else 4
    return Tile(32 if rows <= 32 else 64, OUTPUTS, split, 4, 5)


def tiled_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, counters: Tensor | None, tile: Tile
) -> Tensor:
    """Return x · weightᵀ + bias, [rows, N].

    Args:
        x: float16 or bfloat16 [rows, K], contiguous; up to eight times as many rows as a tile has,
            for which there are counters.
        weight: of the same dtype, [N, K], contiguous; N a multiple of the tile's outputs, K of 128.
        bias: [N].
        counters: int32, all 0, as `quire.kernels.tiles.make_counters` makes them; None where the
            tile is not split.
        tile: of `tile_for`.
    """
    num_rows, depth = x.shape
    size = weight.shape[0]
    out = x.new_empty(num_rows, size)
    grid, parts = grid_of(tile, out, depth // DEPTH)
    early = starts_early(x)
    _tiled_kernel[grid](
        x,
        weight,
        out if bias is None else bias,
        out,
        parts,
        out if counters is None else counters,
        num_rows,
        size,
        depth,
        adds_bias=bias is not None,
        block_rows=tile.rows,
        block_outputs=tile.outputs,
        split=grid[2],
        early=early,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        launch_pdl=early,
    )
    return out


@partial(jit, any_number=("num_rows",))
def _tiled_kernel(
    x,
    weight,
    bias,
    out,
    parts,
    counters,
    num_rows,
    size,
    depth,
    adds_bias: tl.constexpr,
    block_rows: tl.constexpr,
    block_outputs: tl.constexpr,
    split: tl.constexpr,
    early: tl.constexpr,
):
    """One program `block_rows` rows of x, `block_outputs` outputs and a share of the columns."""
    across, down, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    output = across * block_outputs + tl.arange(0, block_outputs)[:, None]
    row = down * block_rows + tl.arange(0, block_rows)[None, :]
    k = tl.arange(0, 128)
    blocks = depth // 128
    begin, end = part * blocks // split * 128, (part + 1) * blocks // split * 128
    weight_at = weight + output.to(tl.int64) * depth + k[None, :]
    x_at = x + row.to(tl.int64) * depth + k[:, None]
    total = tl.zeros((block_outputs, block_rows), tl.float32)
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for start in range(begin, end, 128):
        tile = tl.load(weight_at + start)
        values = tl.load(x_at + start, row < num_rows, other=0.0)
        total = tl.dot(tile, values, total)
    finish_tile(total, bias, out, parts, counters, output, row, num_rows, size, adds_bias, split)
