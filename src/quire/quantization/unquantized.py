"""`Unquantized`: weights as the checkpoint has them, in the engine's dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels.linear import linear
from quire.kernels.tiles import make_counters
from quire.layers.linear import Linear
from quire.layers.module import RANDOM_STD, copy_part, empty_parameter


class Unquantized:
    """See the module. Other methods that load plain weights derive from it."""

    _counters: Tensor | None = None  # of a product that several programs share, on a GPU

    def tensors(self, layer: Linear) -> dict[str, bool]:
        """Every shard has a weight and, where the layer has one, a bias."""
        return {"weight": True, "bias": True} if layer.has_bias else {"weight": True}

    def create_weights(self, layer: Linear, dtype: torch.dtype, device: torch.device) -> None:
        """Register `weight` [out_features, in_features] and, if asked, `bias`."""
        shape = (layer.out_features, layer.in_features)
        layer.weight = empty_parameter(shape, dtype, device)
        layer.bias = empty_parameter(shape[:1], dtype, device) if layer.has_bias else None

    def load_shard(self, layer: Linear, name: str, shard: str, tensor: Tensor) -> None:
        """Copy what this rank keeps of a tensor into the rows of its shard."""
        begin, size = layer.shard_rows[shard]
        place = getattr(layer, name)[begin : begin + size]
        parts = [layer.shard_parts[shard], layer.columns]
        copy_part(place, tensor, parts[: place.dim()])

    def finish_load(self, layer: Linear) -> None:
        """Nothing to transform; a tied head's weight lies on a device only now."""
        self._counters = make_counters(layer.out_features, layer.weight.device)

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """One matrix product; a few rows on a GPU have a kernel of their own."""
        return linear(x, layer.weight, layer.bias, self._counters)

    def dequantize(self, layer: Linear) -> Tensor:
        """Return the weight itself, in float32."""
        return layer.weight.float()

    def fill_random(self, layer: Linear, generator: torch.Generator) -> None:
        """Draw every element from a normal distribution."""
        layer.weight.normal_(0.0, RANDOM_STD, generator=generator)
        if layer.bias is not None:
            layer.bias.normal_(0.0, RANDOM_STD, generator=generator)
