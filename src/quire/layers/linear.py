"""Linear layers that load in shards and leave the arithmetic to a `QuantMethod`.

Query, key and value projections are one matrix, gate and up another: fewer, larger
products. A checkpoint stores them apart, so a fused layer names its shards.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from quire.errors import CheckpointError
from quire.kernels.linear import linear
from quire.layers.module import Layer


class QuantMethod(Protocol):
    """Swap point: how a linear layer stores its weight and multiplies by it."""

    def create_weights(self, layer: Linear, dtype: torch.dtype, device: torch.device) -> None:
        """Register the layer's parameters, empty."""
        ...

    def load_shard(self, layer: Linear, name: str, shard: str, tensor: Tensor) -> None:
        """Copy one checkpoint tensor (`name` is "weight" or "bias") into its part."""
        ...

    def finish_load(self, layer: Linear) -> None:
        """Transform the weights once all shards are there."""
        ...

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """Return x @ weight.T + bias; x is [num_tokens, in_features]."""
        ...


class Unquantized:
    """Weights as the checkpoint has them, in the engine's dtype."""

    def create_weights(self, layer: Linear, dtype: torch.dtype, device: torch.device) -> None:
        """Register `weight` [out_features, in_features] and, if asked, `bias`."""
        shape = (layer.out_features, layer.in_features)
        layer.weight = nn.Parameter(torch.empty(shape, dtype=dtype, device=device), False)
        bias = torch.empty(layer.out_features, dtype=dtype, device=device)
        layer.bias = nn.Parameter(bias, False) if layer.has_bias else None

    def load_shard(self, layer: Linear, name: str, shard: str, tensor: Tensor) -> None:
        """Copy a tensor into the rows of its shard."""
        begin, size = layer.shard_rows[shard]
        parameter: Tensor = getattr(layer, name)
        part = parameter[begin : begin + size]
        if part.shape != tensor.shape:
            raise CheckpointError(
                f"shape {list(tensor.shape)} where the config asks for {list(part.shape)}"
            )
        part.copy_(tensor)

    def finish_load(self, layer: Linear) -> None:
        """Nothing to transform."""

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """One matrix product; a few rows on a GPU have a kernel of their own."""
        return linear(x, layer.weight, layer.bias)


class OneDNN(Unquantized):
    """float32 weights on a CPU, packed into the blocks that oneDNN's kernels read.

    The plain product goes through the BLAS that torch was built with, which may know the
    processor badly. On an AMD EPYC the packed form is more than twice as fast, at one token
    as at hundreds (measurements/linear-cpu.json).
    """

    @staticmethod
    def available() -> bool:
        """Whether torch was built with oneDNN and its linear operator."""
        return torch.backends.mkldnn.is_available() and hasattr(
            torch.ops.mkldnn, "_linear_pointwise"
        )

    def finish_load(self, layer: Linear) -> None:
        """Replace the weight by its packed copy, which only oneDNN can read."""
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
        layer.weight = nn.Parameter(packed, False)

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """One matrix product; "none" asks for no activation after it."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise.default(
            x, layer.weight, layer.bias, "none", [], ""
        )
        return product


def unquantized_method(dtype: torch.dtype, device: torch.device) -> QuantMethod:
    """Return what multiplies fastest by weights as they are, in this dtype on this device."""
    if device.type == "cpu" and dtype == torch.float32 and OneDNN.available():
        return OneDNN()
    return Unquantized()


class Linear(Layer):
    """y = x W^T + b over one or more shards stacked along the output.

    `shards` maps a checkpoint's name for each part to its output features, in order.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        shards: dict[str, int],
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        method: QuantMethod | None = None,
    ) -> None:
        """Create the layer with its weights empty."""
        super().__init__()
        self.in_features = in_features
        self.out_features = sum(shards.values())
        self.has_bias = bias
        self.shard_rows: dict[str, tuple[int, int]] = {}  # name → first row, number of rows
        begin = 0
        for name, size in shards.items():
            self.shard_rows[name] = (begin, size)
            begin += size
        self.method: QuantMethod = method or unquantized_method(dtype, device)
        self.method.create_weights(self, dtype, device)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x, [num_tokens, in_features]."""
        return self.method.apply(self, x)
