"""The ladder of a product of one row with a weight of four bits: reading it takes a quarter.

Each step takes instructions away. The formula of a weight is scale · (q − zero), q a code of
four bits, with one scale and one zero for 128 columns of a row. The first four steps read the
layout of checkpoints: int32 words of eight codes that follow one another, the first lowest.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.bench.ladders.gemv import SHAPE
from quire.bench.ladders.int4_matrix import int4_on_matrix_units
from quire.bench.ladders.ladder import Ladder, draw, sets_of
from quire.kernels.int4 import tile_for, tiled_int4_linear
from quire.kernels.int4_packing import PackedInt4, pack_int4
from quire.kernels.runtime import jit, tl, triton

GROUP = 128  # columns that share a scale and a zero
CODES = 8  # a word


@dataclass(frozen=True)
class Int4Product:
    """One row and a weight [N, K] of codes, in the order of checkpoints and in the engine's."""

    x: Tensor  # [1, K]
    words: Tensor  # int32 [N, K / 8], codes that follow one another, the first lowest
    scale: Tensor  # [N, K / 128], of x's dtype
    zero: Tensor  # uint8 [N, K / 128]
    packed: PackedInt4

    def dequantize(self) -> Tensor:
        """Return the numbers, float64 [N, K]."""
        shifts = 4 * torch.arange(CODES, device=self.words.device)
        codes = ((self.words[:, :, None] >> shifts) & 15).flatten(1).double()
        scale, zero = (
            each.double().repeat_interleave(GROUP, 1) for each in (self.scale, self.zero)
        )
        return (codes - zero) * scale


def ladder(
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    shape: tuple[int, int] = SHAPE,
    name: str = "int4-gemv",
) -> Ladder[Int4Product]:
    """x · weightᵀ for one row and a weight of four bits; the engine's kernel needs a GPU."""
    size, depth = shape
    num_bytes = size * depth // 2 + size * (depth // GROUP) * (dtype.itemsize + 1)
    count = sets_of(num_bytes, device)
    inputs = [random_product(i, device, dtype, shape) for i in range(count)]
    dense = [p.dequantize().to(dtype) for p in inputs[: max(count // 4, 2)]]
    turn = {id(p): dense[i % len(dense)] for i, p in enumerate(inputs)}
    steps: dict[str, Any] = {
        "naive": naive,
        "zero-a-group": zero_a_group,
        "magic-number": magic_number,
        "matrix-units": matrix_units,
    }
    if device.type == "cuda":  # its unpacking is written in PTX, which the interpreter does not run
        steps["engine"] = engine
    return Ladder(
        name,
        inputs,
        steps,
        {"torch F.linear, 16 bits": lambda p: F.linear(p.x, turn[id(p)])},
        lambda p: p.x.double() @ p.dequantize().T,
        num_bytes + (size + depth) * dtype.itemsize,
        2.0 * size * depth,
        parameters={"outputs": float(size), "depth": float(depth), "group": float(GROUP)},
    )


def random_product(
    seed: int, device: torch.device, dtype: torch.dtype, shape: tuple[int, int]
) -> Int4Product:
    """Return random codes, zeros of all values, and scales of a trained weight's size."""
    size, depth = shape
    generator = torch.Generator(device).manual_seed(seed)
    codes = torch.randint(16, shape, generator=generator, device=device, dtype=torch.uint8)
    groups = (size, depth // GROUP)
    zero = torch.randint(16, groups, generator=generator, device=device, dtype=torch.uint8)
    scale = torch.rand(groups, generator=generator, device=device).add(0.5) / (4 * depth**0.5)
    scale = scale.to(dtype)
    shifts = 4 * torch.arange(CODES, device=device, dtype=torch.int32)
    words = (codes.view(size, -1, CODES).int() << shifts).sum(-1, dtype=torch.int64)
    return Int4Product(
        draw(seed + 1, 1, depth, device=device, dtype=dtype),
        words.to(torch.int32),  # the eighth code's highest bit becomes the sign
        scale,
        zero,
        pack_int4(codes, scale.float(), zero, GROUP),
    )


def naive(product: Int4Product) -> Tensor:
    """Shift, mask, convert, subtract the zero, scale: for each weight."""
    return _on_lanes(_naive_kernel, product)


def zero_a_group(product: Int4Product) -> Tensor:
    """Σ s (q − z) x = s (Σ q x − z Σ x): zero and scale once for a word's eight weights."""
    return _on_lanes(_zero_a_group_kernel, product)


def magic_number(product: Int4Product) -> Tensor:
    """Two codes become two numbers by one mask and one OR; nothing is converted."""
    return _on_lanes(_magic_kernel, product)


def matrix_units(product: Int4Product) -> Tensor:
    """The matrix units multiply; codes that follow one another must move between threads."""
    return int4_on_matrix_units(
        product.x, product.words, product.scale, product.zero, product.packed.counters
    )


def engine(product: Int4Product) -> Tensor:
    """The engine's packing and tiles: codes lie where the matrix units want them.

    For so few rows the engine itself has a kernel without tiles (`quire.kernels.int4_few_rows`).
    """
    tile = tile_for(len(product.x), product.packed.shape[0])
    return tiled_int4_linear(product.x, product.packed, None, tile)


def _on_lanes(kernel: Any, product: Int4Product, block_outputs: int = 16) -> Tensor:
    """Multiply on the lanes of float32, no matrix units."""
    size, words = product.words.shape
    out = torch.empty(1, size, device=product.x.device, dtype=product.x.dtype)
    kernel[(triton.cdiv(size, block_outputs),)](
        product.x,
        product.words,
        product.scale,
        product.zero,
        out,
        size,
        depth=words * CODES,
        block_outputs=block_outputs,
        block_groups=4,
        num_warps=4,
    )
    return out


@jit
def _in_order(c0, c1, c2, c3, c4, c5, c6, c7, outputs: tl.constexpr, columns: tl.constexpr):
    """Return [outputs, columns] of the codes 0 to 7 of words; no number changes its thread."""
    even = tl.join(tl.join(c0, c4), tl.join(c2, c6))
    odd = tl.join(tl.join(c1, c5), tl.join(c3, c7))
    return tl.reshape(tl.join(even, odd), (outputs, columns))


@jit
def _unpack(words, outputs: tl.constexpr, columns: tl.constexpr):
    """Return the codes of words, float32: a shift, a mask and a conversion each."""
    return _in_order(
        words & 15,
        (words >> 4) & 15,
        (words >> 8) & 15,
        (words >> 12) & 15,
        (words >> 16) & 15,
        (words >> 20) & 15,
        (words >> 24) & 15,
        (words >> 28) & 15,
        outputs,
        columns,
    ).to(tl.float32)


@jit
def _naive_kernel(
    x,  # [1, depth]
    words,  # int32 [size, depth / 8]
    scale,  # [size, depth / 128]
    zero,  # uint8, the same
    out,  # [1, size]
    size,
    depth: tl.constexpr,
    block_outputs: tl.constexpr,
    block_groups: tl.constexpr,  # groups of 128 columns
):
    """One program some outputs; zero and scale are applied to each weight."""
    columns: tl.constexpr = block_groups * 128
    output = tl.program_id(0) * block_outputs + tl.arange(0, block_outputs)
    row = output.to(tl.int64)[:, None] * (depth // 128)
    total = tl.zeros((block_outputs, block_groups, 16), tl.float32)
    for start in range(0, depth, columns):
        packed, values, factor, origin = _load(
            x, words, scale, zero, row, output < size, start, depth, block_groups
        )
        codes = _unpack(packed, block_outputs, columns)
        codes = tl.reshape(codes, (block_outputs, block_groups, 16, 8))
        weights = (codes - origin[:, :, None, None]) * factor[:, :, None, None]
        total += tl.sum(weights * values, 3)
    result = tl.sum(tl.reshape(total, (block_outputs, block_groups * 16)), 1)
    tl.store(out + output, result.to(out.dtype.element_ty), output < size)


@jit
def _load(
    x, words, scale, zero, row, needed, start, depth: tl.constexpr, block_groups: tl.constexpr
):
    """Return words [O, 16 G], x as float32 [1, G, 16, 8], scales and zeros as float32 [O, G].

    x comes first: of two loads in conflict the compiler keeps the later one's layout. The other
    way round every weight passes through shared memory, in place of x (see `ptx_counts`).
    """
    column = start + tl.arange(0, block_groups * 128)
    values = tl.load(x + column, column < depth, other=0.0).to(tl.float32)
    word = start // 8 + tl.arange(0, block_groups * 16)[None, :]
    packed = tl.load(words + row * 16 + word, needed[:, None] & (word < depth // 8), other=0)
    group = start // 128 + tl.arange(0, block_groups)[None, :]
    inside = needed[:, None] & (group < depth // 128)
    factor = tl.load(scale + row + group, inside, other=0.0).to(tl.float32)
    origin = tl.load(zero + row + group, inside, other=0).to(tl.float32)
    return packed, tl.reshape(values, (1, block_groups, 16, 8)), factor, origin


@jit
def _zero_a_group_kernel(
    x,
    words,
    scale,
    zero,
    out,
    size,
    depth: tl.constexpr,
    block_outputs: tl.constexpr,
    block_groups: tl.constexpr,
):
    """Zero and scale are applied to sums of eight products."""
    columns: tl.constexpr = block_groups * 128
    output = tl.program_id(0) * block_outputs + tl.arange(0, block_outputs)
    row = output.to(tl.int64)[:, None] * (depth // 128)
    total = tl.zeros((block_outputs, block_groups, 16), tl.float32)
    for start in range(0, depth, columns):
        packed, values, factor, origin = _load(
            x, words, scale, zero, row, output < size, start, depth, block_groups
        )
        codes = _unpack(packed, block_outputs, columns)
        codes = tl.reshape(codes, (block_outputs, block_groups, 16, 8))
        sums = tl.sum(codes * values, 3) - origin[:, :, None] * tl.sum(values, 3)
        total += sums * factor[:, :, None]
    result = tl.sum(tl.reshape(total, (block_outputs, block_groups * 16)), 1)
    tl.store(out + output, result.to(out.dtype.element_ty), output < size)


@jit
def _unpack_pairs(words, outputs: tl.constexpr, columns: tl.constexpr):
    """Return 128 + the codes of words, float32, two by one mask and one OR.

    0x4300 | q is the bfloat16 number 128 + q, and a bfloat16 number is the upper half of a
    float32 number. Each register holds the codes i and i + 4.
    """
    p0 = words & 0x000F000F | 0x43004300
    p1 = (words >> 4) & 0x000F000F | 0x43004300
    p2 = (words >> 8) & 0x000F000F | 0x43004300
    p3 = (words >> 12) & 0x000F000F | 0x43004300
    pairs = _in_order(
        p0 << 16, p1 << 16, p2 << 16, p3 << 16, p0 & -65536, p1 & -65536, p2 & -65536, p3 & -65536,
        outputs, columns,
    )  # fmt: skip
    return pairs.to(tl.float32, bitcast=True)


@jit
def _magic_kernel(
    x,
    words,
    scale,
    zero,
    out,
    size,
    depth: tl.constexpr,
    block_outputs: tl.constexpr,
    block_groups: tl.constexpr,
):
    """Nothing is converted: the 128 goes with the zero."""
    columns: tl.constexpr = block_groups * 128
    output = tl.program_id(0) * block_outputs + tl.arange(0, block_outputs)
    row = output.to(tl.int64)[:, None] * (depth // 128)
    total = tl.zeros((block_outputs, block_groups, 16), tl.float32)
    for start in range(0, depth, columns):
        packed, values, factor, origin = _load(
            x, words, scale, zero, row, output < size, start, depth, block_groups
        )
        codes = _unpack_pairs(packed, block_outputs, columns)
        codes = tl.reshape(codes, (block_outputs, block_groups, 16, 8))
        sums = tl.sum(codes * values, 3) - (origin[:, :, None] + 128) * tl.sum(values, 3)
        total += sums * factor[:, :, None]
    result = tl.sum(tl.reshape(total, (block_outputs, block_groups * 16)), 1)
    tl.store(out + output, result.to(out.dtype.element_ty), output < size)
