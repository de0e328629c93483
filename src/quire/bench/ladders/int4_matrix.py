"""The INT4 ladder's step on matrix units, with codes in the order of checkpoints.

Here the codes of a word follow one another, so that after unpacking the compiler moves them
between threads, through shared memory. More differs from `quire.kernels.int4`: how scale and zero
are stored, the early start and, for one row, tile and splits (8 × 32 in one warp, `tile_for`, where
this has 16 × 64 in 4). So the ladder's last step changes more than the packing.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels.runtime import jit, tl, triton
from quire.kernels.tiles import finish_tile

OUTPUTS = 64  # of a program: the height of a product of Hopper's matrix units
ROWS = 16  # of x, of which one is used
SPLIT = 2  # programs that share the columns
MAGIC = {torch.bfloat16: (0x4300, 128.0), torch.float16: (0x6400, 1024.0)}  # bits, number of code 0


def int4_on_matrix_units(
    x: Tensor, words: Tensor, scale: Tensor, zero: Tensor, counters: Tensor
) -> Tensor:
    """Return x · weightᵀ, [1, N].

    Args:
        x: [1, K], bfloat16 or float16.
        words: int32 [N, K / 8], codes that follow one another, the first lowest.
        scale, zero: of x's dtype and uint8, [N, K / 128].
        counters: int32, zeros, at least one for 64 outputs; zeros again afterwards.
    """
    size, depth = words.shape[0], words.shape[1] * 8
    out = torch.empty(1, size, device=x.device, dtype=x.dtype)
    parts = torch.empty(SPLIT, 1, size, device=x.device, dtype=torch.float32)
    bits, number = MAGIC[x.dtype]
    _matrix_kernel[(triton.cdiv(size, OUTPUTS), 1, SPLIT)](
        x,
        words.view(torch.int16),
        scale,
        zero,
        out,
        parts,
        counters,
        size,
        depth=depth,
        bits=bits,
        number=number,
        block_outputs=OUTPUTS,
        block_rows=ROWS,
        split=SPLIT,
        num_warps=4,
        num_stages=4,
    )
    return out


@jit
def _matrix_kernel(
    x,  # [1, depth]
    words,  # int16 [size, depth / 4]
    scale,  # [size, depth / 128]
    zero,  # uint8, the same
    out,  # [1, size]
    parts,  # float32 [split, 1, size]
    counters,
    size,
    depth: tl.constexpr,
    bits: tl.constexpr,  # of the number whose lowest four bits a code replaces
    number: tl.constexpr,
    block_outputs: tl.constexpr,
    block_rows: tl.constexpr,
    split: tl.constexpr,
):
    """One program 64 outputs and a share of the groups of 128 columns."""
    output = tl.program_id(0) * block_outputs + tl.arange(0, block_outputs)[:, None]
    needed = output < size
    row = tl.arange(0, block_rows)[None, :]
    word = tl.arange(0, 32)[None, :]
    column = tl.arange(0, 128)[:, None]
    groups: tl.constexpr = depth // 128
    share: tl.constexpr = (groups + split - 1) // split
    begin = tl.program_id(2) * share
    total = tl.zeros((block_outputs, block_rows), tl.float32)
    for group in range(begin, min(begin + share, groups)):
        of_group = output.to(tl.int64) * groups + group
        packed = tl.load(words + of_group * 32 + word, needed, other=0)
        origin = tl.load(zero + of_group, needed, other=0).to(tl.float32) + number
        origin = origin.to(x.dtype.element_ty)  # exact
        first, second, third, fourth = (
            ((packed & 15) | bits).to(x.dtype.element_ty, bitcast=True),
            (((packed >> 4) & 15) | bits).to(x.dtype.element_ty, bitcast=True),
            (((packed >> 8) & 15) | bits).to(x.dtype.element_ty, bitcast=True),
            (((packed >> 12) & 15) | bits).to(x.dtype.element_ty, bitcast=True),
        )
        codes = tl.join(tl.join(first, second), tl.join(third, fourth))  # [O, 32, 1 or 2, pair]
        codes = tl.reshape(tl.permute(codes, (0, 1, 3, 2)), (block_outputs, 128)) - origin
        values = tl.load(x + group * 128 + column + row * depth, row < 1, other=0.0)
        product = tl.dot(codes, values, input_precision="ieee")
        total += product * tl.load(scale + of_group, needed, other=0.0).to(tl.float32)
    finish_tile(total, out, out, parts, counters, output, row, 1, size, False, split)
