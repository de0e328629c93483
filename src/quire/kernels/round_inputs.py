"""Rounding the inputs of a product to eight bits on a GPU: one program a row."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels.runtime import jit, starts_early, tl, triton

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
SMALLEST_SCALE = 1e-12  # of inputs that are all zero


def round_rows(
    x: Tensor, kind: torch.dtype, group_size: int | None, fixed_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return codes [num_tokens, K] of a kind and scales float32 [num_tokens, G].

    Args:
        x: [num_tokens, K], contiguous.
        kind: int8 or float8_e4m3fn.
        group_size: columns that share a scale, a power of two; None: all.
        fixed_scale: float32 [1], the scale of every element.
    """
    num_rows, columns = x.shape
    groups = 1 if group_size is None else triton.cdiv(columns, group_size)
    codes = torch.empty_like(x, dtype=kind)
    scale = x.new_empty(num_rows, groups, dtype=torch.float32)
    block = triton.next_power_of_2(columns)
    early = starts_early(x)
    _round_kernel[(num_rows,)](
        x,
        scale if fixed_scale is None else fixed_scale,
        codes,
        scale,
        columns=columns,
        block=block,
        width=block if group_size is None else group_size,
        groups=groups,
        is_fixed=fixed_scale is not None,
        is_int=kind == torch.int8,
        largest=LARGEST[kind],
        smallest=SMALLEST_SCALE,
        early=early,
        num_warps=min(8, max(block // 256, 1)),
        launch_pdl=early,
    )
    return codes, scale


@jit
def _round_kernel(
    x,
    fixed,
    codes,
    scale,
    columns: tl.constexpr,
    block: tl.constexpr,
    width: tl.constexpr,
    groups: tl.constexpr,
    is_fixed: tl.constexpr,
    is_int: tl.constexpr,
    largest: tl.constexpr,
    smallest: tl.constexpr,
    early: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, block // width)
    column = group[:, None] * width + tl.arange(0, width)[None, :]
    inside = column < columns
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    values = tl.load(x + row * columns + column, inside, other=0.0).to(tl.float32)
    if is_fixed:
        unit = tl.zeros((block // width,), tl.float32) + tl.load(fixed)
    else:
        unit = tl.maximum(tl.max(tl.abs(values), 1) / largest, smallest)
    values = tl.clamp(values / unit[:, None], -largest, largest)
    if is_int:  # to the nearest, of two as near the even one: adding 1.5 · 2²³ leaves no fraction
        values = (values + 12582912.0) - 12582912.0
    tl.store(codes + row * columns + column, values.to(codes.dtype.element_ty), inside)
    tl.store(scale + row * groups + group, unit, group < groups)
