"""GPTQ: columns are rounded one after another, and the later ones make up for the error.

After Frantar, Ashkboos, Hoefler and Alistarh 2023 (arXiv 2210.17323) and their code. What counts
is not how far a weight moves but how far the layer's outputs do, tr(E H Eᵀ) with H = Σ x xᵀ
over calibration inputs. Once column k is rounded, the columns behind it move to where that
error is least; how far they move is a row of the Cholesky factor of H's inverse. See the
chapter "Quantization".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.errors import QuireError
from quire.quantization.codes import Codes
from quire.quantization.rounding import grid
from quire.quantization.scheme import Scheme

BLOCK = 128  # columns whose error reaches the columns behind the block in one product
DAMP = 0.01


# docs: factor begin
@dataclass(frozen=True)
class Compensation:
    """How the columns not yet rounded answer the error of one that is.

    `upper` is U of Uᵀ U = H⁻¹, columns in the order of rounding. With the columns before k
    rounded, the inverse of what is left of H has its first row in U: it is U[k, k] · U[k, k:].
    """

    upper: Tensor  # float32 [K, K]
    order: Tensor  # int64 [K], the column that is rounded first, second, …

    @classmethod
    def of(cls, hessian: Tensor, damp: float = DAMP, act_order: bool = False) -> Compensation:
        """Factorise Σ x xᵀ, float32 [K, K]; it stays as it is.

        Args:
            damp: share of the mean of H's diagonal that is added to it. Few tokens leave
                directions that no input had, and there H alone would let weights run away.
            act_order: round the columns with the largest inputs first, while all others
                can still make up for them.

        Raises:
            QuireError: inputs were not finite, or H has no factor.
        """
        matrix = hessian.double()  # with damping the condition reaches 100 K: too much for float32
        diagonal = matrix.diagonal()
        if not bool(torch.isfinite(diagonal).all()):
            raise QuireError(
                "calibration inputs are not finite numbers: does the original model give text?"
            )
        dead = diagonal == 0  # an input that was always 0 says nothing: rounded to nearest
        mean = diagonal[~dead].mean() if not bool(dead.all()) else torch.ones_like(diagonal[0])
        diagonal[dead] = mean
        diagonal += damp * mean
        order = torch.arange(len(diagonal), device=hessian.device)
        if act_order:
            order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
            matrix = matrix[order][:, order]
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            raise QuireError(
                f"damp={damp}: H has no Cholesky factor; try a larger one, such as 0.1"
            )
        inverse = torch.cholesky_inverse(lower)
        return cls(torch.linalg.cholesky(inverse, upper=True).float(), order)


# docs: factor end


# docs: gptq begin
def gptq(
    weight: Tensor,
    compensation: Compensation,
    scheme: Scheme,
    scale_dtype: torch.dtype = torch.bfloat16,
) -> Codes:
    """Return the codes of a weight [N, K].

    The grid is that of rounding to nearest, from the weight as it was: groups keep their
    places whatever the order of rounding, and a reader of the codes needs no order.
    """
    scale, zero = grid(weight, scheme, scale_dtype)
    columns, order = weight.shape[1], compensation.order
    group_of = order // (scheme.group_size or columns)
    work = weight.float().T[order].contiguous()  # [K, N]: a column of the weight is a row here
    codes = torch.empty(work.shape, dtype=torch.uint8, device=weight.device)
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        upper = compensation.upper[begin:end]
        scales = scale.T[group_of[begin:end]]
        middle = _middle(zero, scheme, group_of[begin:end], scales)
        block, errors = work[begin:end], torch.empty_like(scales)
        for i in range(end - begin):
            code = (block[i] / scales[i]).round_().add_(middle[i]).clamp_(0, (1 << scheme.bits) - 1)
            codes[begin + i] = code.to(torch.uint8)
            errors[i] = (block[i] - (code - middle[i]) * scales[i]) / upper[i, begin + i]
            block[i + 1 :].addr_(upper[i, begin + i + 1 : end], errors[i], alpha=-1)
        work[end:].addmm_(upper[:, end:].T, errors, alpha=-1)
    values = torch.empty_like(codes)
    values[order] = codes
    return Codes(values.T.contiguous(), scale, zero, scheme.bits, scheme.group_size)


# docs: gptq end


def _middle(zero: Tensor | None, scheme: Scheme, groups: Tensor, like: Tensor) -> Tensor:
    """Return the code that stands for 0 in some columns, float32 [columns, N]."""
    if zero is None:
        return torch.full_like(like, 1 << (scheme.bits - 1))
    return zero.float().T[groups]
