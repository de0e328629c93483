"""One decoder layer: what its inputs are, how it is scaled, which codes its weights get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quire.layers.linear import Linear
from quire.layers.norm import RMSNorm
from quire.models.decoder import DecoderLayer
from quire.quantization.algorithms.awq import search_scales
from quire.quantization.algorithms.calibration import (
    Recording,
    Simulated,
    Statistics,
    output_error,
)
from quire.quantization.algorithms.gptq import Compensation, gptq
from quire.quantization.algorithms.smoothquant import smoothing_scales
from quire.quantization.codes import Codes
from quire.quantization.rounding import round_to_nearest
from quire.quantization.scheme import Scheme
from quire.quantize.folding import Fold, fold, folds
from quire.quantize.recipe import Recipe
from quire.quantize.source import Source, linears


@dataclass
class FinishedLayer:
    """What stands for a decoder layer in the result.

    `codes` has the weight of each quantized layer by the layer's name, `tensors` everything
    else by its name, in the checkpoint's dtype. `errors` are of outputs, relative.
    """

    codes: dict[str, Codes]
    tensors: dict[str, Tensor]
    errors: dict[str, float] = field(default_factory=dict)

    def rebuild(self, source: Source, index: int, scheme: Scheme) -> DecoderLayer:
        """Return the decoder layer as it will compute, in float32."""
        layer = source.layer(index)
        takers = layer.takes()
        for name, tensor in self.tensors.items():
            takers[name].take(tensor)
        for name, codes in self.codes.items():
            takers[f"{name}.weight"].take(codes.to(source.device).dequantize())
        for linear in linears(layer):
            if set(linear.shard_rows) <= set(self.codes):
                linear.method = Simulated(scheme)
        return layer


def record(
    source: Source, layer: DecoderLayer, index: int, hidden: Sequence[Tensor]
) -> list[Tensor]:
    """Run sequences through a layer as it is, noting the inputs of its linear layers.

    Returns:
        What comes out, a tensor [T, hidden_size] a sequence.
    """
    for linear in linears(layer):
        linear.method = Recording()
    return [source.run(layer, index, states) for states in hidden]


# docs: layer begin
def scale_layer(
    source: Source, layer: DecoderLayer, recipe: Recipe, quantized: set[str]
) -> dict[Linear, Statistics]:
    """Scale inputs against weights, if the recipe does: what the layer computes stays the same.

    Args:
        source: the checkpoint.
        layer: recorded; its weights are scaled in place.
        recipe: how.
        quantized: names of the linear layers that will be quantized.

    Returns:
        What linear layers noted, of their inputs as they are now.
    """
    statistics = {
        linear: linear.method.statistics
        for linear in linears(layer)
        if isinstance(linear.method, Recording) and linear.method.statistics is not None
    }
    if recipe.smooth is not None or recipe.method == "awq":
        for place in folds(layer, quantized):
            noted = statistics[place.after]
            scales = _scales(place, noted, recipe, source.dtype)
            noted.divide(fold(place, scales, _stored_dtype(source, place)))
    return statistics


def quantize_layer(
    source: Source, layer: DecoderLayer, recipe: Recipe, quantized: set[str]
) -> FinishedLayer:
    """Choose the codes of a decoder layer.

    The arguments are those of `scale_layer`; the layer is recorded if the recipe calibrates.
    """
    statistics = scale_layer(source, layer, recipe, quantized)
    finished = FinishedLayer({}, _plain_tensors(source, layer, quantized))
    for linear in linears(layer):
        noted = statistics.get(linear)
        compensation = None
        for name, (begin, size) in linear.shard_rows.items():
            if name not in quantized:
                continue
            weight = linear.weight[begin : begin + size]
            if recipe.method == "gptq":
                assert noted is not None
                if compensation is None:  # parts of a fused layer have the same inputs
                    compensation = Compensation.of(noted.hessian, recipe.damp, recipe.act_order)
                codes = gptq(weight, compensation, recipe.scheme, source.dtype)
            else:
                codes = round_to_nearest(weight, recipe.scheme, _scale_dtype(source, recipe))
            if noted is not None:
                finished.errors[name] = _relative_error(codes, weight, noted.hessian)
            finished.codes[name] = codes
    return finished


# docs: layer end


def _scales(place: Fold, noted: Statistics, recipe: Recipe, dtype: torch.dtype) -> Tensor:
    weight = place.after.weight
    if recipe.smooth is not None:
        return smoothing_scales(noted.largest, weight, recipe.smooth)
    return search_scales(weight, noted.hessian, noted.mean_magnitude, recipe.scheme, dtype)[0]


def _stored_dtype(source: Source, place: Fold) -> torch.dtype:
    if isinstance(place.before, RMSNorm):
        return source.tensor(f"{place.before.name}.weight").dtype
    return source.dtype


def _scale_dtype(source: Source, recipe: Recipe) -> torch.dtype:
    """Return the dtype that scales are stored in: blocks of FP8 have float32."""
    return torch.float32 if recipe.scheme.block_rows > 1 else source.dtype


def _relative_error(codes: Codes, weight: Tensor, hessian: Tensor) -> float:
    """Return ‖x Eᵀ‖ / ‖x Wᵀ‖ over the calibration tokens, E being the rounding error of W."""
    whole = output_error(weight, hessian)
    lost = output_error(codes.dequantize() - weight, hessian)
    return (lost / whole) ** 0.5 if whole > 0 else 0.0


def _plain_tensors(source: Source, layer: DecoderLayer, quantized: set[str]) -> dict[str, Tensor]:
    """Return what is not quantized: as the source has it, or as folding left it."""
    tensors = {}
    changed = _foldable(layer)
    for name, taker in layer.takes().items():
        if name.removesuffix(".weight") in quantized or not (
            taker.required or name in source.files
        ):
            continue
        stored = source.tensor(name)
        tensors[name] = changed[name].to("cpu", stored.dtype) if name in changed else stored
    return tensors


def _foldable(layer: DecoderLayer) -> dict[str, Tensor]:
    """Return the norms' weights and the biases, which folding may have changed."""
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    tensors: dict[str, Tensor] = {f"{norm.name}.weight": norm.weight for norm in norms}
    for linear in linears(layer):
        if linear.bias is not None:
            for name, (begin, size) in linear.shard_rows.items():
                tensors[f"{name}.bias"] = linear.bias[begin : begin + size]
    return tensors
