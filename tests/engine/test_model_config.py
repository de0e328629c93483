"""A `config.json` means what transformers makes of it, for every key that quire reads.

Two oracles: the model that transformers builds of a config (its tensors, windows, angles), for
any choice of keys and values; and the logits of tiny models, where keys are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from checkpoints import CPU, TOLERANCE, Spec, decoder_logits, load_decoder, oracle_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from quire import QuireError
from quire.attention.torch_backend import TorchAttention
from quire.layers.moe import MoE
from quire.layers.norm import RMSNorm
from quire.layers.rope import RotaryTable, inverse_frequencies
from quire.models.architectures import ARCHITECTURES
from quire.models.config import ModelConfig
from quire.models.decoder import Decoder

META = torch.device("meta")
MODEL_TYPES = [architecture.model_type for architecture in ARCHITECTURES.values()]
BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 96,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 4, "low_freq_factor": 1, "high_freq_factor": 4.0}
ROPES: list[Any] = [
    None,
    {},
    {"rope_type": "default", "rope_theta": 5e5},
    {"rope_theta": 5e5, "factor": 3.0},
    {"rope_type": "linear", "factor": 3.0},
    {"type": "linear", "factor": 2},
    {"rope_type": "linear"},
    {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
    LLAMA3,
    {**LLAMA3, "original_max_position_embeddings": 32},
    {"rope_type": "llama3", "factor": 4.0},
    YARN,
    {**YARN, "rope_theta": 1e6, "beta_fast": 8, "beta_slow": 2},
    {**YARN, "beta_fast": None, "beta_slow": 0},
    {**YARN, "truncate": False},
    {**YARN, "attention_factor": 1.3},
    {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
    {**YARN, "mscale": 0.5},
    {**YARN, "factor": None},
    {**YARN, "original_max_position_embeddings": 6},
    {"rope_type": "yarn", "factor": 2},
    {"rope_type": "yarn"},
    {"rope_type": "dynamic", "factor": 2.0},
    {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
]
LAYER_TYPES = [
    None,
    ["full_attention", "sliding_attention", "full_attention"],
    ["attention"] * 3,
    ["sliding_attention"] * 2,
    [],
]
VALUES: dict[str, list[Any]] = {
    "vocab_size": [96, 32, None, 0, "96"],
    "hidden_size": [96, 192, None, -96],
    "intermediate_size": [80, 33, None],
    "num_hidden_layers": [3, 1, None, 0],
    "num_attention_heads": [6, 3, None],
    "num_key_value_heads": [2, 6, 4, None],
    "head_dim": [32, 16, None, 7],
    "hidden_act": ["silu", "swish", "gelu"],
    "max_position_embeddings": [256, 64, None],
    "rms_norm_eps": [1e-5, None, "small"],
    "tie_word_embeddings": [True, False, None],
    "attention_bias": [True, False, None],
    "mlp_bias": [True, False, None],
    "sliding_window": [24, None],
    "use_sliding_window": [True, False, None],
    "max_window_layers": [0, 1, 9],
    "layer_types": LAYER_TYPES,
    "rope_theta": [5e4, 10_000, None],
    "rope_scaling": ROPES,
    "rope_parameters": ROPES,
    "original_max_position_embeddings": [32],
    "partial_rotary_factor": [0.5],
    "eos_token_id": [5, [5, 6], None],
    "num_experts": [4, 5, 0, None],
    "num_local_experts": [4, 3, 1],
    "num_experts_per_tok": [2, 1, 5, 0, None],
    "moe_intermediate_size": [24, None],
    "norm_topk_prob": [True, False, None],
    "decoder_sparse_step": [1, 2, 0, 9],
    "mlp_only_layers": [[], [1], [0, 1, 2], [-1, 7], None],
}
OTHERS = ("architectures", "model_type", "dtype", "torch_dtype", "quantization_config")
ABSENT = "absent"
# What transformers serves and quire does not, by the words of the error that says so.
REFUSED = (
    "rope scaling 'dynamic' is not supported",
    "for each type of layer",
    "partial_rotary_factor=0.5 is not supported",
    "is not a multiple of",  # transformers fails later, at the first step
    "is odd",
    "hidden_act='gelu'",
    "must be an integer of at least 1",  # a model of nothing
    "'sliding_attention' without a window",  # transformers fails at the first step
    "a token is sent to 1 expert at least",  # likewise
)


class Refused(Exception):
    """transformers does not serve the config."""


def transformers_config(raw: dict[str, Any]) -> PretrainedConfig:
    try:
        return AutoConfig.for_model(**json.loads(json.dumps(raw)))
    except Exception as error:  # its validators raise many kinds
        raise Refused from error


def meaning_to_transformers(raw: dict[str, Any]) -> dict[str, Any]:
    """What transformers builds of a config."""
    config = transformers_config(raw)
    try:
        with META:
            model: Any = AutoModelForCausalLM.from_config(config)
        scale = model.model.layers[0].self_attn.scaling
        rotary = type(model.model.rotary_emb)(config)
        angles = rotary(torch.zeros(1), torch.arange(5)[None])
    except Exception as error:
        raise Refused from error
    kinds = getattr(config, "layer_types", None)
    window = None if raw["model_type"] == "llama" else config.sliding_window
    windows = [window] * config.num_hidden_layers
    if kinds is not None and raw["model_type"] in ("qwen2", "qwen3"):
        windows = [window if kind == "sliding_attention" else None for kind in kinds]
    eos = config.eos_token_id
    tensors = stored_shapes(model)
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return {
        "tensors": tensors,
        "windows": windows,
        "frequencies": rotary.inv_freq,
        "cos": angles[0][0],
        "eps": config.rms_norm_eps,
        "tied": config.tie_word_embeddings,
        "experts": [
            (moe.top_k, getattr(moe, "norm_topk_prob", True))
            for layer in model.model.layers
            if (moe := getattr(layer.mlp, "gate", None)) is not None
        ],
        "eos": tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        "scale": scale,
    }


def stored_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors under their names in a checkpoint: an expert has its own."""
    block, parts = "mlp", ("gate_proj", "up_proj", "down_proj")
    if model.config.model_type == "mixtral":
        block, parts = "block_sparse_moe", ("w1", "w3", "w2")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, x in model.state_dict().items():
        prefix, experts, part = name.partition("mlp.experts.")
        if experts:
            (num_experts, rows, columns), of = x.shape, parts[2:]
            if part == "gate_up_proj":
                rows, of = rows // 2, parts[:2]
            for expert in range(num_experts):
                for each in of:
                    key = f"{prefix}{block}.experts.{expert}.{each}.weight"
                    shapes[key] = (rows, columns)
        else:
            shapes[name.replace("mlp.gate.", f"{block}.gate.")] = tuple(x.shape)
    return shapes


def meaning_to_quire(raw: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The same of quire's decoder, which is given tensors of transformers' shapes."""
    config = ModelConfig.from_dict(raw)
    model = Decoder(config, TorchAttention(), 5, torch.float32, META)
    takers = model.takes()
    for name in takers.keys() & tensors.keys():
        takers[name].take(torch.empty(tensors[name], device=META))
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    table = RotaryTable(config.rope, config.head_size, 5, torch.float32, CPU)
    (eps,) = {module.eps for module in model.modules() if isinstance(module, RMSNorm)}
    return {
        "tensors": {name: tensors.get(name) for name in takers.keys() - tied},
        "windows": list(config.sliding_windows),
        "frequencies": inverse_frequencies(config.rope, config.head_size),
        "cos": table.cos,
        "eps": eps,
        "tied": config.tie_word_embeddings,
        "experts": [
            (layer.mlp.router.top_k, layer.mlp.router.renormalize)
            for layer in model.layers
            if isinstance(layer.mlp, MoE)
        ],
        "eos": config.eos_token_ids,
        "scale": config.head_size**-0.5,
    }


def compare(raw: dict[str, Any]) -> str:
    """Hold quire's reading against transformers'; return what became of it."""
    try:
        expected = meaning_to_transformers(raw)
    except Refused:
        expected = {}
    try:
        found = meaning_to_quire(raw, expected.get("tensors", {}))
    except QuireError as error:
        if expected and not any(words in str(error) for words in REFUSED):
            raise
        return "refused"
    if not expected:  # quire may serve more, 1 for 1.0 say
        return "only quire"
    for key in ("frequencies", "cos"):
        torch.testing.assert_close(
            found.pop(key), expected.pop(key), rtol=2e-6, atol=1e-6, msg=f"{key} of {raw}"
        )
    assert found == expected, raw
    return "equal"


def with_values(model_type: str, chosen: dict[str, Any]) -> dict[str, Any]:
    raw = {"model_type": model_type, **BASE, **chosen}
    return {key: value for key, value in raw.items() if value is not ABSENT}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("key", VALUES)
def test_each_key_alone(model_type: str, key: str) -> None:
    outcomes = [compare(with_values(model_type, {key: value})) for value in [ABSENT, *VALUES[key]]]
    assert "equal" in outcomes


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_keys_together(data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.sampled_from(list(VALUES)), unique=True, max_size=6))
    chosen = {k: data.draw(st.sampled_from([ABSENT, *VALUES[k]]), label=k) for k in keys}
    compare(with_values(data.draw(st.sampled_from(MODEL_TYPES)), chosen))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(YARN)), inner)
    ),
    max_leaves=4,
)


@given(st.sampled_from(MODEL_TYPES), st.dictionaries(st.sampled_from([*VALUES, *OTHERS]), JSON))
@settings(max_examples=400, deadline=None)
def test_any_json_is_read_or_refused_by_name(model_type: str, chosen: dict[str, Any]) -> None:
    raw = {"model_type": model_type, **BASE, **chosen}
    try:
        config = ModelConfig.from_dict(raw)
    except QuireError:
        return
    assert inverse_frequencies(config.rope, config.head_size).isfinite().all()


def test_architectures_or_model_type() -> None:
    """Either names the architecture; transformers goes by `model_type`."""
    for name, architecture in ARCHITECTURES.items():
        both = {"architectures": [name], "model_type": architecture.model_type, **BASE}
        for left_out in ({}, {"model_type"}, {"architectures"}):
            raw = {key: value for key, value in both.items() if key not in left_out}
            assert ModelConfig.from_dict(raw) == ModelConfig.from_dict(both)
            assert ModelConfig.from_dict(raw).architecture == name


# --- logits ------------------------------------------------------------------

SCALED: dict[str, Spec] = {
    "yarn": Spec("qwen2", {"rope_parameters": {**YARN, "rope_theta": 1e4}}),
    "yarn of DeepSeek's kind": Spec(
        "llama",
        {
            "rope_parameters": {
                **YARN,
                "rope_theta": 1e6,
                "factor": 8.0,
                "beta_fast": 16,
                "beta_slow": 2,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
                "truncate": False,
            }
        },
    ),
    "biases that only Llama has": Spec("mistral", {"attention_bias": True, "mlp_bias": True}),
    "biases that Qwen2 has anyway": Spec("qwen2", {"attention_bias": False, "mlp_bias": True}),
    "biases of Qwen3": Spec("qwen3", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "windows that Llama ignores": Spec(
        "llama", {"sliding_window": 8, "use_sliding_window": True, "layer_types": LAYER_TYPES[1]}
    ),
}


@pytest.mark.parametrize("name", SCALED)
def test_logits(name: str, tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path, SCALED[name])
    assert_logits(folder)


# Keys whose values are the defaults, so that a checkpoint without them is the same one.
LEFT_OUT: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 6, "max_position_embeddings": 2048}),
    "mistral": (
        "mistral",
        {"num_attention_heads": 16, "hidden_size": 256, "num_key_value_heads": 8}
        | {"sliding_window": 4096, "max_position_embeddings": 131_072},
    ),
    "qwen2": (
        "qwen2",
        {"num_attention_heads": 32, "hidden_size": 128, "num_key_value_heads": 32}
        | {"max_position_embeddings": 32_768},
    ),
    "qwen3": (
        "qwen3",
        {"head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 32}
        | {"max_position_embeddings": 32_768},
    ),
    "mixtral": (
        "mixtral",
        {"num_attention_heads": 16, "hidden_size": 256, "num_key_value_heads": 8}
        | {"max_position_embeddings": 131_072, "num_local_experts": 8, "num_experts_per_tok": 2}
        | {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 32_768}
        | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    ),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_logits_where_every_default_is_left_out(name: str, tmp_path: Path) -> None:
    model_type, options = LEFT_OUT[name]
    folder = checkpoints.write(tmp_path, Spec(model_type, options))
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    kept = {key: raw[key] for key in ("model_type", "hidden_size", "num_hidden_layers")}
    kept |= {key: raw[key] for key in ("vocab_size", "intermediate_size", "num_attention_heads")}
    path.write_text(json.dumps(kept))
    config = ModelConfig.from_folder(folder)
    assert (config.max_position, config.dtype) == (options["max_position_embeddings"], "float32")
    assert_logits(folder)


def assert_logits(folder: Path) -> None:
    """Within 1e-4 of transformers; where a processor rounds more, as near to float64 as it is.

    Sums over 4,096 products are split in another way on each kind of processor, and on some
    transformers itself is 1e-4 away from the exact logits.
    """
    (token_ids,) = checkpoints.random_prompts([110], seed=3)
    expected = oracle_logits(checkpoints.transformers_model(folder), token_ids)
    assert expected.std() > 0.5
    logits = decoder_logits(load_decoder(folder), token_ids)
    if (logits - expected).abs().max() < TOLERANCE:
        return
    exact = oracle_logits(checkpoints.transformers_model(folder, torch.float64), token_ids)
    theirs, ours = ((x - exact).abs().max() for x in (expected, logits))
    assert theirs > TOLERANCE / 4
    assert ours < 2 * theirs


def test_yarn_reaches_as_far_as_it_was_stretched() -> None:
    raw = {"model_type": "qwen2", **BASE, "max_position_embeddings": 64, "rope_scaling": YARN}
    config = ModelConfig.from_dict(raw)
    assert config.max_position == 4 * 64
    assert config.rope.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


# --- the checkpoint's dtype --------------------------------------------------


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float16"}, "float16"),
        ({"torch_dtype": "float16", "dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": None, "torch_dtype": "float16"}, "float16"),
        ({}, "float16"),  # the weights' own
        ({"dtype": None}, "float16"),
    ],
)
def test_dtype(
    values: dict[str, Any],
    dtype: str,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    raw = json.loads((checkpoint("qwen2") / "config.json").read_text())
    del raw["dtype"]
    (tmp_path / "config.json").write_text(json.dumps({**raw, **values}))
    model = checkpoints.transformers_model(checkpoint("qwen2")).to(torch.float16)
    model.save_pretrained(tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").rename(tmp_path / "model.safetensors")
    assert ModelConfig.from_folder(tmp_path).dtype == dtype
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert str(oracle.dtype) == f"torch.{dtype}"
    (tmp_path / "model.safetensors").unlink()
    if not any(values.values()):
        assert ModelConfig.from_folder(tmp_path).dtype == "float32"
