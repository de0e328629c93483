"""How a weight of four-bit codes lies in memory for the matrix units: packing and its inverse.

Words lie as the matrix units want them in registers, so that nothing moves between threads when
`quire.kernels.int4` unpacks them: packing is a part of the kernel. See the chapter
"Quantization".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.kernels.runtime import jit, tl
from quire.kernels.tiles import make_counters

COLUMNS = 128  # of a block, whose words lie together
ROWS = 16  # of a tile: the height of the matrix units' left operand
TALLEST = 128  # outputs of a program; weights are padded to a multiple


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


@jit
def scale_of(scales, halves: tl.constexpr):
    """Return the scale in the lower half of words, float32."""
    if halves:
        return (scales & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return (scales << 16).to(tl.float32, bitcast=True)
