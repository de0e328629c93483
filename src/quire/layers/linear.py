"""Linear layers that load in shards and leave the arithmetic to a `QuantMethod`.

Query, key and value projections are one matrix, gate and up another: fewer, larger
products. A checkpoint stores them apart, so a fused layer names its shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from quire.kernels.round_inputs import Rounded, Rounding
from quire.layers.module import Layer, Taker, leave
from quire.parallel.comm import Comm, PartialSum, Solo
from quire.parallel.part import Part


class QuantMethod(Protocol):
    """Swap point: how a linear layer stores its weight and multiplies by it.

    A layer is created, loaded shard by shard or filled at random, finished once, and then
    applied. A method is one layer's alone; what users see of it lies on the layer.
    """

    def tensors(self, layer: Linear) -> dict[str, bool]:
        """Name what a checkpoint stores for a shard, "weight" say; True: it must be there."""
        ...

    def create_weights(self, layer: Linear, dtype: torch.dtype, device: torch.device) -> None:
        """Register the layer's parameters, empty."""
        ...

    def load_shard(self, layer: Linear, name: str, shard: str, tensor: Tensor) -> None:
        """Copy one checkpoint tensor, `name` of `tensors`, into its shard's rows.

        The tensor is the whole shard's; `layer.shard_parts` and `layer.columns` say what of it this
        rank keeps.
        """
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


@runtime_checkable
class RoundingMethod(Protocol):
    """A `QuantMethod` that rounds its inputs, and takes them rounded from the layer in front."""

    input_rounding: Rounding  # once the weights are there

    def apply_rounded(self, layer: Linear, x: Rounded) -> Tensor:
        """Return what `apply` returns for the x that was rounded as `input_rounding` says."""
        ...


# Given the checkpoint's names of a layer's shards ("model.layers.0.self_attn.q_proj", …),
# returns the layer's method.
MethodFactory = Callable[[Sequence[str]], QuantMethod]


class Linear(Layer):
    """y = x W^T + b over one or more shards stacked along the output.

    `shards` maps the checkpoint's full name of each to its output features, in order. A rank
    keeps a `Part` of them, or of the input features: its product is then a part of a sum over the
    ranks of `reduce`.
    """

    weight: Tensor
    bias: Tensor | None
    packed: Any  # FBGEMM's own copy of the two, where it multiplies

    def __init__(
        self,
        in_features: int | Part,
        shards: Mapping[str, int | Part],
        method_for: MethodFactory,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        reduce: Comm | None = None,
    ) -> None:
        """Create the layer with its weights empty."""
        super().__init__()
        self.columns = _part(in_features)
        self.shard_parts = {name: _part(features) for name, features in shards.items()}
        self.in_features = self.columns.size
        self.out_features = sum(part.size for part in self.shard_parts.values())
        self.reduce = reduce or Solo()
        # Of the ranks whose products are added up, the first adds the bias, once.
        self.has_bias = bias and self.reduce.rank == 0
        self._ignores_bias = bias and not self.has_bias
        self.shard_rows: dict[str, tuple[int, int]] = {}  # name → first row, number of rows
        begin = 0
        for name, part in self.shard_parts.items():
            self.shard_rows[name] = (begin, part.size)
            begin += part.size
        self.method = method_for(tuple(shards))
        self.method.create_weights(self, dtype, device)

    @property
    def input_rounding(self) -> Rounding | None:
        """How the layer in front may round x on its way here; None: x is wanted as it is."""
        return self.method.input_rounding if isinstance(self.method, RoundingMethod) else None

    def forward(self, x: Tensor | Rounded) -> Tensor | PartialSum:
        """Apply to x, [num_tokens, in_features], as it is or as `input_rounding` asks for it."""
        if isinstance(x, Rounded):
            product = cast(RoundingMethod, self.method).apply_rounded(self, x)
        else:
            product = self.method.apply(self, x)
        return product if self.reduce.size == 1 else PartialSum(product, self.reduce)

    def takes(self) -> dict[str, Taker]:
        """The method's tensors of every shard."""
        takers = {
            f"{shard}.{name}": Taker(partial(self.method.load_shard, self, name, shard), required)
            for shard in self.shard_rows
            for name, required in self.method.tensors(self).items()
        }
        if self._ignores_bias:
            takers |= {f"{shard}.bias": Taker(leave) for shard in self.shard_rows}
        return takers

    def finish_load(self) -> None:
        """Let the method pack the weights."""
        self.method.finish_load(self)

    def fill_random(self, generator: torch.Generator) -> None:
        """Let the method draw what it stores."""
        self.method.fill_random(self, generator)


def _part(features: int | Part) -> Part:
    return features if isinstance(features, Part) else Part.whole(features)
