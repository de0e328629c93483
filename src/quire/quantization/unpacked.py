"""Quantized layers where none of quire's kernels runs: a CPU, a GPU of before Ampere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quire.layers.linear import Linear, MethodFactory
from quire.quantization.codes import Codes
from quire.quantization.formats.interface import WeightFormat
from quire.quantization.inputs import round_inputs, rounded_inputs
from quire.quantization.method import Quantized


class Unpacked(Quantized):
    """Codes turned into plain numbers once, which multiply as any weight does.

    On a CPU a product of a few tokens reads its weight from the cache, and unpacking it anew
    would cost more than reading. Of the memory nothing is saved.
    """

    def __init__(self, stored_as: WeightFormat, plain: MethodFactory) -> None:
        """Multiply by what `plain` makes of the numbers."""
        super().__init__(stored_as)
        self._plain_for = plain

    def pack(self, layer: Linear, codes: Codes) -> None:
        """Dequantize, and let the plain method pack the result."""
        layer.weight = nn.Parameter(codes.dequantize().to(self._dtype), False)
        layer.method = self._plain_for(tuple(layer.shard_rows))
        layer.method.finish_load(layer)  # which may leave the layer to a faster one
        self._plain, layer.method = layer.method, self

    def multiply(self, layer: Linear, x: Tensor) -> Tensor:
        """Multiply by the plain numbers, after rounding x where the scheme says so."""
        if self.scheme.inputs != "plain":
            x = rounded_inputs(x, self.scheme, self.input_scale)
        return self._plain.apply(layer, x)

    def dequantize(self, layer: Linear) -> Tensor:
        """Return the plain numbers."""
        return self._plain.dequantize(layer)


class IntegersOnCPU(Quantized):
    """Eight bits on both sides: a product of integers, exact until it is scaled.

    Of the shapes of quire-mini it takes 0.6 to 0.9 of the time of rounding x and multiplying
    plain numbers (two threads of a Xeon with VNNI).
    """

    def pack(self, layer: Linear, codes: Codes) -> None:
        """Keep int8 codes [N, K] and a scale a row, float32 [N]."""
        layer.weight = nn.Parameter((codes.values.int() - codes.middle).to(torch.int8), False)
        self._scale = codes.scale[:, 0].contiguous()

    def multiply(self, layer: Linear, x: Tensor) -> Tensor:
        """Round x, multiply codes, scale."""
        codes, scale = round_inputs(x, self.scheme, self.input_scale)
        product = torch._int_mm(codes, layer.weight.t()).float().mul_(scale).mul_(self._scale)
        if layer.bias is not None:
            product += layer.bias
        return product.to(x.dtype)

    def dequantize(self, layer: Linear) -> Tensor:
        """Return codes times scales."""
        return layer.weight.float() * self._scale[:, None]


def multiplies_integers(codes_of: WeightFormat) -> bool:
    """Whether `IntegersOnCPU` serves layers of this format."""
    scheme = codes_of.scheme
    eight = (scheme.kind, scheme.bits, scheme.group_size, scheme.symmetric)
    return eight == ("int", 8, None, True) and scheme.inputs in ("token", "tensor")
