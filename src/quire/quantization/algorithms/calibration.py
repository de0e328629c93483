"""What quantization wants to know of a layer's inputs, and how it is written down.

A calibration text runs through the model, and every linear layer notes what it is given: the
second moments of its inputs, by which GPTQ and AWQ weigh an error, and how large each input
gets, by which AWQ and SmoothQuant scale. See the chapter "Quantization".
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.layers.linear import Linear
from quire.quantization.inputs import rounded_inputs
from quire.quantization.scheme import Scheme
from quire.quantization.unquantized import Unquantized


# docs: statistics begin
class Statistics:
    """Sums over every token's input x to a layer with K input features.

    A weight that is off by E [N, K] gives outputs that are off by x Eᵀ; summed over tokens the
    squares are tr(E H Eᵀ) with H = Σ x xᵀ, so that H is all one must keep of the inputs.
    """

    def __init__(self, columns: int, device: torch.device) -> None:
        """Start from nothing."""
        self.num_tokens = 0
        self.hessian = torch.zeros((columns, columns), device=device)  # Σ x xᵀ, float32 [K, K]
        self.absolute_sum = torch.zeros(columns, device=device)
        self.largest = torch.zeros(columns, device=device)

    def add(self, x: Tensor) -> None:
        """Take the inputs of some tokens, [num_tokens, K]."""
        x = x.float()
        self.num_tokens += len(x)
        self.hessian.addmm_(x.T, x)
        self.absolute_sum += x.abs().sum(0)
        self.largest = torch.maximum(self.largest, x.abs().amax(0))

    @property
    def mean_magnitude(self) -> Tensor:
        """Mean |x| of each input feature, float32 [K]."""
        return self.absolute_sum / max(1, self.num_tokens)

    def divide(self, scales: Tensor) -> None:
        """Turn into the statistics of inputs x / scales, [K]."""
        self.hessian /= torch.outer(scales, scales)
        self.absolute_sum /= scales
        self.largest /= scales


def output_error(error: Tensor, hessian: Tensor) -> float:
    """Return Σ ‖x Eᵀ‖² over the tokens behind a Hessian, E being a weight's error [N, K]."""
    return float(torch.sum((error @ hessian) * error, dtype=torch.float64))


# docs: statistics end


class Recording(Unquantized):
    """Plain weights, and a note of every input."""

    def __init__(self) -> None:
        """Nothing is noted before the first input."""
        self.statistics: Statistics | None = None

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """Note x, [num_tokens, in_features], then multiply."""
        if self.statistics is None:
            self.statistics = Statistics(layer.in_features, x.device)
        self.statistics.add(x)
        return super().apply(layer, x)


class Simulated(Unquantized):
    """What a quantized layer computes, in float32: its weight is what its codes stand for.

    The inputs are rounded as the scheme says, so that what the layers behind are given is
    what they will be given.
    """

    def __init__(self, scheme: Scheme) -> None:
        """`scheme` says how inputs are rounded."""
        self.scheme = scheme

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """Round the inputs, then multiply."""
        plain = self.scheme.inputs == "plain"
        return super().apply(layer, x if plain else rounded_inputs(x, self.scheme))
