"""RMSNorm, alone or with the addition that goes before it.

A layer adds what it computed to the residual stream, and the next one normalises the sum.
Done together the stream is read and written once.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, empty_like

from quire.kernels.runtime import jit, serves, starts_early, tl, triton

MANY_ROWS = 96  # above, programs are so many that they take turns on the multiprocessors
MOST_ROWS = 1024  # above, so many are there at once that few warps each are enough


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) · weight over the last dimension of x [..., size]."""
    return rms_norm_triton(x, weight, eps) if serves(x) else rms_norm_torch(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the norm of x + residual, and x + residual; all are [..., size].

    On a GPU the sum takes the residual's place in memory.
    """
    if serves(x):
        return add_rms_norm_triton(x, residual, weight, eps)
    return add_rms_norm_torch(x, residual, weight, eps)


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` in torch; the weight may have rows, one a head.

    On a CPU torch's own function is nine small operations, and small operations are what a
    decode step is made of. The length of x, lengthened by √(n · eps), gives it in four.
    """
    size = x.shape[-1]
    if x.is_cpu and x.dtype == torch.float32:
        zero, margin = _scalars(size * eps)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(margin)
        return torch.addcdiv(zero, x, length, value=size**0.5).mul_(weight)
    if weight.dim() == 1:
        return F.rms_norm(x, (size,), weight, eps)
    return F.rms_norm(x, (size,), None, eps) * weight


@cache
def _scalars(squared_margin: float) -> tuple[Tensor, Tensor]:
    """Return 0 and the root of `squared_margin`, as `addcdiv` and `hypot_` want them."""
    return torch.zeros(()), torch.tensor(squared_margin**0.5)


def add_rms_norm_torch(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`add_rms_norm` in torch, which leaves the residual as it was."""
    total = residual + x
    return rms_norm_torch(total, weight, eps), total


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` in one kernel; x is contiguous."""
    out = empty_like(x)
    _launch(x, x, weight, out, eps, add=False)
    return out


def add_rms_norm_triton(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`add_rms_norm` in one kernel; x and residual are contiguous, residual is overwritten."""
    out = empty_like(x)
    _launch(x, residual, weight, out, eps, add=True)
    return out, residual


def _launch(
    x: Tensor, residual: Tensor, weight: Tensor, out: Tensor, eps: float, *, add: bool
) -> None:
    size = x.shape[-1]
    num_rows = x.numel() // size
    block, num_warps = launch_shape(num_rows, size)
    early = starts_early(x)
    _rms_norm_kernel[(num_rows,)](
        x,
        residual,
        weight,
        out,
        eps,
        size=size,
        block=block,
        add=add,
        early=early,
        num_warps=num_warps,
        launch_pdl=early,
    )


def launch_shape(num_rows: int, size: int) -> tuple[int, int]:
    """Return the columns that a program has room for, and its warps.

    Of some hundred rows of over 1,024 numbers, more warps each hide one another's waiting
    (addition and norm of 256 rows of 4,096 on an H200: 3.5 us, 4.3 with 4 warps). Of a few, their
    sum over the row only takes longer; of thousands, other programs hide it (16,384 rows: 67.9 us
    with 4 warps, 72.8 with 16).
    """
    block = triton.next_power_of_2(size)
    num_warps = 4
    if MANY_ROWS < num_rows <= MOST_ROWS:
        num_warps = max(min(block // 256, 16), 4)
    return block, min(num_warps, max(block // 64, 1))


@jit
def normed_row(
    x,
    residual,
    weight,
    eps,
    row,
    size: tl.constexpr,
    block: tl.constexpr,
    add: tl.constexpr,
    early: tl.constexpr,
):
    """Return the norm of the row that begins at element `row`, float32 [block]; store its sum."""
    column = tl.arange(0, block)
    inside = column < size
    scale = tl.load(weight + column, inside, other=0.0).to(tl.float32)
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    values = tl.load(x + row + column, inside, other=0.0).to(tl.float32)
    if add:
        values += tl.load(residual + row + column, inside, other=0.0).to(tl.float32)
        tl.store(residual + row + column, values.to(residual.dtype.element_ty), inside)
    scale *= tl.rsqrt(tl.sum(values * values) / size + eps)
    return values * scale


@jit
def _rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    eps,
    size: tl.constexpr,
    block: tl.constexpr,
    add: tl.constexpr,
    early: tl.constexpr,
):
    """One program a row: the row stays in registers between the sum and the scaling."""
    row = tl.program_id(0).to(tl.int64) * size
    values = normed_row(x, residual, weight, eps, row, size, block, add, early)
    column = tl.arange(0, block)
    tl.store(out + row + column, values.to(out.dtype.element_ty), column < size)
