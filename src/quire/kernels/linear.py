"""Matrix products of a few rows, which are bound by reading the weight once.

With one row a product has no reuse at all: each program takes a few rows of the weight and
multiplies them in registers. With up to 16 rows the matrix units do the work, the weight's
rows as their left operand, so that a narrow x wastes little.

What stands before or behind a product is done on the way where that saves a launch: the
residual's addition, and the gate of an MLP.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from quire.kernels.runtime import Number, Pointer, jit, serves, starts_early, tl, triton

MAX_ROWS = 16


def prefers_skinny(x: Tensor, weight: Tensor) -> bool:
    """Whether x [rows, K] · weight [N, K]ᵀ is faster here than in cuBLAS (see `tuning/`)."""
    return serves(x) and x.shape[0] == 1


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x · weightᵀ + bias, [rows, N]; x [rows, K] with 1 to 16 rows, weight [N, K]."""
    return F.linear(x, weight, bias)
