"""Quantized layers on a GPU from compute capability 8.0 on: codes stay codes until a product."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quire.kernels.eight_bits import eight_bit_linear
from quire.kernels.int4 import int4_linear
from quire.kernels.int4_packing import PackedInt4, pack_int4, unpack_int4_torch
from quire.kernels.round_inputs import Rounded, Rounding, round_rows
from quire.kernels.runtime import capability, runs_triton
from quire.kernels.tiles import make_counters
from quire.layers.linear import Linear
from quire.quantization.codes import Codes
from quire.quantization.formats.interface import WeightFormat
from quire.quantization.method import Quantized
from quire.quantization.rounding import FP8


class Int4OnGPU(Quantized):
    """Weights of four bits, inputs as they are."""

    packed: PackedInt4

    @staticmethod
    def serves(stored_as: WeightFormat, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether layers of this format can be packed here."""
        scheme = stored_as.scheme
        size = scheme.group_size
        fits = size is None or size in (32, 64) or size % 128 == 0
        four = (scheme.kind, scheme.bits, scheme.inputs) == ("int", 4, "plain")
        return four and fits and dtype == torch.bfloat16 and runs_triton(device)

    def pack(self, layer: Linear, codes: Codes) -> None:
        """Pack for `int4_linear`; columns of one group come to lie together."""
        self._order: Tensor | None = None  # int64 [K], where the columns lie apart
        values, size = codes.values, codes.group_size
        if codes.group_of is not None:
            self._order = torch.argsort(codes.group_of, stable=True)
            values = values[:, self._order]
            size = _even_size(codes.group_of)
        columns = values.shape[1]
        size = size or -(-columns // 128) * 128
        self.packed = pack_int4(values, codes.scale, codes.whole_zero(), size)
        layer.weight = nn.Parameter(self.packed.words, False)  # counted as the layer's memory

    def multiply(self, layer: Linear, x: Tensor) -> Tensor:
        """Unpack and multiply in one kernel."""
        if self._order is not None:
            x = x.index_select(1, self._order)
        return int4_linear(x, self.packed, layer.bias)

    def dequantize(self, layer: Linear) -> Tensor:
        """Unpack the weight."""
        weight = unpack_int4_torch(self.packed)
        return weight if self._order is None else weight[:, torch.argsort(self._order)]


class EightBitsOnGPU(Quantized):
    """INT8 or FP8 on both sides; the layer in front may round the inputs (`RoundingMethod`)."""

    input_rounding: Rounding

    @staticmethod
    def serves(stored_as: WeightFormat, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether products of this format run here: FP8 needs compute capability 8.9."""
        scheme = stored_as.scheme
        groups = scheme.group_size == 128 if scheme.inputs == "group" else scheme.group_size is None
        least = (8, 9) if scheme.kind == "fp8" else (8, 0)
        rounds = scheme.inputs != "plain" and scheme.symmetric and scheme.bits == 8 and groups
        return rounds and dtype == torch.bfloat16 and capability(device) >= least

    def pack(self, layer: Linear, codes: Codes) -> None:
        """Keep codes [N, K] and scales float32 [N, G]."""
        values = codes.values
        if not codes.is_float:
            values = (values.int() - codes.middle).to(torch.int8)
        layer.weight = nn.Parameter(values.contiguous(), False)
        self._scale = codes.scale.contiguous()
        self._counters = make_counters(layer.out_features, self._device)
        self.input_rounding = Rounding(
            FP8 if self.scheme.kind == "fp8" else torch.int8,
            self.scheme.group_size if self.scheme.inputs == "group" else None,
            self.input_scale,
        )

    def multiply(self, layer: Linear, x: Tensor) -> Tensor:
        """Round x, multiply codes, scale."""
        return self.apply_rounded(layer, round_rows(x, self.input_rounding))

    def apply_rounded(self, layer: Linear, x: Rounded) -> Tensor:
        """Multiply codes, scale."""
        return eight_bit_linear(
            *x, layer.weight, self._scale, layer.bias, self._counters, self._dtype
        )

    def dequantize(self, layer: Linear) -> Tensor:
        """Return codes times scales."""
        groups = torch.arange(layer.in_features, device=self._device) // 128
        scale = self._scale if self._scale.shape[1] == 1 else self._scale[:, groups]
        return layer.weight.float() * scale


def _even_size(group_of: Tensor) -> int:
    """Return the columns of a group; the last may have fewer."""
    counts = torch.bincount(group_of)
    return int(counts.max())
