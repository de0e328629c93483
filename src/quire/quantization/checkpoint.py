"""`QuantConfig`: how a checkpoint stores each of its linear layers, by its `config.json`.

Every producer has its own table and its own way to name layers; here they all end in one
question: given a layer's name, which `WeightFormat`? See the chapter "Quantization".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.errors import CheckpointError
from quire.models.config import ModelConfig
from quire.quantization.formats.awq import AWQ
from quire.quantization.formats.fp8 import FP8
from quire.quantization.formats.gptq import GPTQ
from quire.quantization.formats.groups import block_of, format_of
from quire.quantization.formats.interface import WeightFormat
from quire.quantization.formats.names import (
    begins_with,
    contained,
    module_or_suffix,
    named,
    names_layer,
    whole_or_regex,
)
from quire.quantization.formats.options import (
    bits_of,
    flag,
    names,
    size_of_groups,
    table,
    unsupported,
)
from quire.quantization.scheme import Inputs, Scheme

HEAD = "lm_head"
LAYER_CLASSES = ("Linear", "Module")  # that a pattern of compressed-tensors may mean
Choice = Callable[[str], WeightFormat | None]


# docs: config begin
@dataclass(frozen=True)
class QuantConfig:
    """What a `quantization_config` says, layer by layer.

    Args:
        method: its `quant_method`.
        choose: how a layer is stored, by its full name in the checkpoint; None: unquantized.
    """

    method: str
    choose: Choice = field(repr=False)

    @classmethod
    def of(cls, options: Mapping[str, Any], model: ModelConfig | None = None) -> QuantConfig:
        """Translate a `quantization_config`.

        Args:
            options: the table in `config.json`.
            model: what else the file says: a head that is tied cannot be quantized.

        Raises:
            CheckpointError: a value that makes no sense.
            UnsupportedModelError: a method or option that quire lacks; the message names it.
        """
        method = str(options.get("quant_method", "")).lower()
        if method not in METHODS:
            raise unsupported(f"quant_method={options.get('quant_method')!r}")
        choose = METHODS[method](options)
        untied = model is not None and not model.tie_word_embeddings
        if untied and choose(HEAD) is not None:
            raise unsupported(
                f"a quantized {HEAD}", f"quantize the model again and leave {HEAD} out"
            )
        return cls(method, choose)

    def format_for(self, name: str) -> WeightFormat | None:
        """Return how a layer is stored, "model.layers.0.mlp.up_proj" say.

        None: as in a checkpoint without quantization, like the head always.
        """
        return None if name == HEAD else self.choose(name)

    def for_shards(self, names: Sequence[str]) -> WeightFormat | None:
        """Return how all parts of a fused layer are stored.

        Raises:
            CheckpointError: two of them differ; the message names both.
        """
        first = self.format_for(names[0])
        for name in names[1:]:
            other = self.format_for(name)
            if other != first:
                raise CheckpointError(
                    f"quantization_config stores {names[0]} as {_described(first)} and {name} as "
                    f"{_described(other)}; quire multiplies by them as one matrix, so quantize the "
                    "model again with both alike"
                )
        return first


# docs: config end


def _described(stored: WeightFormat | None) -> str:
    return "unquantized numbers" if stored is None else str(stored)


def _compressed_tensors(options: Mapping[str, Any]) -> Choice:
    """Several groups of layers, each with a scheme and targets, and a list of layers left out.

    Of several targets that fit, the most particular counts, as in compressed-tensors'
    `match_targets`: a whole name, then a regular expression, then a class.
    """
    for key in ("kv_cache_scheme", "transform_config"):
        if options.get(key):
            raise unsupported(f"{key}={options[key]!r}")
    if (table(options, "sparsity_config") or {}).get("format", "dense") != "dense":
        raise unsupported(f"sparsity_config={options['sparsity_config']!r}")
    storage, ignored = str(options.get("format")), names(options, "ignore")
    targets: dict[str, WeightFormat | None] = {}
    for group_name in table(options, "config_groups") or {}:
        group = table(options["config_groups"], group_name) or {}
        stored = format_of(group, group_name, storage)
        targets.update(dict.fromkeys(names(group, "targets"), stored))
    by_name = sorted(targets, key=lambda target: (target.startswith("re:"), target))

    def choose(name: str) -> WeightFormat | None:
        if any(kind in ignored for kind in LAYER_CLASSES) or named(name, ignored, whole_or_regex):
            return None
        for target in by_name:
            if names_layer(name, target, whole_or_regex):
                return targets[target]
        return next((targets[kind] for kind in LAYER_CLASSES if kind in targets), None)

    return choose


def _gptq(options: Mapping[str, Any]) -> Choice:
    """One scheme for all layers in the blocks; `dynamic` changes or lifts it for some."""
    for key in ("is_marlin_format", "rotation"):
        if options.get(key):
            raise unsupported(f"{key}={options[key]!r} of GPTQ")
    if options.get("pack_dtype", "int32") != "int32":
        raise unsupported(f"pack_dtype={options['pack_dtype']!r} of GPTQ")
    overrides = table(options, "dynamic") or {}
    wanted = _flat(options.get("modules_in_block_to_quantize"))
    usual = _gptq_format(options)
    special: dict[str, GPTQ | None] = {}
    for pattern in overrides:
        change = table(overrides, pattern) or {}
        if unknown := set(change) - {"bits", "group_size", "sym", "desc_act"}:
            raise unsupported(f"dynamic {pattern!r} of GPTQ with {sorted(unknown)}")
        skipped = pattern.startswith("-:")
        special[pattern] = None if skipped else _gptq_format({**options, **change})
    quantizes_head = flag(options, "lm_head", False)

    def choose(name: str) -> WeightFormat | None:
        for pattern, stored in special.items():
            if begins_with(name, pattern.removeprefix("-:").removeprefix("+:")):
                return stored
        if name == HEAD:
            return usual if quantizes_head else None
        if wanted and not named(name, wanted, contained):
            return None
        return usual

    return choose


def _gptq_format(options: Mapping[str, Any]) -> GPTQ:
    versions = {"gptq": 1, "gptq_v2": 2}
    label = options.get("checkpoint_format") or options.get("format") or "gptq"
    if label not in versions:
        raise unsupported(f"checkpoint_format={label!r} of GPTQ")
    size = size_of_groups(options, "group_size", 128)
    symmetric = flag(options, "sym", True)
    scheme = Scheme("int", bits_of(options, "bits"), size, symmetric=symmetric)
    # Where a row is one group, its columns' order is no business of ours.
    act_order = flag(options, "desc_act", False) and size is not None
    return GPTQ(scheme, versions[label], act_order)


def _awq(options: Mapping[str, Any]) -> Choice:
    """One scheme for all layers but a list of parts of names."""
    version = str(options.get("version") or options.get("format") or "gemm").lower()
    if version != "gemm":
        raise unsupported(f"version={version!r} of AWQ")
    size = size_of_groups(options, "group_size", 128)
    symmetric = not flag(options, "zero_point", True)
    stored = AWQ(Scheme("int", bits_of(options, "bits", (4,)), size, symmetric=symmetric))
    return _all_but(stored, names(options, "modules_to_not_convert"), contained)


def _fp8(options: Mapping[str, Any]) -> Choice:
    """Blocks, or a scale a matrix; all layers but a list of modules, which has two names."""
    ignored = names(options, "modules_to_not_convert") + names(options, "ignored_layers")
    activations = options.get("activation_scheme", "dynamic")
    if activations not in ("dynamic", "static") or options.get("fmt", "e4m3") != "e4m3":
        raise unsupported(f"activation_scheme={activations!r}, fmt={options.get('fmt')!r} of FP8")
    if options.get("weight_block_size") is None:
        inputs: Inputs = "tensor" if activations == "static" else "token"
        return _all_but(FP8(Scheme("fp8", 8, inputs=inputs)), ignored, module_or_suffix)
    if activations != "dynamic":
        raise unsupported("activation_scheme='static' of FP8 in blocks")
    rows, columns = block_of(options, "weight_block_size")
    scheme = Scheme("fp8", 8, columns, rows, inputs="group")
    return _all_but(FP8(scheme, "weight_scale_inv"), ignored, module_or_suffix)


def _all_but(
    stored: WeightFormat, ignored: Sequence[str], matches: Callable[[str, str], bool]
) -> Choice:
    """All layers alike, but those that a list names, and the head."""
    return lambda name: None if name == HEAD or named(name, ignored, matches) else stored


def _flat(value: Any) -> tuple[str, ...]:
    """Return the names in a list, or in a list of lists."""
    if isinstance(value, list | tuple):
        return tuple(name for part in value for name in _flat(part))
    return () if value is None else (str(value),)


METHODS: dict[str, Callable[[Mapping[str, Any]], Choice]] = {
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
}
