"""Softmax of each row, with the row held in registers: one pass over memory.

The engine's attention and sampling never write a softmax down; this kernel is the smallest
one that shows why fusing pays, and the benchmark's measure of a memory-bound kernel.
"""

from __future__ import annotations

from torch import Tensor, empty_like

from quire.kernels.runtime import jit, serves, tl, triton


def softmax(x: Tensor) -> Tensor:
    """Return exp(x) / Σ exp(x) over the last dimension of x [rows, size]."""
    return softmax_triton(x) if serves(x) else softmax_torch(x)


def softmax_torch(x: Tensor) -> Tensor:
    """`softmax` in torch."""
    return x.softmax(dim=-1)


def softmax_triton(x: Tensor) -> Tensor:
    """`softmax` in one kernel; x is contiguous."""
    rows, size = x.shape
    out = empty_like(x)
    block = triton.next_power_of_2(size)
    num_warps = min(max(block // 1024, 1), 16)
    _softmax_kernel[(rows,)](x, out, size=size, block=block, num_warps=num_warps)
    return out


@jit
def _softmax_kernel(x, out, size: tl.constexpr, block: tl.constexpr):
    """One program a row."""
    row = tl.program_id(0).to(tl.int64) * size
    column = tl.arange(0, block)
    inside = column < size
    values = tl.load(x + row + column, inside, other=-float("inf")).to(tl.float32)
    weights = tl.exp(values - tl.max(values))
    total = tl.sum(weights)
    tl.store(out + row + column, (weights / total).to(out.dtype.element_ty), inside)
