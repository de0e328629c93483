"""AWQ: columns that meet large inputs are made larger before rounding, the inputs smaller.

After Lin, Tang, Tang, Yang and others 2024 (arXiv 2306.00978) and their code. In a group the step
is the same for every column, so that a column twice as large is rounded half as coarsely in
proportion. s = (mean|x|)^α; α is the best of twenty by the error of the layer's outputs. See
the chapter "Quantization".
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.quantization.algorithms.calibration import output_error
from quire.quantization.rounding import round_to_nearest
from quire.quantization.scheme import Scheme

STEPS = 20
SMALLEST = 1e-4  # of a feature's scale before all are brought around 1


# docs: awq begin
def search_scales(
    weight: Tensor,
    hessian: Tensor,
    mean_magnitude: Tensor,
    scheme: Scheme,
    scale_dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, float]:
    """Return what to multiply each column of a weight by, float32 [K], and the α behind it.

    Args:
        weight: of every layer that reads the inputs, one above the other, [N, K].
        hessian: Σ x xᵀ over calibration inputs, [K, K].
        mean_magnitude: mean |x| of each input feature, [K].

    α = 0 leaves the weight as it is: rounding to nearest is one of the twenty.
    """
    weight = weight.float()
    best, best_alpha, least = torch.ones_like(mean_magnitude), 0.0, float("inf")
    for step in range(STEPS):
        alpha = step / STEPS
        scales = _scales(mean_magnitude, alpha)
        rounded = round_to_nearest(weight * scales, scheme, scale_dtype).dequantize() / scales
        error = output_error(rounded - weight, hessian)
        if error < least:
            best, best_alpha, least = scales, alpha, error
    return best, best_alpha


def _scales(mean_magnitude: Tensor, alpha: float) -> Tensor:
    """Return mean_magnitude ** alpha, the largest and the smallest as far above 1 as below."""
    scales = mean_magnitude.pow(alpha).clamp(min=SMALLEST)
    seen = mean_magnitude > 0
    if alpha == 0 or not bool(seen.any()):
        return torch.ones_like(scales)
    scales = scales / (scales[seen].max() * scales[seen].min()).sqrt()
    return torch.where(seen, scales, torch.ones_like(scales))  # never seen: nothing to protect


# docs: awq end
