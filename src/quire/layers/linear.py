"""Linear layers that load in shards and leave the arithmetic to a `QuantMethod`.

Query, key and value projections are one matrix, gate and up another: fewer, larger
products. A checkpoint stores them apart, so a fused layer names its shards.
"""

from __future__ import annotations

from typing import Any, Protocol

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
    processor badly (measurements/linear-cpu.json compares the two).
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
        """One matrix product."""
        return self.multiply(x, layer.weight, layer.bias)

    @staticmethod
    def multiply(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x @ weight.T + bias; "none" asks for no activation after it."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise.default(
            x, packed, bias, "none", [], ""
        )
        return product


class FBGEMM(Unquantized):
    """Weights that fit 16 bits kept in 16 bits, and multiplied in float32 by FBGEMM.

    A decode step reads every weight once and is bound by that. Checkpoints come in bfloat16,
    and a bfloat16 number from 2⁻¹⁴ to 2¹⁶ is a float16 number too: such weights are read as
    they are, turned into float32 in registers, multiplied and summed in float32. Only the
    smaller ones are rounded, by at most 2⁻²⁵.
    """

    MOST_ROWS = 1024  # 4,096 at once ran at a third of the rate

    @staticmethod
    def available() -> bool:
        """Whether torch has FBGEMM and uses it here (x86 with AVX2)."""
        return torch.backends.quantized.engine in ("x86", "fbgemm") and hasattr(
            torch.ops.quantized, "linear_dynamic_fp16"
        )

    @staticmethod
    def suits(weight: Tensor) -> bool:
        """Whether float16 loses no more of the matrix than the spacing of float32 numbers.

        That is 2⁻²³ of its norm. Weights that were trained in float32 lose far more.
        """
        lost = torch.linalg.vector_norm(weight.half().float() - weight)
        return bool(lost <= 2**-23 * torch.linalg.vector_norm(weight))

    def finish_load(self, layer: Linear) -> None:
        """Replace the weight by its packed copy, which only FBGEMM can read."""
        layer.packed = torch.ops.quantized.linear_prepack_fp16(layer.weight.detach(), layer.bias)
        layer.weight = nn.Parameter(layer.weight.new_empty(0), False)

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """One matrix product of float32 x, [num_tokens, in_features].

        `op` is the operator itself: the call around it looks, in Python, whether `packed` is
        a tracer's stand-in, which takes about 5 % of a step of one token.
        """
        multiply = torch.ops.quantized.linear_dynamic_fp16.op
        if len(x) <= FBGEMM.MOST_ROWS:
            product: Tensor = multiply(x, layer.packed)
            return product
        return torch.cat([multiply(part, layer.packed) for part in x.split(FBGEMM.MOST_ROWS)])


class CPUFloat32(Unquantized):
    """float32 on a CPU: once a layer's weights are there, what multiplies fastest by them."""

    def finish_load(self, layer: Linear) -> None:
        """Hand the layer to FBGEMM, to oneDNN, or to torch's plain product."""
        if FBGEMM.available() and FBGEMM.suits(layer.weight):
            layer.method = FBGEMM()
        elif OneDNN.available():
            layer.method = OneDNN()
        else:
            layer.method = Unquantized()
        layer.method.finish_load(layer)


def unquantized_method(dtype: torch.dtype, device: torch.device) -> QuantMethod:
    """Return what multiplies by weights as they are, in this dtype on this device."""
    if device.type == "cpu" and dtype == torch.float32:
        return CPUFloat32()
    return Unquantized()


class Linear(Layer):
    """y = x W^T + b over one or more shards stacked along the output.

    `shards` maps a checkpoint's name for each part to its output features, in order.
    """

    weight: Tensor
    bias: Tensor | None
    packed: Any  # FBGEMM's own copy of the two, where it multiplies

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
