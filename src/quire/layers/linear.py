"""Linear layers that load in shards and leave the arithmetic to a `QuantMethod`.

Query, key and value projections are one matrix, gate and up another: fewer, larger
products. A checkpoint stores them apart, so a fused layer names its shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from quire.layers.module import Layer, Taker


class QuantMethod(Protocol):
    """Swap point: how a linear layer stores its weight and multiplies by it.

    A layer is created, loaded shard by shard or filled at random, finished once, and then
    applied. What the method keeps, it keeps as attributes of the layer.
    """

    def tensors(self, layer: Linear) -> dict[str, bool]:
        """Name what a checkpoint stores for a shard, "weight" say; True: it must be there."""
        ...

    def create_weights(self, layer: Linear, dtype: torch.dtype, device: torch.device) -> None:
        """Register the layer's parameters, empty."""
        ...

    def load_shard(self, layer: Linear, name: str, shard: str, tensor: Tensor) -> None:
        """Copy one checkpoint tensor, `name` of `tensors`, into its shard's part."""
        ...

    def finish_load(self, layer: Linear) -> None:
        """Transform the weights once all shards are there."""
        ...

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """Return x @ weight.T + bias; x is [num_tokens, in_features]."""
        ...

    def dequantize(self, layer: Linear) -> Tensor:
        """Return the weight that `apply` multiplies by, float32 [out_features, in_features]."""
        ...

    def fill_random(self, layer: Linear, generator: torch.Generator) -> None:
        """Fill the parameters with random numbers as they come from a checkpoint."""
        ...


# Given the checkpoint's names of a layer's shards ("model.layers.0.self_attn.q_proj", …),
# returns the layer's method.
MethodFactory = Callable[[Sequence[str]], QuantMethod]


class Linear(Layer):
    """y = x W^T + b over one or more shards stacked along the output.

    `shards` maps the checkpoint's full name of each part to its output features, in order.
    """

    weight: Tensor
    bias: Tensor | None
    packed: Any  # FBGEMM's own copy of the two, where it multiplies

    def __init__(
        self,
        in_features: int,
        shards: dict[str, int],
        method_for: MethodFactory,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
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
        self.method = method_for(tuple(shards))
        self.method.create_weights(self, dtype, device)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x, [num_tokens, in_features]."""
        return self.method.apply(self, x)

    def takes(self) -> dict[str, Taker]:
        """The method's tensors of every shard."""
        return {
            f"{shard}.{name}": Taker(partial(self.method.load_shard, self, name, shard), required)
            for shard in self.shard_rows
            for name, required in self.method.tensors(self).items()
        }

    def finish_load(self) -> None:
        """Let the method pack the weights."""
        self.method.finish_load(self)

    def fill_random(self, generator: torch.Generator) -> None:
        """Let the method draw what it stores."""
        self.method.fill_random(self, generator)
