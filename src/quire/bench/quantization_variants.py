"""The models that `quire bench quantization-quality` judges: rounded, calibrated, planted.

Each is made of a checkpoint's decoder layers in float32 whose weights are what codes stand for,
and whose inputs are rounded as a scheme says. The layers that `quire quantize` would write come
from its own parts. Two formats that the engine does not load, MXFP4 and NVFP4, are rounded here
by their definition. See the chapter "Quantization".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quire.kv.quantized import FORMATS
from quire.kv.spec import layer_specs
from quire.kv.storage import KVStorage
from quire.layers.linear import Linear
from quire.models.decoder import DecoderLayer
from quire.quantization.algorithms.calibration import Recording, Statistics
from quire.quantization.codes import Codes
from quire.quantization.inputs import LARGEST, rounded_inputs
from quire.quantization.rounding import FP8, LARGEST_FP8, round_to_nearest
from quire.quantization.scheme import Scheme
from quire.quantization.unquantized import Unquantized
from quire.quantize.layer import quantize_layer, record
from quire.quantize.recipe import Recipe
from quire.quantize.source import BLOCK_SIZE, Source, linears

SCALE_BITS = 16  # the scales of `round_to_nearest` are bfloat16
LARGEST_E2M1 = 6.0
PLANTED_CHANNELS = 6  # of each norm
PLANTED_FACTOR = 30.0
READERS = {  # of each norm in a decoder layer
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}

# A weight [N, K] to the rounded one, in float32, and the bits that it takes in all.
Rounding = Callable[[Tensor], tuple[Tensor, float]]
Noted = list[dict[str, Statistics]]  # of each layer's linear layers, by their names there


@dataclass(frozen=True)
class Changed:
    """A model's decoder layers after a change, and the bits of a weight, scales included."""

    layers: list[DecoderLayer]
    bits_a_weight: float


# --- roundings of a weight -----------------------------------------------------


def by_scheme(scheme: Scheme) -> Rounding:
    """Return rounding to nearest as `LLM(..., quantization=...)` rounds."""

    def rounded(weight: Tensor) -> tuple[Tensor, float]:
        codes = round_to_nearest(weight, scheme)
        return codes.dequantize(), code_bits(codes, scheme)

    return rounded


def by_tensor(scheme: Scheme) -> Rounding:
    """Return rounding with one scale for a whole weight: it is one row of a single group."""

    def rounded(weight: Tensor) -> tuple[Tensor, float]:
        codes = round_to_nearest(weight.reshape(1, -1), scheme)
        return codes.dequantize().view_as(weight), code_bits(codes, scheme)

    return rounded


def code_bits(codes: Codes, scheme: Scheme) -> float:
    """Return the bits of a weight's codes, scales and zeros; a block of rows has one scale."""
    rows, groups = codes.scale.shape
    scales = -(-rows // scheme.block_rows) * groups
    zeros = 0 if codes.zero is None else codes.zero.numel()
    return (codes.values.numel() + zeros) * codes.bits + scales * SCALE_BITS


def to_e2m1(x: Tensor) -> Tensor:
    """Round to 0, 0.5, 1, 1.5, 2, 3, 4 or 6 and their negatives, ties to the even mantissa.

    A number of [2**e, 2**(e + 1)) has one bit of mantissa: its step is 2**(e - 1), and below
    1, where numbers are subnormal, the step of [1, 2).
    """
    x = x.clamp(-LARGEST_E2M1, LARGEST_E2M1)
    step = torch.exp2((torch.frexp(x).exponent - 2).clamp(min=-1).float())
    return (x / step).round() * step


def mxfp4(weight: Tensor, next_from: float = 2.0) -> tuple[Tensor, float]:
    """Round to MXFP4: E2M1 with a power of two for 32 columns.

    The power puts a block's largest element into [4, 8), and what lies above 6 is cut there: so
    Microsoft's library of the MX formats does it (microxcaling, `mx_ops.py`). compressed-tensors
    takes the next power where the largest element would lie in [7, 8) and lose most
    (`mxfp_utils.py`).

    Args:
        weight: [N, K].
        next_from: the mantissa, in [1, 2), from which on the next power is taken; 2: never.
    """
    blocks = weight.float().view(len(weight), -1, 32)
    half, exponent = torch.frexp(blocks.abs().amax(-1, keepdim=True))  # half a mantissa
    scale = torch.exp2((exponent - 1 - 2 + (2 * half >= next_from)).float())
    rounded = to_e2m1(blocks / scale) * scale
    return rounded.view_as(weight), weight.numel() * 4 + scale.numel() * 8.0


def nvfp4(weight: Tensor) -> tuple[Tensor, float]:
    """Round to NVFP4: E2M1 with an E4M3 scale for 16 columns and a float32 one for the weight."""
    blocks = weight.float().view(len(weight), -1, 16)
    largest = blocks.abs().amax(-1, keepdim=True)
    whole = largest.max().clamp(min=1e-30) / (LARGEST_E2M1 * LARGEST_FP8)
    smallest = 2.0**-9  # of E4M3
    scale = (largest / LARGEST_E2M1 / whole).clamp(min=smallest).to(FP8).float() * whole
    rounded = to_e2m1(blocks / scale) * scale
    return rounded.view_as(weight), weight.numel() * 4 + scale.numel() * 8.0 + 32


# --- models ----------------------------------------------------------------------


class RoundedInputs(Unquantized):
    """Plain weights, and inputs rounded to the codes of a scheme."""

    def __init__(self, scheme: Scheme, fixed_scale: Tensor | None = None) -> None:
        """`fixed_scale` float32 [1], for inputs "tensor": found on a calibration text."""
        self.scheme = scheme
        self.fixed_scale = fixed_scale

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """Round x, [num_tokens, in_features], then multiply."""
        return super().apply(layer, rounded_inputs(x, self.scheme, self.fixed_scale))


def plain(source: Source, inputs: Scheme | None = None) -> Changed:
    """Return the model with its weights as they are, and inputs as a scheme says."""
    bits = 8.0 * source.dtype.itemsize
    return rounded(source, lambda weight: (weight, bits * weight.numel()), inputs)


def rounded(source: Source, rounding: Rounding, inputs: Scheme | None = None) -> Changed:
    """Return a model with every weight rounded by itself, and inputs as a scheme says."""
    layers, bits, count = [], 0.0, 0
    for index in range(source.config.num_layers):
        layer = source.layer(index)
        for linear in linears(layer):
            for begin, size in linear.shard_rows.values():
                rows = slice(begin, begin + size)
                linear.weight[rows], num_bits = rounding(linear.weight[rows])
                bits += num_bits
            count += linear.weight.numel()
            if inputs is not None and inputs.inputs != "plain":
                linear.method = RoundedInputs(inputs)
        layers.append(layer)
    return Changed(layers, bits / count)


def with_fixed_inputs(source: Source, scheme: Scheme, noted: Noted) -> Changed:
    """Return plain weights with inputs rounded on one scale a layer, the largest one noted."""
    changed = plain(source)
    largest_code = LARGEST[torch.int8 if scheme.kind == "int" else FP8]
    for layer, by_name in zip(changed.layers, noted, strict=True):
        for linear in linears(layer):
            largest = by_name[linear_name(linear)].largest.max()
            linear.method = RoundedInputs(scheme, largest[None] / largest_code)
    return changed


def calibrated(source: Source, recipe: Recipe, texts: Sequence[list[int]]) -> Changed:
    """Return the model that `quire quantize` would write: each layer behind quantized ones."""
    hidden = [source.embed(token_ids) for token_ids in texts]
    layers, bits, count = [], 0.0, 0
    for index in range(source.config.num_layers):
        layer = source.layer(index)
        record(source, layer, index, hidden)
        names = {name for linear in linears(layer) for name in linear.shard_rows}
        finished = quantize_layer(source, layer, recipe, names)
        layers.append(finished.rebuild(source, index, recipe.scheme))
        hidden = [source.run(layers[-1], index, states) for states in hidden]
        for codes in finished.codes.values():
            bits += code_bits(codes, recipe.scheme)
            count += codes.values.numel()
    return Changed(layers, bits / count)


def note_inputs(source: Source, texts: Sequence[list[int]]) -> Noted:
    """Return what the linear layers of the model as it is are given by a text."""
    hidden = [source.embed(token_ids) for token_ids in texts]
    noted: Noted = []
    for index in range(source.config.num_layers):
        layer = source.layer(index)
        hidden = record(source, layer, index, hidden)
        found: dict[str, Statistics] = {}
        for linear in linears(layer):
            assert isinstance(linear.method, Recording)
            assert linear.method.statistics is not None
            found[linear_name(linear)] = linear.method.statistics
        noted.append(found)
    return noted


def linear_name(linear: Linear) -> str:
    """Return "qkv_proj", "o_proj", "gate_up_proj" or "down_proj"."""
    parts = [name.rpartition(".")[2].removesuffix("_proj") for name in linear.shard_rows]
    return {"qkv": "qkv_proj", "gateup": "gate_up_proj"}.get("".join(parts), f"{parts[0]}_proj")


# --- sources -----------------------------------------------------------------------


class Planted(Source):
    """A checkpoint with outliers that leave its function as it is.

    In every norm some channels, drawn by `seed`, are multiplied by 30, and the columns that
    read them divided by it: the products are the same, their two factors are not.
    """

    def __init__(self, folder: Path, device: torch.device, longest: int, seed: int) -> None:
        super().__init__(folder, device, longest)
        generator = torch.Generator().manual_seed(seed)
        self._factors: dict[str, Tensor] = {}  # [hidden_size], by the tensor's name
        for index in range(self.config.num_layers):
            for norm, readers in READERS.items():
                drawn = torch.randperm(self.config.hidden_size, generator=generator)
                factors = torch.ones(self.config.hidden_size)
                factors[drawn[:PLANTED_CHANNELS]] = PLANTED_FACTOR
                self._factors[f"model.layers.{index}.{norm}.weight"] = factors
                for reader in readers:
                    self._factors[f"model.layers.{index}.{reader}.weight"] = 1 / factors

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, in float32 where outliers changed it."""
        stored, factors = super().tensor(name), self._factors.get(name)
        return stored if factors is None else stored.float() * factors


class SmallCache(Source):
    """A checkpoint whose layers read keys and values as codes, of `kv_cache_dtype`."""

    def __init__(self, folder: Path, device: torch.device, longest: int, name: str) -> None:
        super().__init__(folder, device, longest)
        specs = layer_specs(self.config, FORMATS[name])[:1]
        self._storage = KVStorage(specs, [0], self._num_blocks + 1, BLOCK_SIZE, device)
