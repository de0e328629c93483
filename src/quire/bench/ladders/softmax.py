"""The ladder of softmax: five kernels of torch, one of Triton, and one for rows of any length.

A row of 4,096 numbers fits the registers of a program, so one pass over memory suffices. A
row of 131,072 does not fit well; the online softmax walks over it in blocks.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import torch
from torch import Tensor

from quire.bench.ladders.ladder import Ladder, draw, sets_of
from quire.kernels.runtime import jit, tl, triton
from quire.kernels.softmax import softmax_triton


def ladder(
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    shape: tuple[int, int] = (16384, 4096),
    name: str = "softmax",
) -> Ladder[Tensor]:
    """Softmax over the last dimension of [rows, size]."""
    num_bytes = shape[0] * shape[1] * dtype.itemsize
    count = sets_of(num_bytes, device)
    return Ladder(
        name,
        [draw(i, *shape, device=device, dtype=dtype) for i in range(count)],
        {"torch-in-parts": in_parts, "fused": softmax_triton, "online": online},
        {"torch softmax": lambda x: x.softmax(-1)},
        lambda x: x.double().softmax(-1),
        2 * num_bytes,
        parameters={"rows": float(shape[0]), "size": float(shape[1])},
    )


def wide(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Ladder[Tensor]:
    """The same bytes in rows of 131,072, of which a program's registers hold one badly."""
    return ladder(device, dtype, (512, 131072), "softmax-wide")


def in_parts(x: Tensor) -> Tensor:
    """One operation of torch a line: five kernels, which read or write the matrix eight times."""
    highest = x.max(-1, keepdim=True).values  # reads x
    shifted = x - highest  # reads x, writes
    weights = shifted.exp()  # reads, writes
    total = weights.sum(-1, keepdim=True)  # reads
    return weights / total  # reads, writes


def online(x: Tensor, block: int = 2048) -> Tensor:
    """Softmax of rows of any length: a row is read twice and written once."""
    num_rows, size = x.shape
    out = torch.empty_like(x)
    block = min(block, triton.next_power_of_2(size))
    _online_kernel[(num_rows,)](x, out, size=size, block=block, num_warps=8)
    return out


@jit
def _online_kernel(x, out, size: tl.constexpr, block: tl.constexpr):
    """One program a row, in blocks: a running maximum, and a sum that is relative to it."""
    row = tl.program_id(0).to(tl.int64) * size
    maximum = tl.full((), -float("inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    for start in range(0, size, block):
        column = start + tl.arange(0, block)
        values = tl.load(x + row + column, column < size, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(maximum, tl.max(values))
        total = total * tl.exp(maximum - higher) + tl.sum(tl.exp(values - higher))
        maximum = higher
    for start in range(0, size, block):
        column = start + tl.arange(0, block)
        values = tl.load(x + row + column, column < size, other=-float("inf")).to(tl.float32)
        weights = tl.exp(values - maximum) / total
        tl.store(out + row + column, weights.to(out.dtype.element_ty), column < size)
