"""Which layer of a checkpoint is stored how, by its `quantization_config`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SPECS
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.lifecycle.apply import apply_quantization_config
from quantized_checkpoints import KINDS, write_quantized
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.quantizers.quantizers_utils import should_convert_module

from quire.errors import CheckpointError, UnsupportedModelError
from quire.models.config import ModelConfig
from quire.quantization.checkpoint import QuantConfig
from quire.quantization.formats.names import (
    contained,
    module_or_suffix,
    names_layer,
    whole_or_regex,
)
from quire.quantization.formats.options import REMEDY
from quire.quantization.scheme import Scheme

ATTENTION, MLP = "model.layers.1.self_attn", "model.layers.1.mlp"
QKV = [f"{ATTENTION}.{part}_proj" for part in "qkv"]
GATE_UP = [f"{MLP}.gate_proj", f"{MLP}.up_proj"]
WEIGHTS = {"num_bits": 4, "group_size": 16, "strategy": "group", "symmetric": True, "type": "int"}


def config_of(kind: str, **changes: Any) -> QuantConfig:
    return QuantConfig.of({**KINDS[kind].config, **changes})


def two_groups(first: list[str], second: list[str], ignore: list[str]) -> dict[str, Any]:
    """A config of compressed-tensors with 4 bits for some targets and 8 for others."""
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": {
            "four": {"targets": first, "weights": WEIGHTS},
            "eight": {"targets": second, "weights": {**WEIGHTS, "num_bits": 8}},
        },
    }


def bits_of(config: QuantConfig, name: str) -> int | None:
    stored = config.format_for(name)
    return None if stored is None else stored.scheme.bits


# What a config means ----------------------------------------------------------------------

MEANINGS = {
    "ct-int4-g16": Scheme("int", 4, 16),
    "ct-int4-channel-asym": Scheme("int", 4, symmetric=False),
    "ct-w8a8": Scheme("int", 8, inputs="token"),
    "ct-w8a8-static": Scheme("int", 8, inputs="tensor"),
    "ct-fp8": Scheme("fp8", 8, inputs="token"),
    "ct-fp8-tensor": Scheme("fp8", 8, inputs="tensor"),
    "ct-fp8-block": Scheme("fp8", 8, 128, 128, inputs="group"),
    "gptq-channel": Scheme("int", 4),
    "gptq-8bit-asym": Scheme("int", 8, 16, symmetric=False),
    "awq-g16": Scheme("int", 4, 16, symmetric=False),
    "fp8-blocks": Scheme("fp8", 8, 128, 128, inputs="group"),
}


@pytest.mark.parametrize("kind", MEANINGS)
def test_scheme(kind: str) -> None:
    stored = config_of(kind).for_shards(QKV)
    assert stored is not None
    assert stored.scheme == MEANINGS[kind]
    assert str(MEANINGS[kind]) in str(stored)


def test_defaults_of_the_producers() -> None:
    gptq = QuantConfig.of({"quant_method": "gptq", "bits": 4}).format_for(QKV[0])
    assert gptq is not None
    assert gptq.scheme == Scheme("int", 4, 128)
    awq = QuantConfig.of({"quant_method": "awq", "bits": 4}).format_for(QKV[0])
    assert awq is not None
    assert awq.scheme == Scheme("int", 4, 128, symmetric=False)
    for scheme, inputs in (("static", "tensor"), ("dynamic", "token")):
        fp8 = QuantConfig.of({"quant_method": "fp8", "activation_scheme": scheme})
        stored = fp8.format_for(QKV[0])
        assert stored is not None
        assert stored.scheme == Scheme("fp8", 8, inputs=inputs)
        assert stored.tensors() == {"weight": True, "weight_scale": True} | (
            {"input_scale": True} if inputs == "tensor" else {}
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_stays_as_it_is(kind: str) -> None:
    assert config_of(kind).format_for("lm_head") is None


@pytest.mark.parametrize("tied", [True, False])
def test_a_quantized_head_is_refused(tied: bool) -> None:
    """Of a tied model there is none, whatever the config says."""
    model = ModelConfig("Qwen2ForCausalLM", 8, 8, 8, 1, 1, 1, 8, 8, tie_word_embeddings=tied)
    for options in (
        {**KINDS["ct-int4-g16"].config, "ignore": []},
        {**KINDS["gptq-g32"].config, "lm_head": True},
    ):
        if tied:
            assert QuantConfig.of(options, model).format_for("lm_head") is None
        else:
            with pytest.raises(UnsupportedModelError, match="a quantized lm_head is not supported"):
                QuantConfig.of(options, model)
    for kind in ("ct-int4-g16", "gptq-g32", "awq-g16", "fp8-blocks"):
        QuantConfig.of(KINDS[kind].config, model)


# Which layers -----------------------------------------------------------------------------

TARGETS = [
    "Linear",
    "Module",
    "Embedding",
    f"{ATTENTION}.q_proj",
    f"{MLP}.down_proj",
    r"re:.*up_proj$",
    r"re:.*\.layers\.1\.",
    r"re:.*self_attn.*",
    "re:layers",  # fits no beginning
]


@pytest.mark.parametrize("first", TARGETS)
@pytest.mark.parametrize("second", TARGETS)
@pytest.mark.parametrize("ignore", [[], ["lm_head", r"re:.*[kv]_proj"], ["lm_head", "Linear"]])
def test_targets_mean_what_compressed_tensors_applies(
    first: str, second: str, ignore: list[str]
) -> None:
    """The same config applied by their library to transformers' model, layer by layer."""
    options = two_groups([first], [second], ignore)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                "llama", hidden_size=8, num_hidden_layers=2, intermediate_size=8, vocab_size=8,
                num_attention_heads=1, num_key_value_heads=1,
            )
        )  # fmt: skip
    apply_quantization_config(model, QuantizationConfig(**options), show_progress=False)
    config = QuantConfig.of(options)
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        scheme = getattr(module, "quantization_scheme", None)
        expected = None if scheme is None else scheme.weights.num_bits
        assert bits_of(config, name) == expected, name


@pytest.mark.parametrize(
    "pattern",
    [
        "model.layers.1",
        "model.layers.1.mlp",
        "mlp",
        "down_proj",
        "layers.*mlp",
        "model.*up_proj",
        "o",
    ],
)
def test_modules_to_not_convert_as_transformers_reads_them(pattern: str) -> None:
    config = config_of("fp8-blocks", modules_to_not_convert=[pattern])
    for layer in (1, 11):
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
            name = f"model.layers.{layer}.{part}"
            converted = should_convert_module(name, [pattern])
            assert (config.format_for(name) is not None) == converted, name


def test_ignored_layers_is_the_other_name_of_the_list() -> None:
    config = config_of("fp8-blocks", ignored_layers=[f"{MLP}.down_proj"])
    assert config.format_for(f"{MLP}.down_proj") is None
    assert config.format_for(f"{MLP}.up_proj") is not None


def test_awq_leaves_out_every_layer_with_a_word_in_its_name() -> None:
    config = config_of("awq-g16", modules_to_not_convert=["layers.1", "up"])
    assert config.format_for(f"{ATTENTION}.q_proj") is None
    assert config.format_for("model.layers.11.self_attn.q_proj") is None  # as AutoAWQ does
    assert config.format_for("model.layers.2.self_attn.q_proj") is not None
    assert config.format_for("model.layers.2.mlp.up_proj") is None


@pytest.mark.parametrize(
    ("kind", "key", "entry"),
    [
        ("ct-int4-g16", "ignore", f"{ATTENTION}.qkv_proj"),
        ("ct-int4-g16", "ignore", r"re:.*qkv_proj$"),
        ("awq-g16", "modules_to_not_convert", "qkv_proj"),
        ("fp8-blocks", "modules_to_not_convert", f"{ATTENTION}.qkv_proj"),
    ],
)
def test_a_list_that_names_the_fused_layer(kind: str, key: str, entry: str) -> None:
    config = config_of(kind, **{key: ["lm_head", entry]})
    assert config.for_shards(QKV) is None
    assert config.for_shards(GATE_UP) is not None
    assert config.format_for(f"{ATTENTION}.o_proj") is not None


@pytest.mark.parametrize("matches", [whole_or_regex, contained, module_or_suffix])
def test_a_part_is_not_taken_for_the_fused_layer(matches: Any) -> None:
    """ "up_proj" is the end of "gate_up_proj", and "v_proj" of "qkv_proj"."""
    mark = "re:.*" if matches is whole_or_regex else ""
    assert names_layer(GATE_UP[1], f"{mark}up_proj", matches)
    assert not names_layer(GATE_UP[0], f"{mark}up_proj", matches)
    assert not names_layer(QKV[0], f"{mark}v_proj", matches)
    assert names_layer(GATE_UP[0], f"{mark}gate_up_proj", matches)


# Fused layers -----------------------------------------------------------------------------


def test_parts_of_a_fused_layer_must_agree() -> None:
    config = QuantConfig.of(two_groups(["Linear"], [r"re:.*v_proj"], ["lm_head", GATE_UP[1]]))
    message = (
        rf"stores {QKV[0]} as packed integers int4-g16 and {QKV[2]} as packed integers int8-g16; "
        r".*with both alike"
    )
    with pytest.raises(CheckpointError, match=message):
        config.for_shards(QKV)
    message = rf"{GATE_UP[0]} as packed integers int4-g16 and {GATE_UP[1]} as unquantized numbers"
    with pytest.raises(CheckpointError, match=message):
        config.for_shards(GATE_UP)
    assert config.for_shards([f"{ATTENTION}.o_proj"]) == config.format_for(f"{MLP}.down_proj")


# GPTQ's options ---------------------------------------------------------------------------


def test_dynamic_changes_some_layers_and_lifts_others() -> None:
    dynamic: dict[str, dict[str, Any]] = {
        r"-:.*\.down_proj": {},
        r"+:.*layers\.1\.": {"bits": 8, "group_size": 64, "desc_act": True},
        r".*o_proj": {"sym": False},
    }
    config = config_of("gptq-g32", dynamic=dynamic)
    assert config.format_for(f"{MLP}.down_proj") is None
    stored = config.format_for(f"{ATTENTION}.o_proj")  # the first that fits counts
    assert stored is not None
    assert stored.scheme == Scheme("int", 8, 64)
    assert stored.tensors()["g_idx"]
    other = config.format_for("model.layers.2.self_attn.o_proj")
    assert other is not None
    assert other.scheme == Scheme("int", 4, 32, symmetric=False)
    assert not other.tensors()["g_idx"]


def test_only_some_modules_in_a_block() -> None:
    modules = [["self_attn.q_proj", "self_attn.k_proj"], ["self_attn.o_proj"]]
    config = config_of("gptq-g32", modules_in_block_to_quantize=modules)
    assert config.format_for(QKV[0]) is not None
    assert config.format_for(QKV[2]) is None
    assert config.format_for(GATE_UP[0]) is None


# What is refused --------------------------------------------------------------------------


def changed(kind: str, *path: str, to: Any) -> Mapping[str, Any]:
    """A kind's config with one value changed, deep inside."""
    options = json.loads(json.dumps(KINDS[kind].config))
    place = options
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return options


GROUP = ("config_groups", "group_0")
REFUSED: dict[str, tuple[Mapping[str, Any], str]] = {
    **{
        name: ({"quant_method": name, "bits": 4}, f"quant_method='{name}'")
        for name in ("bitsandbytes", "gguf", "torchao", "hqq", "quark", "modelopt", "mxfp4", "aqlm")
    },
    "no method": ({"bits": 4}, "quant_method=None"),
    "NVFP4": (
        changed("ct-int4-g16", *GROUP, "format", to="nvfp4-pack-quantized"),
        "format 'nvfp4-pack-quantized' of group_0",
    ),
    "sparse": (changed("ct-int4-g16", *GROUP, "format", to="marlin-24"), "format 'marlin-24'"),
    "4-bit floats": (
        changed("ct-fp8", *GROUP, "weights", "num_bits", to=4),
        "floating-point numbers of 4 bits",
    ),
    "3 bits": (changed("ct-int4-g16", *GROUP, "weights", "num_bits", to=3), "num_bits=3"),
    "strange order": (
        changed("ct-int4-g16", *GROUP, "weights", "actorder", to="x"),
        "actorder 'x'",
    ),
    "blocks of integers": (
        changed("ct-w8a8", *GROUP, "weights", "strategy", to="block"),
        "strategy 'block' of integers",
    ),
    "4-bit inputs": (
        changed("ct-w8a8", *GROUP, "input_activations", "num_bits", to=4),
        "inputs of 4 bits 'int' with a scale a token",
    ),
    "FP8 inputs of integers": (
        changed("ct-w8a8", *GROUP, "input_activations", "type", to="float"),
        "inputs of 8 bits 'float'.*beside weights of 'int'",
    ),
    "asymmetric inputs": (
        changed("ct-w8a8", *GROUP, "input_activations", "symmetric", to=False),
        "asymmetric, is not supported",
    ),
    "one scale of all tokens": (
        changed("ct-w8a8", *GROUP, "input_activations", "strategy", to="tensor"),
        "with a scale a tensor.*dynamic=True",
    ),
    "groups of another size": (
        changed("ct-fp8-block", *GROUP, "input_activations", "group_size", to=64),
        "another size than the weights'",
    ),
    "outputs": (
        changed("ct-w8a8", *GROUP, "output_activations", to={"num_bits": 8}),
        "output_activations of group_0",
    ),
    "inputs alone": (
        changed("ct-w8a8", *GROUP, "weights", to=None),
        "rounding the inputs of group_0",
    ),
    "cache": (changed("ct-fp8", "kv_cache_scheme", to={"num_bits": 8}), "kv_cache_scheme="),
    "transforms": (changed("ct-fp8", "transform_config", to={"a": 1}), "transform_config="),
    "sparsity": (
        changed("ct-fp8", "sparsity_config", to={"format": "sparse-24-bitmask"}),
        "sparsity_config=",
    ),
    "Marlin": (changed("gptq-g32", "checkpoint_format", to="marlin"), "checkpoint_format='marlin'"),
    "Marlin's old flag": (
        changed("gptq-g32", "is_marlin_format", to=True),
        "is_marlin_format=True",
    ),
    "GPTQ of 3 bits": (changed("gptq-g32", "bits", to=3), r"bits=3 \(of 2, 4, 8\)"),
    "16-bit words": (changed("gptq-g32", "pack_dtype", to="int16"), "pack_dtype='int16'"),
    "dynamic": (
        changed("gptq-g32", "dynamic", to={"+:x": {"format": "gguf"}}),
        r"dynamic '\+:x' of GPTQ with \['format'\]",
    ),
    "AWQ's other kernel": (changed("awq-g16", "version", to="gemv"), "version='gemv'"),
    "AWQ of 8 bits": (changed("awq-g16", "bits", to=8), r"bits=8 \(of 4\)"),
    "static blocks": (changed("fp8-blocks", "activation_scheme", to="static"), "'static' of FP8"),
    "E5M2": (changed("fp8-blocks", "fmt", to="e5m2"), "fmt='e5m2'"),
    "blocks of three": (changed("fp8-blocks", "weight_block_size", to=[1, 2, 3]), r"=\[1, 2, 3\]"),
}


@pytest.mark.parametrize(("options", "what"), REFUSED.values(), ids=REFUSED)
def test_what_quire_lacks_is_named(options: Mapping[str, Any], what: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"quantization_config: .*{what}") as error:
        QuantConfig.of(options)
    assert REMEDY in str(error.value) or "it must be [rows, columns]" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (changed("gptq-g32", "bits", to="four"), "bits='four' must be an integer"),
        (changed("gptq-g32", "bits", to=None), "bits=None must be an integer"),
        (
            changed("gptq-g32", "group_size", to=0),
            "group_size=0 must be a number of columns, or -1",
        ),
        (changed("gptq-g32", "sym", to="yes"), "sym='yes' must be true or false"),
        (changed("gptq-g32", "dynamic", to=[1]), r"dynamic=\[1\] must be a table"),
        (changed("awq-g16", "modules_to_not_convert", to="mlp"), "'mlp' must be a list of names"),
        (changed("ct-int4-g16", "config_groups", to=[]), r"config_groups=\[\] must be a table"),
        (changed("ct-int4-g16", "config_groups", "group_0", to=["Linear"]), "must be a table"),
    ],
)
def test_what_makes_no_sense_is_named(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        QuantConfig.of(options)


def test_a_pattern_that_is_none() -> None:
    config = config_of("ct-int4-g16", ignore=["re:(q_proj"])
    with pytest.raises(
        CheckpointError, match=re.escape("the pattern '(q_proj', which is no regul")
    ):
        config.format_for(QKV[0])


# config.json ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_the_models_config_carries_the_table(key: str, tmp_path: Path) -> None:
    folder, dense = write_quantized(tmp_path, SPECS["qwen2"], KINDS["gptq-g32"], ["o_proj"])
    raw = json.loads((folder / "config.json").read_text("utf-8"))
    raw[key] = raw.pop("quantization_config")
    model = ModelConfig.from_dict(raw)
    assert model.quantization == raw[key]
    assert QuantConfig.of(model.quantization, model).format_for(f"{ATTENTION}.o_proj") is None
    plain = ModelConfig.from_folder(dense)
    assert plain.quantization is None
    assert plain == model  # another storage of the same model
    assert hash(plain) == hash(model)


def test_a_table_that_is_none() -> None:
    with pytest.raises(CheckpointError, match="quantization_config='int4': must be a table"):
        ModelConfig.from_dict({"model_type": "llama", "quantization_config": "int4"})
