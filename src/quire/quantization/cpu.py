"""What multiplies on a CPU: float32 weights, packed for the library that is fastest by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quire.layers.linear import Linear
from quire.quantization.unquantized import Unquantized


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

    def dequantize(self, layer: Linear) -> Tensor:
        """Unpack the weight."""
        return layer.weight.to_dense()

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
    ELEMENTS_AT_ONCE = 1 << 22  # of a weight that is looked over: 48 MB of memory for it

    def __init__(self) -> None:
        """Look the operator up, once.

        `op` is the operator itself: the call around it looks, in Python, whether `packed` is
        a tracer's stand-in, which takes 1 us more.
        """
        self._multiply: Callable[[Tensor, Any], Tensor] = torch.ops.quantized.linear_dynamic_fp16.op

    @staticmethod
    def available() -> bool:
        """Whether torch has FBGEMM and uses it here (x86 with AVX2)."""
        return torch.backends.quantized.engine in ("x86", "fbgemm") and hasattr(
            torch.ops.quantized, "linear_dynamic_fp16"
        )

    @classmethod
    def suits(cls, weight: Tensor) -> bool:
        """Whether float16 loses no more of the matrix than the spacing of float32 numbers.

        That is 2⁻²³ of its norm. Weights that were trained in float32 lose far more.
        """
        rows = max(1, cls.ELEMENTS_AT_ONCE // max(1, weight.shape[1]))
        lost = whole = torch.zeros((), dtype=torch.float64)
        for part in weight.split(rows):
            lost = lost + torch.linalg.vector_norm(part.half().float() - part).double() ** 2
            whole = whole + torch.linalg.vector_norm(part).double() ** 2
        return bool(lost.sqrt() <= 2**-23 * whole.sqrt())

    def finish_load(self, layer: Linear) -> None:
        """Replace the weight by its packed copy, which only FBGEMM can read."""
        layer.packed = torch.ops.quantized.linear_prepack_fp16(layer.weight.detach(), layer.bias)
        layer.weight = nn.Parameter(layer.weight.new_empty(0), False)

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """One matrix product of float32 x, [num_tokens, in_features].

        An operator asks each argument that is no tensor for `__torch_function__`. `packed` says
        no by a C++ exception, which takes 8 of the 11 us of a product by 8 x 8 weights on one
        thread of an AMD EPYC. Here nobody asks.
        """
        with torch._C.DisableTorchFunctionSubclass():
            if x.shape[0] <= self.MOST_ROWS:
                return self._multiply(x, layer.packed)
            parts = x.split(self.MOST_ROWS)
            return torch.cat([self._multiply(part, layer.packed) for part in parts])

    def dequantize(self, layer: Linear) -> Tensor:
        """Unpack the weight, float16 numbers in float32."""
        weight: Tensor = torch.ops.quantized.linear_unpack_fp16(layer.packed)[0]
        return weight.float()


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
