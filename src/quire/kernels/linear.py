"""Products of a few rows with a weight, which are bound by reading the weight once.

With one row a product has no reuse at all, so the weight goes from memory to registers and
is multiplied there. A program's share of it is in flight before the program waits for x:
while one kernel of a captured step ends, the next one's weight is already on its way.

What stands before and behind a product is done on the way, which saves a launch each: the
norm before it, the gate of an MLP, the addition to the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from quire.kernels.activation import silu_mul
from quire.kernels.norm import rms_norm
from quire.kernels.runtime import jit, serves, starts_early, tl, triton
from quire.kernels.skinny_matrix import matrix_linear

MAX_ROWS = 16
FEW_ROWS = 4  # up to so many, a small weight stays in registers and each row passes by it
SMALL_WEIGHT = 5_000_000  # elements; a larger one is better off with the matrix units
LARGE_WEIGHT = 2**25  # elements; for more than 8 rows cuBLAS is as fast
NORM_DEPTH = 2048  # every program repeats the norm, which beyond this costs more than a launch


def prefers_skinny(x: Tensor, weight: Tensor) -> bool:
    """Whether x [rows, K] · weight [N, K]ᵀ is as fast here as in cuBLAS, or faster.

    For the layers of the 0.6B and 8B shapes (the skinny rows of measurements/kernels-h200.json)
    it is, up to 8 rows, and up to 16 where the weight is not large. float32 has no matrix
    units to use, so there only a single row is.
    """
    rows = x.shape[0]
    if not serves(x) or rows > MAX_ROWS:
        return False
    return rows == 1 or (x.dtype.itemsize == 2 and (rows <= 8 or weight.numel() < LARGE_WEIGHT))


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x · weightᵀ + bias, [rows, N]; x [rows, K] with 1 to 16 rows, weight [N, K]."""
    if _few(x, weight):
        return few_rows_linear(x, weight, tile_for(weight), bias=bias)
    return matrix_linear(x, weight, bias) if serves(x) else F.linear(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x · weightᵀ + bias, [rows, N], by whatever is fastest."""
    if prefers_skinny(x, weight):
        return skinny_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def norm_linear(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Return RMSNorm(x) · weightᵀ + bias, [rows, N]; x [rows, K], norm_weight [K]."""
    if _few(x, weight) and x.shape[1] <= NORM_DEPTH:
        return few_rows_linear(
            x, weight, tile_for(weight), bias=bias, norm_weight=norm_weight, eps=eps
        )
    return linear(rms_norm(x, norm_weight, eps), weight, bias)


def norm_gated_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor) -> Tensor:
    """Return silu(gate) · up, [rows, I], of RMSNorm(x) · weightᵀ; weight [2·I, K]."""
    if not _few(x, weight):
        return silu_mul(linear(rms_norm(x, norm_weight, eps), weight, None))
    if x.shape[1] > NORM_DEPTH:
        return few_rows_linear(rms_norm(x, norm_weight, eps), weight, tile_for(weight), gated=True)
    return few_rows_linear(
        x, weight, tile_for(weight), norm_weight=norm_weight, eps=eps, gated=True
    )


def linear_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """Return residual + x · weightᵀ + bias, [rows, N]; on a GPU it may overwrite residual."""
    if _few(x, weight):
        return few_rows_linear(x, weight, tile_for(weight), bias=bias, residual=residual)
    if prefers_skinny(x, weight):
        return matrix_linear(x, weight, bias, residual)
    if serves(x) and bias is None:
        return residual.addmm_(x, weight.t())  # cuBLAS adds where it stores
    return residual + F.linear(x, weight, bias)


def _few(x: Tensor, weight: Tensor) -> bool:
    """Whether a product is best done in registers."""
    few = x.shape[0] <= FEW_ROWS and weight.numel() <= SMALL_WEIGHT
    return serves(x) and (x.shape[0] == 1 or (few and x.dtype.itemsize == 2))


@dataclass(frozen=True)
class Tile:
    """What a program reads: rows of the weight, and how much of them a load covers."""

    outputs: int
    depth: int
    num_warps: int


def tile_for(weight: Tensor) -> Tile:
    """Return the best tile of a sweep over the products of the 0.6B and 8B shapes on an H200.

    Programs are small where the weight is, so that all multiprocessors get some; a deep row
    is shared by more warps, so that all of it is in flight at once.
    """
    size, depth = weight.shape
    if depth <= 1024:
        return Tile(8, 128, 2) if size * depth > SMALL_WEIGHT else Tile(4, 256, 2)
    if depth <= 2048:
        return Tile(2, 256, 1)
    return Tile(2, 512, 4) if depth <= 3072 else Tile(2, 1024, 4)


def few_rows_linear(
    x: Tensor,
    weight: Tensor,
    tile: Tile,
    *,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """The products above in one kernel; all tensors contiguous, residual overwritten.

    Args:
        norm_weight, eps: x is RMS-normalised first.
        gated: weight holds gate and up; the result is silu(gate) · up.
        residual: the result is added to it.
    """
    num_rows, depth = x.shape
    parts = 2 if gated else 1
    size = weight.shape[0] // parts
    out = x.new_empty(num_rows, size) if residual is None else residual
    early = starts_early(x)
    outputs = tile.outputs // parts
    _few_rows_kernel[(triton.cdiv(size, outputs),)](
        x,
        weight,
        weight if bias is None else bias,
        weight if norm_weight is None else norm_weight,
        eps,
        out,
        size,
        num_rows=num_rows,
        depth=depth,
        parts=parts,
        normalises=norm_weight is not None,
        adds_bias=bias is not None,
        adds_residual=residual is not None,
        block_outputs=outputs,
        block_depth=tile.depth,
        early=early,
        num_warps=tile.num_warps,
        launch_pdl=early,
    )
    return out


@jit
def _few_rows_kernel(
    x,
    weight,
    bias,
    norm_weight,
    eps,
    out,
    size,
    num_rows: tl.constexpr,
    depth: tl.constexpr,
    parts: tl.constexpr,
    normalises: tl.constexpr,
    adds_bias: tl.constexpr,
    adds_residual: tl.constexpr,
    block_outputs: tl.constexpr,
    block_depth: tl.constexpr,
    early: tl.constexpr,
):
    """A program's share of the weight is all in flight before it waits for x."""
    part = tl.arange(0, parts * block_outputs)
    output = tl.program_id(0) * block_outputs + part // parts
    weight_row = (output + (part % parts) * size).to(tl.int64)[:, None]
    needed = (output < size)[:, None]
    k = tl.arange(0, block_depth)[None, :]
    tiles = ()
    for start in tl.static_range(0, depth, block_depth):
        place = weight + weight_row * depth + start + k
        mask = needed & (start + k < depth)
        tile = tl.load(place, mask, other=0.0, eviction_policy="evict_first")
        tiles += (tile,)  # type: ignore[assignment]
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for row in tl.static_range(num_rows):
        total = tl.zeros((parts * block_outputs, block_depth), tl.float32)
        squares = tl.zeros((parts * block_outputs, block_depth), tl.float32)
        for i in tl.static_range(len(tiles)):
            column = tl.broadcast_to(i * block_depth + k, total.shape)
            inside = column < depth
            values = tl.load(x + row * depth + column, inside, other=0.0).to(tl.float32)
            if normalises:
                squares += values * values
                values *= tl.load(norm_weight + column, inside, other=0.0).to(tl.float32)
            total += tiles[i].to(tl.float32) * values
        result = tl.sum(total, axis=1)
        if normalises:
            result *= tl.rsqrt(tl.sum(squares, axis=1) / depth + eps)
        if parts == 2:
            gate, up = tl.split(tl.reshape(result, (block_outputs, 2)))
            result = gate * tl.sigmoid(gate) * up
        column = tl.program_id(0) * block_outputs + tl.arange(0, block_outputs)
        stored = column < size
        place = out + row * size + column
        if adds_bias:
            result += tl.load(bias + column, stored, other=0.0).to(tl.float32)
        if adds_residual:
            result += tl.load(place, stored, other=0.0).to(tl.float32)
        tl.store(place, result.to(out.dtype.element_ty), stored)
