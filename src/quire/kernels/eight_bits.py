"""Products with eight bits on both sides, INT8 or FP8, whose tiles matrix units take as they are.

Their rate is twice that of 16-bit numbers, and a weight has half the bytes. See the page
"Running on codes"; for few rows, `quire.kernels.eight_bits_few_rows`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels.eight_bits_few_rows import few_rows_eight_bit_linear, share_for
from quire.kernels.runtime import jit, starts_early, tl, triton
from quire.kernels.tiles import Tile, finish_tile, grid_of

DEPTH = 128  # columns of a step, and of a group where scales are by group
LIBRARY_FROM = 129  # rows of x from which cuBLAS and CUTLASS multiply FP8 by rows faster


def eight_bit_linear(
    codes: Tensor,
    code_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    counters: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Return the product of two matrices of codes, scaled, plus bias, [rows, N] in `dtype`.

    Args:
        codes: int8 or float8_e4m3fn [rows, K].
        code_scale: float32 [rows, G], G being 1 or ⌈K / 128⌉.
        weight: of the same kind, [N, K].
        scale: float32 [N, G].
        counters: int32, all 0, as `quire.kernels.tiles.make_counters` makes them.
    """
    by_row = scale.shape[1] == 1
    is_float = weight.dtype.is_floating_point
    if by_row and is_float and len(codes) >= LIBRARY_FROM and _library_takes(weight):
        return torch._scaled_mm(
            codes, weight.t(), code_scale, scale.t(), bias, out_dtype=dtype, use_fast_accum=False
        )
    share = share_for(len(codes), *weight.shape, by_group=not by_row)
    if share is not None:
        return few_rows_eight_bit_linear(codes, code_scale, weight, scale, bias, dtype, share)
    tile = tile_for(len(codes), weight.shape[0], weight.shape[1], not by_row)
    return tiled_eight_bit_linear(codes, code_scale, weight, scale, bias, counters, dtype, tile)


def _library_takes(weight: Tensor) -> bool:
    """Whether `torch._scaled_mm` takes a weight: its rows and columns in sixteens."""
    return weight.shape[0] % 16 == 0 and weight.shape[1] % 16 == 0


def tile_for(rows: int, outputs: int, depth: int, by_group: bool) -> Tile:
    """Return the best tile of a sweep over the products of the 8B shape on an H200."""
    large, deep = outputs > 16384, depth > 8192
    if rows <= 16:
        return Tile(16, 64, 4 if large else 8 if by_group else 4 if deep else 2, 4, 4)
    if rows <= 32:
        return Tile(32, 64, 1 if large else 4 if deep or by_group else 2, 4, 4)
    if rows <= 64:
        return Tile(64, 64, 1 if large else 4 if deep or by_group else 2, 4, 3 if by_group else 4)
    if rows <= 128:
        return Tile(128, 64, 1 if large else 4 if outputs <= 4096 else 2, 4, 4)
    if rows <= 256 and outputs <= 4096:
        return Tile(128, 64, 2, 4, 4)
    if by_group or rows < 512 or (rows <= 1024 and outputs <= 4096):
        return Tile(128, 64, 1, 4, 4)
    return Tile(128, 128, 1, 8, 3)


def tiled_eight_bit_linear(
    codes: Tensor,
    code_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    counters: Tensor,
    dtype: torch.dtype,
    tile: Tile,
) -> Tensor:
    """`eight_bit_linear` in one kernel; all are contiguous."""
    num_rows, depth = codes.shape
    size = weight.shape[0]
    out = codes.new_empty(num_rows, size, dtype=dtype)
    grid, parts = grid_of(tile, out, triton.cdiv(depth, DEPTH))
    early = starts_early(codes)
    _eight_bit_kernel[grid](
        codes,
        code_scale,
        weight,
        scale,
        out if bias is None else bias,
        out,
        parts,
        counters,
        num_rows,
        size,
        depth=depth,
        by_group=scale.shape[1] > 1,
        adds_bias=bias is not None,
        is_int=weight.dtype == torch.int8,
        block_rows=tile.rows,
        block_outputs=tile.outputs,
        split=grid[2],
        early=early,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        launch_pdl=early,
    )
    return out


@jit
def _eight_bit_kernel(
    codes,
    code_scale,
    weight,
    scale,
    bias,
    out,
    parts,
    counters,
    num_rows,
    size,
    depth: tl.constexpr,
    by_group: tl.constexpr,
    adds_bias: tl.constexpr,
    is_int: tl.constexpr,
    block_rows: tl.constexpr,
    block_outputs: tl.constexpr,
    split: tl.constexpr,
    early: tl.constexpr,
):
    """One program `block_rows` rows of x, `block_outputs` outputs and a share of the columns."""
    groups: tl.constexpr = (depth + 127) // 128
    share: tl.constexpr = (groups + split - 1) // split
    nothing: tl.constexpr = 0 if is_int else 0.0
    across, down, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    outputs = across * block_outputs + tl.arange(0, block_outputs)
    rows = down * block_rows + tl.arange(0, block_rows)
    output, row = outputs[:, None], rows[None, :]
    column = tl.arange(0, 128)
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    exact: tl.constexpr = is_int and not by_group  # sums of integers
    total = tl.zeros((block_outputs, block_rows), tl.int32 if exact else tl.float32)
    for group in range(part * share, min(part * share + share, groups)):
        k = group * 128 + column
        place = weight + output.to(tl.int64) * depth + k[None, :]
        tile = tl.load(place, (output < size) & (k < depth)[None, :], other=nothing)
        place = codes + row.to(tl.int64) * depth + k[:, None]
        values = tl.load(place, (row < num_rows) & (k < depth)[:, None], other=nothing)
        if by_group:
            unit = tl.load(scale + outputs.to(tl.int64) * groups + group, outputs < size, other=0.0)
            place = code_scale + rows.to(tl.int64) * groups + group
            code_unit = tl.load(place, rows < num_rows, other=0.0)
            product = tl.dot(tile, values, out_dtype=tl.int32 if is_int else tl.float32)
            total += product.to(tl.float32) * (unit[:, None] * code_unit[None, :])
        elif is_int:
            total = tl.dot(tile, values, total, out_dtype=tl.int32)
        else:  # the matrix units add FP8 products in few bits: sums go to float32 every 128
            total = tl.dot(tile, values, total, max_num_imprecise_acc=128)
    result = total.to(tl.float32)
    if not by_group:
        unit = tl.load(scale + outputs, outputs < size, other=0.0)
        result *= unit[:, None] * tl.load(code_scale + rows, rows < num_rows, other=0.0)[None, :]
    finish_tile(result, bias, out, parts, counters, output, row, num_rows, size, adds_bias, split)
