"""SmoothQuant: inputs with a few large features are divided by what the weight is multiplied by.

After Xiao, Lin, Seznec, Wu, Demouth and Han 2023 (arXiv 2211.10438) and their code. Where inputs
are rounded with one scale a token, a feature twenty times larger than the rest takes the steps
that the rest needed. x W = (x / s)(s W) moves it into the weight, which has a scale a row and
can bear it. See the chapter "Quantization".
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-5


# docs: smoothquant begin
def smoothing_scales(largest_input: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """Return s_j = max|x_j|^α / max|w_j|^(1-α), what each input feature is to be divided by.

    Args:
        largest_input: max|x_j| over calibration tokens, [K].
        weight: of every layer that reads these inputs, one above the other, [N, K].
        alpha: how much of the difficulty moves into the weight: 0 leaves the weight's columns
            all as large, 1 the inputs' features; ½ shares it.

    A feature that was 0 in every token keeps its scale: nothing is known of it.
    """
    largest_weight = weight.float().abs().amax(0)
    scales = largest_input.clamp(min=SMALLEST) ** alpha / largest_weight.clamp(min=SMALLEST) ** (
        1 - alpha
    )
    unknown = (largest_input == 0) | (largest_weight == 0)
    return torch.where(unknown, torch.ones_like(scales), scales.clamp(min=SMALLEST))


# docs: smoothquant end
