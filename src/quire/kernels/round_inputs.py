"""Rounding the inputs of a product to eight bits on a GPU: one program a row.

A layer in front of the product may do it on its way out (`quire.kernels.rounded`); both round
by `round_groups`, so the codes are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from quire.kernels.runtime import jit, starts_early, tl, triton

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
SMALLEST_SCALE = 1e-12  # of inputs that are all zero


@dataclass(frozen=True, eq=False)
class Rounding:
    """How a product wants its inputs rounded."""

    kind: torch.dtype  # int8 or float8_e4m3fn
    group_size: int | None = None  # columns that share a scale, a power of two; None: all
    fixed_scale: Tensor | None = None  # float32 [1], the scale of every element

    @property
    def by_row(self) -> bool:
        """Whether a code depends on its whole row."""
        return self.group_size is None and self.fixed_scale is None

    def allocate(self, like: Tensor, columns: int) -> Rounded:
        """Return codes and scales to be filled, of as many rows as `like` has."""
        num_rows = like.shape[0]
        groups = 1 if self.group_size is None else triton.cdiv(columns, self.group_size)
        return Rounded(
            like.new_empty(num_rows, columns, dtype=self.kind),
            like.new_empty(num_rows, groups, dtype=torch.float32),
        )


class Rounded(NamedTuple):
    """Inputs in eight bits: an element is its code times the scale of its row and group."""

    codes: Tensor  # int8 or float8_e4m3fn [num_tokens, K]
    scale: Tensor  # float32 [num_tokens, G]


def round_rows(x: Tensor, rounding: Rounding) -> Rounded:
    """Round x, [num_tokens, K] and contiguous."""
    num_rows, columns = x.shape
    rounded = rounding.allocate(x, columns)
    block = triton.next_power_of_2(columns)
    early = starts_early(x)
    _round_kernel[(num_rows,)](
        x,
        *arguments(rounding, rounded),
        columns=columns,
        block=block,
        **constants(rounding, block),
        early=early,
        num_warps=min(8, max(block // 256, 1)),
        launch_pdl=early,
    )
    return rounded


def arguments(rounding: Rounding, rounded: Rounded) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a kernel that rounds is given: fixed scale, codes, scales."""
    fixed = rounded.scale if rounding.fixed_scale is None else rounding.fixed_scale
    return fixed, rounded.codes, rounded.scale


def constants(rounding: Rounding, block: int) -> dict[str, int | float]:
    """Return the constants of a kernel that rounds `block` columns of a row."""
    return {
        "width": block if rounding.group_size is None else min(rounding.group_size, block),
        "is_fixed": rounding.fixed_scale is not None,
        "is_int": rounding.kind == torch.int8,
        "largest": LARGEST[rounding.kind],
        "smallest": SMALLEST_SCALE,
    }


@jit
def round_groups(
    values,
    fixed,
    is_fixed: tl.constexpr,
    is_int: tl.constexpr,
    largest: tl.constexpr,
    smallest: tl.constexpr,
):
    """Return the codes of float32 values [groups, width], still float32, and a scale a group."""
    if is_fixed:
        unit = tl.zeros((values.shape[0],), tl.float32) + tl.load(fixed)
    else:
        unit = tl.maximum(tl.max(tl.abs(values), 1) / largest, smallest)
    values = tl.clamp(values / unit[:, None], -largest, largest)
    if is_int:  # to the nearest, of two as near the even one: adding 1.5 · 2²³ leaves no fraction
        values = (values + 12582912.0) - 12582912.0
    return values, unit


@jit
def _round_kernel(
    x,
    fixed,
    codes,
    scale,
    columns: tl.constexpr,
    block: tl.constexpr,
    width: tl.constexpr,
    is_fixed: tl.constexpr,
    is_int: tl.constexpr,
    largest: tl.constexpr,
    smallest: tl.constexpr,
    early: tl.constexpr,
):
    groups: tl.constexpr = (columns + width - 1) // width
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, block // width)
    column = group[:, None] * width + tl.arange(0, width)[None, :]
    inside = column < columns
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    values = tl.load(x + row * columns + column, inside, other=0.0).to(tl.float32)
    values, unit = round_groups(values, fixed, is_fixed, is_int, largest, smallest)
    tl.store(codes + row * columns + column, values.to(codes.dtype.element_ty), inside)
    tl.store(scale + row * groups + group, unit, group < groups)
