"""Tiny quantized checkpoints of every architecture and format, written without quire's readers.

Beside each checkpoint lies the one that it stands for, in float32, which transformers loads: it
is the oracle's. `weight_packers` says where the bytes come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints import Spec, write
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor
from weight_packers import Tensors, awq, compressed, fp8_blocks, gptq, out_of_order

Pack = Callable[[Tensor], tuple[Tensors, Tensor]]  # a weight → its tensors, what they stand for


@dataclass(frozen=True)
class Kind:
    """A format: its table in `config.json`, and how it stores one weight [N, K]."""

    config: dict[str, Any]
    pack: Pack
    inputs: str = "plain"  # what a layer's inputs are rounded to; see `Scheme.inputs`
    ignore: str = "ignore"  # the key of the layers left out


def _ct(storage: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> Kind:
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(**weights),
        input_activations=None if inputs is None else QuantizationArgs(**inputs),
        format=storage,
    )
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=storage,
        quantization_status="compressed",
        ignore=["lm_head"],
    )
    rounds = "plain" if inputs is None else str(inputs["strategy"])
    return Kind(json.loads(config.model_dump_json()), lambda w: compressed(scheme, w), rounds)


def _old_act_order() -> Kind:
    config = _ct("pack-quantized", {"num_bits": 4, "group_size": 16}).config
    config = json.loads(json.dumps(config))
    config["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    return Kind(config, lambda weight: out_of_order(weight, 16))


def _gptq(label: str, **how: Any) -> Kind:
    config = {
        "quant_method": "gptq",
        "checkpoint_format": label,
        "bits": how.get("bits", 4),
        "group_size": how.get("group_size", -1),
        "sym": how.get("symmetric", True),
        "desc_act": how.get("act_order", False),
        "lm_head": False,
    }
    return Kind(config, lambda weight: gptq(weight, **how), ignore="dynamic")


def _awq(group_size: int, zero_point: bool = True) -> Kind:
    config = {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": group_size,
        "zero_point": zero_point,
        "modules_to_not_convert": None,
    }
    pack: Pack = lambda weight: awq(weight, group_size, zero_point)  # noqa: E731
    return Kind(config, pack, ignore="modules_to_not_convert")


def _blocks(rows: int, columns: int) -> Kind:
    config = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [rows, columns],
    }
    pack: Pack = lambda weight: fp8_blocks(weight, (rows, columns))  # noqa: E731
    return Kind(config, pack, "group", "modules_to_not_convert")


_TOKEN = {"num_bits": 8, "strategy": "token", "dynamic": True}
_FIXED = {"num_bits": 8, "strategy": "tensor", "dynamic": False}
_FP8 = {"num_bits": 8, "type": "float"}

# The widths of the checkpoints' matrices are multiples of 16, not of 32: GPTQ's groups of 32
# end in a short one. So do blocks of 32 x 48. compressed-tensors writes no short groups.
KINDS: dict[str, Kind] = {
    "ct-int4-g16": _ct("pack-quantized", {"num_bits": 4, "group_size": 16}),
    "ct-int4-g16-asym": _ct(
        "pack-quantized", {"num_bits": 4, "group_size": 16, "symmetric": False}
    ),
    "ct-int4-channel-asym": _ct(
        "pack-quantized", {"num_bits": 4, "strategy": "channel", "symmetric": False}
    ),
    "ct-int8-g16-asym": _ct(
        "pack-quantized", {"num_bits": 8, "group_size": 16, "symmetric": False}
    ),
    "ct-int8-channel": _ct("pack-quantized", {"num_bits": 8, "strategy": "channel"}),
    "ct-int4-static-order": _ct(
        "pack-quantized", {"num_bits": 4, "group_size": 16, "actorder": "static"}
    ),
    "ct-int4-act-order": _old_act_order(),
    "ct-w8a8": _ct("int-quantized", {"num_bits": 8, "strategy": "channel"}, _TOKEN),
    "ct-w8a8-static": _ct("int-quantized", {"num_bits": 8, "strategy": "channel"}, _FIXED),
    "ct-w8a8-asym": _ct(
        "int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}, _TOKEN
    ),
    "ct-fp8": _ct("float-quantized", {**_FP8, "strategy": "channel"}, {**_FP8, **_TOKEN}),
    "ct-fp8-tensor": _ct("float-quantized", {**_FP8, "strategy": "tensor"}, {**_FP8, **_FIXED}),
    "ct-fp8-block": _ct(
        "float-quantized",
        {**_FP8, "strategy": "block", "block_structure": [128, 128]},
        {**_FP8, "strategy": "group", "group_size": 128, "dynamic": True},
    ),
    "gptq-g32": _gptq("gptq", group_size=32),
    "gptq-channel": _gptq("gptq"),
    "gptq-g32-asym": _gptq("gptq", group_size=32, symmetric=False),
    "gptq-8bit-asym": _gptq("gptq", bits=8, group_size=16, symmetric=False),
    "gptq-v2-g32": _gptq("gptq_v2", group_size=32, version=2),
    "gptq-v2-g32-asym": _gptq("gptq_v2", group_size=32, symmetric=False, version=2),
    "gptq-v2-called-v1": _gptq("gptq", group_size=32, version=2),
    "gptq-act-order": _gptq("gptq", group_size=32, act_order=True),
    "gptq-act-order-asym": _gptq("gptq", group_size=16, symmetric=False, act_order=True),
    "awq-g16": _awq(16),
    "awq-g16-symmetric": _awq(16, zero_point=False),
    "fp8-blocks": _blocks(128, 128),
    "fp8-small-blocks": _blocks(32, 48),
}


def linear_layers(tensors: Tensors) -> list[str]:
    """Names of the layers that a checkpoint's producer would quantize."""
    return sorted(name.removesuffix(".weight") for name in tensors if name.endswith("_proj.weight"))


def read_all(folder: Path) -> Tensors:
    """Every tensor of a checkpoint."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def write_quantized(
    folder: Path, spec: Spec, kind: Kind, left_out: Sequence[str] = (), seed: int = 0
) -> tuple[Path, Path]:
    """Write a checkpoint in a format, and in float32 the one that it stands for.

    Layers whose names contain a word of `left_out` stay as they are; the config says so. A
    checkpoint of several files has a layer's tensors in different ones.

    Returns:
        The two folders.
    """
    write(folder / "quantized", spec, seed)
    quantized = read_all(folder / "quantized")
    dense = dict(quantized)
    config = json.loads((folder / "quantized" / "config.json").read_text("utf-8"))
    kept = []
    for name in linear_layers(dense):
        if any(word in name for word in left_out):
            kept.append(name)
            continue
        tensors, dense[f"{name}.weight"] = kind.pack(quantized.pop(f"{name}.weight"))
        quantized.update({f"{name}.{last}": tensor for last, tensor in tensors.items()})
    _save(folder / "dense", config, dense, 1)
    table = json.loads(json.dumps(kind.config))
    if kept and kind.ignore == "dynamic":
        table["dynamic"] = {f"-:^{name}$": {} for name in kept}
    elif kept:
        table[kind.ignore] = [*(table.get(kind.ignore) or []), *kept]
    files = 1 if spec.max_shard_size == "1GB" else 2
    _save(folder / "quantized", {**config, "quantization_config": table}, quantized, files)
    return folder / "quantized", folder / "dense"


def _save(folder: Path, config: dict[str, Any], tensors: Tensors, files: int) -> None:
    """Write a checkpoint; of two files, every other tensor lies in the second."""
    folder.mkdir(exist_ok=True)
    for old in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        old.unlink()
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if files == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    names = sorted(tensors)
    where = {name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(where.values())):
        part = {name: tensors[name] for name in names if where[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
