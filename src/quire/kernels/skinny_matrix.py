"""Products of 2 to 16 rows with a weight, by the matrix units.

The weight's rows are the left operand of `tl.dot`, so that a narrow x wastes little: the
units take the right operand in columns of 8.
"""

from __future__ import annotations

from torch import Tensor

from quire.kernels.runtime import jit, starts_early, tl, triton


def matrix_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x · weightᵀ + bias, [rows, N]; x [rows, K] contiguous, up to 16 rows."""
    num_rows, depth = x.shape
    if num_rows > 16:
        raise ValueError(f"{num_rows} rows: this kernel takes 16 at most; use F.linear")
    size = weight.shape[0]
    out = x.new_empty(num_rows, size)
    block_outputs = 16
    early = starts_early(x)
    _matrix_kernel[(triton.cdiv(size, block_outputs),)](
        x,
        weight,
        weight if bias is None else bias,
        out,
        size,
        num_rows,
        depth=depth,
        adds_bias=bias is not None,
        block_rows=8 if num_rows <= 8 else 16,
        block_outputs=block_outputs,
        block_depth=256,
        early=early,
        num_warps=1,
        num_stages=5,
        launch_pdl=early,
    )
    return out


@jit
def _matrix_kernel(
    x,
    weight,
    bias,
    out,
    size,
    num_rows,
    depth: tl.constexpr,
    adds_bias: tl.constexpr,
    block_rows: tl.constexpr,
    block_outputs: tl.constexpr,
    block_depth: tl.constexpr,
    early: tl.constexpr,
):
    """One program `block_outputs` rows of the weight, which pass through shared memory."""
    output = tl.program_id(0) * block_outputs + tl.arange(0, block_outputs)[:, None]
    row = tl.arange(0, block_rows)[None, :]
    k = tl.arange(0, block_depth)
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    total = tl.zeros((block_outputs, block_rows), tl.float32)
    for start in range(0, depth, block_depth):
        inside = start + k < depth
        place = weight + output.to(tl.int64) * depth + start + k[None, :]
        tile = tl.load(place, (output < size) & inside[None, :], other=0.0)
        place = x + row * depth + start + k[:, None]
        values = tl.load(place, (row < num_rows) & inside[:, None], other=0.0)
        total = tl.dot(tile, values, total, input_precision="ieee")
    if adds_bias:
        total += tl.load(bias + output, output < size, other=0.0).to(tl.float32)
    stored = (output < size) & (row < num_rows)
    tl.store(out + row * size + output, total.to(out.dtype.element_ty), stored)
