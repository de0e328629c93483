"""Products with a weight of four bits: unpacked in registers on its way to the matrix units.

Two things make it fast. A 16-bit word whose upper bits are 0x4300 and whose lower four are a
code q is the bfloat16 number 128 + q, so that one logical operation unpacks two weights. And
words lie in memory as the matrix units want them in registers, so that nothing moves between
threads: packing is a part of the kernel. See the page "Running on codes".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.kernels.int4_few_rows import few_rows_int4_linear, share_for
from quire.kernels.int4_packing import PackedInt4, scale_of
from quire.kernels.runtime import jit, starts_early, tl
from quire.kernels.tiles import Tile, finish_tile, grid_of

UNPACKED_TILES = 4  # of a program that unpacks
UNPACK_FROM = 1024  # rows of x from which 16-bit products are faster, unpacking first


def int4_linear(x: Tensor, weight: PackedInt4, bias: Tensor | None) -> Tensor:
    """Return x · weightᵀ + bias, [rows, N]; x bfloat16 [rows, K], contiguous."""
    if len(x) >= UNPACK_FROM:
        return F.linear(x, unpack_int4(weight, x.dtype), bias)
    share = share_for(len(x), *weight.shape)
    if share is not None:
        return few_rows_int4_linear(x, weight, bias, share)
    return tiled_int4_linear(x, weight, bias, tile_for(len(x), weight.shape[0]))


def tile_for(rows: int, outputs: int) -> Tile:
    """Return the best tile of a sweep over the products of the 8B shape on an H200.

    Few programs would leave multiprocessors idle: a weight of few rows is split over its
    columns, and the last program of a tile to end adds up the parts.
    """
    large = outputs > 16384
    if rows <= 8:
        return Tile(8, 32, 4 if large else 16, 1, 3)
    if rows <= 16:
        return Tile(16, 128, 2, 4, 3) if large else Tile(16, 32, 8, 1, 3)
    if rows <= 32 and outputs <= 4096:
        return Tile(32, 32, 8, 1, 3)
    if rows <= 32:
        return Tile(32, 64, 1 if large else 4, 4, 4)
    if rows <= 64:
        return Tile(64, 64, 1 if large else 4, 4, 4 if outputs <= 4096 else 3)
    if rows <= 128:
        return Tile(128, 64, 1 if large else 4 if outputs <= 4096 else 2, 4, 3)
    if rows <= 256 and outputs <= 4096:
        return Tile(64, 128, 2, 4, 3)
    return Tile(128, 64, 1, 4, 3)


def tiled_int4_linear(x: Tensor, weight: PackedInt4, bias: Tensor | None, tile: Tile) -> Tensor:
    """`int4_linear` in one kernel."""
    num_rows, depth = x.shape
    size = weight.shape[0]
    out = x.new_empty(num_rows, size)
    grid, parts = grid_of(tile, out, weight.words.shape[1])
    early = starts_early(x)
    _int4_kernel[grid](
        x,
        weight.words,
        weight.scales,
        out if bias is None else bias,
        out,
        parts,
        weight.counters,
        num_rows,
        size,
        depth=depth,
        blocks=weight.words.shape[1],
        groups=weight.groups_a_block,
        halves=weight.halves,
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


# docs: unpack begin
@jit
def _unpack(words, zero):
    """Return four codes of 16-bit words less their zero: bfloat16 tensors of that shape.

    Two words share a register. `lop3` (0xEA is (a & b) | c) takes a code out of each and
    sets the exponent: 128 + code. Adding -(128 + zero), the bits in `zero`, is exact.
    """
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 t, one;
        mov.b32 one, 0x3f803f80;
        lop3.b32 $0, $4, 0x000f000f, 0x43004300, 0xEA;
        shr.u32 t, $4, 4;
        lop3.b32 $1, t, 0x000f000f, 0x43004300, 0xEA;
        shr.u32 t, $4, 8;
        lop3.b32 $2, t, 0x000f000f, 0x43004300, 0xEA;
        shr.u32 t, $4, 12;
        lop3.b32 $3, t, 0x000f000f, 0x43004300, 0xEA;
        fma.rn.bf16x2 $0, $0, one, $5;
        fma.rn.bf16x2 $1, $1, one, $5;
        fma.rn.bf16x2 $2, $2, one, $5;
        fma.rn.bf16x2 $3, $3, one, $5;
        }""",
        "=r,=r,=r,=r,r,r",
        [words, zero],
        dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
        is_pure=True,
        pack=2,
    )


# docs: unpack end


@jit
def _zero_of(scales, tiles: tl.constexpr):
    """Return the upper half of words [tiles, 16] for each element of a word tile, int16."""
    zero = tl.reshape((scales >> 16).to(tl.int16), (tiles, 1, 2, 8, 1, 1))
    zero = tl.permute(zero, (0, 3, 1, 4, 2, 5))
    return tl.reshape(tl.broadcast_to(zero, (tiles, 8, 4, 2, 2, 2)), (tiles, 32, 8))


@jit
def _beside(codes, first: tl.constexpr, pieces: tl.constexpr):
    """Return the pieces of 32 columns from `first` on, side by side: 1, 2 or all 4 of them."""
    if pieces == 1:
        both = codes[first]
    elif pieces == 2:
        both = tl.join(codes[first], codes[first + 1])
    else:
        both = tl.join(tl.join(codes[0], codes[1]), tl.join(codes[2], codes[3]))
    return both


@jit
def _as_operand(left, right, tiles: tl.constexpr, pieces: tl.constexpr):
    """Return columns of a weight, [16 * tiles, 32 * pieces], from their two halves.

    Where they lie is what the matrix units ask for, so no number changes its thread.
    """
    both = tl.join(left, right)
    if pieces == 1:
        both = tl.permute(tl.reshape(both, (tiles, 8, 4, 2, 2, 2, 2)), (0, 4, 1, 6, 3, 2, 5))
    elif pieces == 2:
        both = tl.reshape(both, (tiles, 8, 4, 2, 2, 2, 2, 2))
        both = tl.permute(both, (0, 4, 1, 6, 7, 3, 2, 5))
    else:
        both = tl.reshape(both, (tiles, 8, 4, 2, 2, 2, 2, 2, 2))
        both = tl.permute(both, (0, 4, 1, 7, 6, 8, 3, 2, 5))
    return tl.reshape(both, (16 * tiles, 32 * pieces))


@jit
def _int4_kernel(
    x,
    words,
    scales,
    bias,
    out,
    parts,
    counters,
    num_rows,
    size,
    depth: tl.constexpr,
    blocks: tl.constexpr,
    groups: tl.constexpr,
    halves: tl.constexpr,
    adds_bias: tl.constexpr,
    block_rows: tl.constexpr,
    block_outputs: tl.constexpr,
    split: tl.constexpr,
    early: tl.constexpr,
):
    """One program `block_rows` rows of x, `block_outputs` outputs and a share of the columns."""
    tiles: tl.constexpr = block_outputs // 16
    pieces: tl.constexpr = 4 // groups  # of 32 columns in a group
    across, down, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tile = (across * tiles + tl.arange(0, tiles)).to(tl.int64) * blocks
    element = tl.arange(0, 32)[:, None] * 8 + tl.arange(0, 8)[None, :]
    words_at = words + tile[:, None, None] * 512 + element[None, :, :]
    scales_at = scales + tile[:, None] * (16 * groups) + tl.arange(0, 16)[None, :]
    row = down * block_rows + tl.arange(0, block_rows)[None, :]
    column = tl.arange(0, 32 * pieces)[:, None]
    output = across * block_outputs + tl.arange(0, block_outputs)[:, None]
    share: tl.constexpr = (blocks + split - 1) // split
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    total = tl.zeros((block_outputs, block_rows), tl.float32)
    for block in range(part * share, min(part * share + share, blocks)):
        left = tl.load(words_at + block * 512)
        right = tl.load(words_at + block * 512 + 256)
        for group in tl.static_range(groups):
            scale = tl.load(scales_at + block * (16 * groups) + group * 16)
            zero = _zero_of(scale, tiles)
            left_codes = _beside(_unpack(left, zero), group * pieces, pieces)
            right_codes = _beside(_unpack(right, zero), group * pieces, pieces)
            operand = _as_operand(left_codes, right_codes, tiles, pieces)
            k = block * 128 + group * (32 * pieces) + column
            inside = (row < num_rows) & (k < depth)
            values = tl.load(x + row.to(tl.int64) * depth + k, inside, other=0.0)
            product = tl.dot(operand, values)
            total += product * tl.reshape(scale_of(scale, halves), (block_outputs, 1))
    finish_tile(total, bias, out, parts, counters, output, row, num_rows, size, adds_bias, split)


def unpack_int4(weight: PackedInt4, dtype: torch.dtype) -> Tensor:
    """Return the numbers of a packed weight in a 16-bit dtype, [N, K], each rounded once."""
    rows, columns = weight.shape
    out = torch.empty(rows, columns, dtype=dtype, device=weight.words.device)
    tiles, blocks = weight.words.shape[:2]
    early = starts_early(out)
    _unpack_kernel[(blocks, tiles // UNPACKED_TILES)](
        weight.words,
        weight.scales,
        out,
        rows,
        columns,
        blocks=blocks,
        groups=weight.groups_a_block,
        halves=weight.halves,
        tiles=UNPACKED_TILES,
        early=early,
        num_warps=4,
        launch_pdl=early,
    )
    return out


@jit
def _unpack_kernel(
    words,
    scales,
    out,
    size,
    depth,
    blocks: tl.constexpr,
    groups: tl.constexpr,
    halves: tl.constexpr,
    tiles: tl.constexpr,
    early: tl.constexpr,
):
    """One program a block of columns of some tiles of rows."""
    block, first = tl.program_id(0), tl.program_id(1) * tiles
    pieces: tl.constexpr = 4 // groups
    tile = (first + tl.arange(0, tiles)).to(tl.int64) * blocks + block
    element = tl.arange(0, 32)[:, None] * 8 + tl.arange(0, 8)[None, :]
    left = tl.load(words + tile[:, None, None] * 512 + element[None, :, :])
    right = tl.load(words + tile[:, None, None] * 512 + 256 + element[None, :, :])
    row = first * 16 + tl.arange(0, 16 * tiles)[:, None]
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for group in tl.static_range(groups):
        scales_at = scales + tile[:, None] * (16 * groups) + group * 16
        scale = tl.load(scales_at + tl.arange(0, 16)[None, :])
        zero = _zero_of(scale, tiles)
        left_codes = _beside(_unpack(left, zero), group * pieces, pieces)
        right_codes = _beside(_unpack(right, zero), group * pieces, pieces)
        codes = _as_operand(left_codes, right_codes, tiles, pieces).to(tl.float32)
        numbers = codes * tl.reshape(scale_of(scale, halves), (16 * tiles, 1))
        k = block * 128 + group * (32 * pieces) + tl.arange(0, 32 * pieces)[None, :]
        place = out + row.to(tl.int64) * depth + k
        tl.store(place, numbers.to(out.dtype.element_ty), (row < size) & (k < depth))
