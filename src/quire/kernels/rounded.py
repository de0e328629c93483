"""Norm and gate whose results leave as eight-bit codes, for a product that multiplies codes.

A launch of its own that rounds takes one to one and a half microseconds on an H200 for few rows,
and a layer has four. Here a row is in registers anyway, and what is written has half the bytes. The
result is rounded to its own dtype first, so that the codes are those of `round_rows` behind the
plain kernel.
"""

from __future__ import annotations

from torch import Tensor

from quire.kernels.activation import columns_a_program, silu_mul_triton
from quire.kernels.norm import launch_shape, normed_row
from quire.kernels.round_inputs import (
    Rounded,
    Rounding,
    arguments,
    constants,
    round_groups,
    round_rows,
)
from quire.kernels.runtime import jit, starts_early, tl, triton

# A scale of a whole row needs the row in one program, which computes alone what 12 do otherwise:
# rows of 12,288 take 3.5 us instead of 2.5 up to 16 of them, as long at 256, and 23 instead of 28
# at 1,024 (one H200).
MANY_ROWS = 512


def add_rms_norm_rounded(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, rounding: Rounding
) -> tuple[Rounded, Tensor]:
    """Return the codes of the norm of x + residual, and x + residual, in residual's place.

    Args:
        x, residual: [num_tokens, size], contiguous, on a GPU.
        weight: [size].
    """
    num_rows, size = x.shape
    rounded = rounding.allocate(x, size)
    block, num_warps = launch_shape(num_rows, size)
    early = starts_early(x)
    _norm_round_kernel[(num_rows,)](
        x,
        residual,
        weight,
        *arguments(rounding, rounded),
        eps,
        size=size,
        block=block,
        **constants(rounding, block),
        early=early,
        num_warps=num_warps,
        launch_pdl=early,
    )
    return rounded, residual


def silu_mul_rounded(gate_up: Tensor, rounding: Rounding) -> Rounded:
    """Return the codes of silu(gate) · up, [T, I]; gate_up [T, 2·I], contiguous, on a GPU.

    Few rows with a scale each take two launches, see `MANY_ROWS`.
    """
    if rounding.by_row and len(gate_up) < MANY_ROWS:
        return round_rows(silu_mul_triton(gate_up), rounding)
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    rounded = rounding.allocate(gate_up, size)
    block = triton.next_power_of_2(size) if rounding.by_row else columns_a_program(size)
    early = starts_early(gate_up)
    _silu_mul_round_kernel[(num_tokens, triton.cdiv(size, block))](
        gate_up,
        *arguments(rounding, rounded),
        size=size,
        block=block,
        **constants(rounding, block),
        early=early,
        num_warps=min(16, max(block // 256, 1)),
        launch_pdl=early,
    )
    return rounded


@jit
def _norm_round_kernel(
    x,
    residual,
    weight,
    fixed,
    codes,
    scale,
    eps,
    size: tl.constexpr,
    block: tl.constexpr,
    width: tl.constexpr,
    is_fixed: tl.constexpr,
    is_int: tl.constexpr,
    largest: tl.constexpr,
    smallest: tl.constexpr,
    early: tl.constexpr,
):
    """One program a row, as `_rms_norm_kernel`, down to the order of its sum."""
    groups: tl.constexpr = (size + width - 1) // width
    row = tl.program_id(0).to(tl.int64)
    values = normed_row(x, residual, weight, eps, row * size, size, block, True, early)
    values = values.to(x.dtype.element_ty).to(tl.float32)
    values = tl.reshape(values, (block // width, width))
    values, unit = round_groups(values, fixed, is_fixed, is_int, largest, smallest)
    group = tl.arange(0, block // width)
    column = group[:, None] * width + tl.arange(0, width)[None, :]
    place = codes + row * size + column
    tl.store(place, values.to(codes.dtype.element_ty), column < size)
    tl.store(scale + row * groups + group, unit, group < groups)


@jit
def _silu_mul_round_kernel(
    gate_up,
    fixed,
    codes,
    scale,
    size: tl.constexpr,
    block: tl.constexpr,
    width: tl.constexpr,
    is_fixed: tl.constexpr,
    is_int: tl.constexpr,
    largest: tl.constexpr,
    smallest: tl.constexpr,
    early: tl.constexpr,
):
    """One program a token and `block` features: all of them where they share a scale."""
    groups: tl.constexpr = 1 if is_fixed else (size + width - 1) // width
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * (block // width) + tl.arange(0, block // width)
    column = group[:, None] * width + tl.arange(0, width)[None, :]
    inside = column < size
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    gate = tl.load(gate_up + token * 2 * size + column, inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * size + size + column, inside, other=0.0).to(tl.float32)
    values = (gate * tl.sigmoid(gate) * up).to(gate_up.dtype.element_ty).to(tl.float32)
    values, unit = round_groups(values, fixed, is_fixed, is_int, largest, smallest)
    tl.store(codes + token * size + column, values.to(codes.dtype.element_ty), inside)
    tl.store(scale + token * groups + group, unit, group < groups)
