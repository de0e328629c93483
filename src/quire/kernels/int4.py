"""Products with a weight of four bits: unpacked in registers on its way to the matrix units.

Two things make it fast. A 16-bit word whose upper bits are 0x4300 and whose lower four are a
code q is the bfloat16 number 128 + q, so that one logical operation unpacks two weights. And
words lie in memory as the matrix units want them in registers, so that nothing moves between
threads: packing is a part of the kernel. See the chapter "Quantization".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.kernels.runtime import jit, starts_early, tl, triton
from quire.kernels.tiles import MOST_ROWS, Tile, finish_tile, make_counters

COLUMNS = 128  # of a block, whose words lie together
ROWS = 16  # of a tile: the height of the matrix units' left operand
TALLEST = 128  # outputs of a program; weights are padded to a multiple
UNPACK_FROM = MOST_ROWS  # rows of x from which 16-bit products are faster, unpacking first


@dataclass(frozen=True)
class PackedInt4:
    """A weight [N, K] of four-bit codes, N and K padded with weights of 0.

    Block b of the rows' tile t holds four codes a word: bits 4i to 4i + 3 of word
    [t, b, h, lane, e] are the code in row 16t + 8e₁ + lane / 4 and column
    128b + 32i + 16h + 8e₂ + 2 (lane mod 4) + e₀.
    """

    words: Tensor  # int16 [N / 16, K / 128, 2, 32, 8]
    scales: Tensor  # int32 [N / 16, K / 128, groups a block, 16]: scale below, -(128 + zero) above
    shape: tuple[int, int]  # N and K without padding
    halves: bool  # whether scales are float16; otherwise bfloat16
    counters: Tensor  # int32, of parts that are done; 0 between products

    @property
    def groups_a_block(self) -> int:
        """Groups of columns in a block: 1, 2 or 4."""
        return self.scales.shape[2]


def pack_int4(codes: Tensor, scale: Tensor, zero: Tensor, group_size: int) -> PackedInt4:
    """Pack a weight for `int4_linear`.

    Args:
        codes, zero: uint8 [N, K] and [N, G], below 16.
        scale: float32 [N, G]; rounded to bfloat16, or to float16 where that is closer.
        group_size: 32, 64 or a multiple of 128.

    Raises:
        ValueError: another group size.
    """
    if group_size not in (32, 64) and group_size % COLUMNS:
        raise ValueError(f"group_size={group_size}: must be 32, 64 or a multiple of {COLUMNS}")
    rows, columns = codes.shape
    more_rows, more_columns = -rows % TALLEST, -columns % COLUMNS
    codes = F.pad(codes, (0, more_columns, 0, more_rows))
    tiles, blocks = codes.shape[0] // ROWS, codes.shape[1] // COLUMNS
    apart = codes.view(tiles, 2, 8, blocks, 4, 2, 2, 4, 2).int()  # t e1 lane b i h e2 lane e0
    apart = apart.permute(0, 3, 5, 2, 7, 6, 1, 8, 4)  # t b h lane lane e2 e1 e0 i
    shifts = 4 * torch.arange(4, device=codes.device)
    words = (apart << shifts).sum(-1)
    groups_a_block = max(1, COLUMNS // group_size)
    wide = [
        F.pad(_by_piece(each, group_size, columns), (0, more_columns * 4 // COLUMNS, 0, more_rows))
        for each in (scale, zero)
    ]
    wanted, zeros = (
        each[:, : blocks * 4].view(-1, blocks, groups_a_block, 4 // groups_a_block)[..., 0]
        for each in (F.pad(each, (0, blocks * 4 - each.shape[1])) for each in wide)
    )
    halves = _error(wanted, torch.float16) < _error(wanted, torch.bfloat16)
    low = wanted.to(torch.float16 if halves else torch.bfloat16).view(torch.int16).int() & 0xFFFF
    high = (-(128 + zeros.float())).bfloat16().view(torch.int16).int() << 16
    scales = (high | low).view(tiles, ROWS, blocks, groups_a_block).permute(0, 2, 3, 1)
    return PackedInt4(
        words.to(torch.int16).reshape(tiles, blocks, 2, 32, 8).contiguous(),
        scales.contiguous(),
        (rows, columns),
        halves,
        make_counters(rows, codes.device),
    )


def _by_piece(each: Tensor, group_size: int, columns: int) -> Tensor:
    """Return a group's number for every 32 columns of it, [N, ⌈K / 32⌉]."""
    pieces = torch.arange(-(-columns // 32), device=each.device)
    return each[:, pieces * 32 // group_size]


def _error(numbers: Tensor, dtype: torch.dtype) -> float:
    """Return the largest relative error of numbers in another dtype."""
    lost = (numbers.to(dtype).float() - numbers).abs()
    return float((lost / numbers.abs().clamp(min=1e-30)).max())


def int4_linear(x: Tensor, weight: PackedInt4, bias: Tensor | None) -> Tensor:
    """Return x · weightᵀ + bias, [rows, N]; x bfloat16 [rows, K], contiguous."""
    if len(x) >= UNPACK_FROM:
        return F.linear(x, unpack_int4(weight, x.dtype), bias)
    return tiled_int4_linear(x, weight, bias, tile_for(len(x), weight.shape))


def tile_for(rows: int, shape: tuple[int, int]) -> Tile:
    """Return the best tile of a sweep over the products of the 8B shape on an H200.

    Few programs would leave multiprocessors idle: a weight of few rows is split over its
    columns, and the last program of a tile to end adds up the parts.
    """
    outputs, depth = shape
    if rows <= 64:
        height = 16 if rows <= 16 else 32 if rows <= 32 else 64
        programs = outputs // 64
        split = 1 if programs > 264 else 2 if depth < 8192 and rows <= 16 else 4
        return Tile(height, 64, split, 4, 4)
    return Tile(64, 128, 2 if outputs <= 4096 else 1, 4, 4)


def tiled_int4_linear(x: Tensor, weight: PackedInt4, bias: Tensor | None, tile: Tile) -> Tensor:
    """`int4_linear` in one kernel."""
    num_rows, depth = x.shape
    size = weight.shape[0]
    out = x.new_empty(num_rows, size)
    across, down = triton.cdiv(size, tile.outputs), triton.cdiv(num_rows, tile.rows)
    split = min(tile.split, weight.words.shape[1])
    parts = out
    if split > 1:
        parts = x.new_empty(split, num_rows, size, dtype=torch.float32)
    early = starts_early(x)
    _int4_kernel[(across, down, split)](
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
        split=split,
        early=early,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        launch_pdl=early,
    )
    return out


# docs: unpack begin
@jit
def _unpack(words, zero):
    """Return the four codes of 16-bit words less their zero, each a bfloat16 tensor of that shape.

    Two words share a register. `lop3` (0xEA is (a & b) | c) takes a code out of each and sets
    the exponent: 128 + code. Adding -(128 + zero), the bits in `zero`, is exact.
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
def _scale_of(scales, halves: tl.constexpr):
    """Return the scale in the lower half of words, float32."""
    if halves:
        return (scales & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return (scales << 16).to(tl.float32, bitcast=True)


@jit
def _zero_of(scales, tiles: tl.constexpr):
    """Return the upper half of words [tiles, 16] for each element of a word tile, int16."""
    zero = tl.reshape((scales >> 16).to(tl.int16), (tiles, 1, 2, 8, 1, 1))
    zero = tl.permute(zero, (0, 3, 1, 4, 2, 5))
    return tl.reshape(tl.broadcast_to(zero, (tiles, 8, 4, 2, 2, 2)), (tiles, 32, 8))


@jit
def _as_operand(left, right, tiles: tl.constexpr):
    """Return 32 columns of a weight, [16 * tiles, 32], from its two halves [tiles, 32, 8].

    Where they lie is what the matrix units ask for, so no number changes its thread.
    """
    both = tl.reshape(tl.join(left, right), (tiles, 8, 4, 2, 2, 2, 2))
    both = tl.permute(both, (0, 4, 1, 6, 3, 2, 5))
    return tl.reshape(both, (16 * tiles, 32))


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
    across, down, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tile = (across * tiles + tl.arange(0, tiles)).to(tl.int64) * blocks
    element = tl.arange(0, 32)[:, None] * 8 + tl.arange(0, 8)[None, :]
    words_at = words + tile[:, None, None] * 512 + element[None, :, :]
    scales_at = scales + tile[:, None] * (16 * groups) + tl.arange(0, 16)[None, :]
    row = down * block_rows + tl.arange(0, block_rows)[None, :]
    column = tl.arange(0, 32)[:, None]
    output = across * block_outputs + tl.arange(0, block_outputs)[:, None]
    share: tl.constexpr = (blocks + split - 1) // split
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    total = tl.zeros((block_outputs, block_rows), tl.float32)
    for block in range(part * share, min(part * share + share, blocks)):
        left = tl.load(words_at + block * 512)
        right = tl.load(words_at + block * 512 + 256)
        scale = tl.load(scales_at + block * (16 * groups))
        zero = _zero_of(scale, tiles)
        for group in tl.static_range(groups):
            if group > 0:
                scale = tl.load(scales_at + block * (16 * groups) + group * 16)
                zero = _zero_of(scale, tiles)
            l0, l1, l2, l3 = _unpack(left, zero)
            r0, r1, r2, r3 = _unpack(right, zero)
            product = tl.zeros((block_outputs, block_rows), tl.float32)
            for piece in tl.static_range(4 // groups):
                k = block * 128 + (group * (4 // groups) + piece) * 32 + column
                inside = (row < num_rows) & (k < depth)
                values = tl.load(x + row.to(tl.int64) * depth + k, inside, other=0.0)
                if group * (4 // groups) + piece == 0:
                    operand = _as_operand(l0, r0, tiles)
                elif group * (4 // groups) + piece == 1:
                    operand = _as_operand(l1, r1, tiles)
                elif group * (4 // groups) + piece == 2:
                    operand = _as_operand(l2, r2, tiles)
                else:
                    operand = _as_operand(l3, r3, tiles)
                product = tl.dot(operand, values, product)
            total += product * tl.reshape(_scale_of(scale, halves), (block_outputs, 1))
    finish_tile(total, bias, out, parts, counters, output, row, num_rows, size, adds_bias, split)


def unpack_int4(weight: PackedInt4, dtype: torch.dtype) -> Tensor:
    """Return the numbers of a packed weight, [N, K] in a dtype."""
    return unpack_int4_torch(weight).to(dtype)


def unpack_int4_torch(weight: PackedInt4) -> Tensor:
    """Return the numbers of a packed weight, float32 [N, K]: what the kernel multiplies by."""
    tiles, blocks = weight.words.shape[:2]
    words = weight.words.int() & 0xFFFF
    codes = torch.stack([(words >> (4 * i)) & 15 for i in range(4)], -1)
    codes = codes.view(tiles, blocks, 2, 8, 4, 2, 2, 2, 4)  # t b h lane lane e2 e1 e0 i
    codes = codes.permute(0, 6, 3, 1, 8, 2, 5, 4, 7).reshape(tiles * ROWS, blocks * COLUMNS)
    kind = torch.float16 if weight.halves else torch.bfloat16
    scale = weight.scales.to(torch.int16).view(kind).float()
    minus_zero = (weight.scales >> 16).to(torch.int16).view(torch.bfloat16).float()
    width = COLUMNS // weight.groups_a_block
    scale, minus_zero = (
        each.permute(0, 3, 1, 2).reshape(tiles * ROWS, -1).repeat_interleave(width, 1)
        for each in (scale, minus_zero)
    )
    rows, columns = weight.shape
    return ((codes.float() + 128 + minus_zero) * scale)[:rows, :columns]
