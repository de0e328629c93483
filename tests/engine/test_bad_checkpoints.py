"""Checkpoints that are broken, unsupported or not there: each error names file and remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from quire import (
    LLM,
    CheckpointError,
    QuireError,
    SamplingParams,
    UnsupportedModelError,
)

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
GOOD = [1, 2, 3]


Change = Callable[[Path], None]


def edit_config(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        raw = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))

    return change


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content) and None


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def truncate(name: str, keep: float) -> Change:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return change


def only_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


LAYER = "model.layers.1.self_attn.q_proj.weight"
BROKEN: dict[str, tuple[str, Change, type[QuireError], str]] = {
    "no config": ("qwen2", remove("config.json"), CheckpointError, r"config\.json does not exist"),
    "config is no JSON": (
        "qwen2",
        truncate("config.json", 0.5),
        CheckpointError,
        r"config\.json is not valid JSON .*download it again",
    ),
    "config lacks a size": (  # which is then what transformers takes it for
        "qwen2",
        edit_config(hidden_size=...),
        CheckpointError,
        r"weight: shape \[.*96\] where the config asks for \[.*4096\]",
    ),
    "config is no object": (
        "qwen2",
        write("config.json", b"[]"),
        CheckpointError,
        r"config\.json holds no JSON object",
    ),
    "a size that is no number": (
        "qwen2",
        edit_config(hidden_size="96"),
        CheckpointError,
        r"config\.json has hidden_size='96': must be an integer of at least 1; fix",
    ),
    "no layers": (
        "qwen2",
        edit_config(num_hidden_layers=0),
        CheckpointError,
        r"num_hidden_layers=0: must be an integer of at least 1",
    ),
    "a switch that is no switch": (
        "llama3-scaled",
        edit_config(attention_bias="no"),
        CheckpointError,
        r"attention_bias='no': must be true or false",
    ),
    "an epsilon that is null": (
        "qwen2",
        edit_config(rms_norm_eps=None),
        CheckpointError,
        r"rms_norm_eps=None: must be a number above 0",
    ),
    "an end of sequence in words": (
        "qwen2",
        edit_config(eos_token_id="</s>"),
        CheckpointError,
        r"eos_token_id='</s>': must be a token id or a list of them",
    ),
    "unknown architecture": (
        "qwen2",
        edit_config(architectures=["GPT2LMHeadModel"]),
        UnsupportedModelError,
        r"architecture 'GPT2LMHeadModel' is not supported; quire has LlamaForCausalLM, Mistral",
    ),
    "no architecture": (
        "qwen2",
        edit_config(architectures=None, model_type=None),
        UnsupportedModelError,
        r"architecture 'missing'",
    ),
    "two architectures": (
        "qwen2",
        edit_config(architectures=["LlamaForCausalLM"]),
        UnsupportedModelError,
        r"architectures=\['LlamaForCausalLM'\] and model_type='qwen2', which is Qwen2ForCausalLM",
    ),
    "unsupported rope scaling": (
        "llama3-scaled",
        edit_config(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0}),
        UnsupportedModelError,
        r"rope scaling 'longrope' is not supported; quire has 'default', 'linear', 'llama3', 'yarn",
    ),
    "old name of rope scaling": (
        "llama3-scaled",
        edit_config(rope_parameters=None, rope_scaling={"type": "dynamic", "factor": 2.0}),
        UnsupportedModelError,
        r"rope scaling 'dynamic'",
    ),
    "rope scaling without its factor": (
        "llama3-scaled",
        edit_config(rope_parameters={"rope_type": "yarn"}),
        CheckpointError,
        r"config\.json lacks 'rope_parameters\.factor'",
    ),
    "a factor that is no number": (
        "llama3-scaled",
        edit_config(rope_parameters={"rope_type": "linear", "factor": "4"}),
        CheckpointError,
        r"rope_parameters\.factor='4': must be a number above 0",
    ),
    "rope of its own for a type of layer": (
        "qwen2",
        edit_config(rope_parameters={"full_attention": {"rope_type": "default"}}),
        UnsupportedModelError,
        r"rope_parameters of its own for each type of layer \(full_attention\)",
    ),
    "partly rotated heads": (
        "qwen2",
        edit_config(rope_scaling={"type": "linear", "factor": 2, "partial_rotary_factor": 0.5}),
        UnsupportedModelError,
        r"partial_rotary_factor=0\.5 is not supported",
    ),
    "sliding layers without a window": (
        "qwen2",
        edit_config(layer_types=["sliding_attention"] * 3),
        UnsupportedModelError,
        r"'sliding_attention' without a window: set use_sliding_window to true",
    ),
    "quantized": (
        "qwen2",
        edit_config(quantization_config={"quant_method": "bitsandbytes"}),
        UnsupportedModelError,
        r"quant_method='bitsandbytes'",
    ),
    "quantized by half": (
        "qwen2",
        edit_config(quantization_config={"quant_method": "awq"}),
        CheckpointError,
        r"bits=None",
    ),
    "other activation": (
        "qwen2",
        edit_config(hidden_act="gelu"),
        UnsupportedModelError,
        r"hidden_act='gelu'.*'silu'",
    ),
    "heads that do not divide": (
        "llama3-scaled",
        edit_config(num_key_value_heads=4),
        UnsupportedModelError,
        r"num_attention_heads=6 is not a multiple of num_key_value_heads=4",
    ),
    "layer_types of another length": (
        "qwen2",
        edit_config(layer_types=["full_attention"] * 2),
        UnsupportedModelError,
        r"layer_types lists 2 layers but num_hidden_layers=3",
    ),
    "unknown layer type": (
        "qwen2",
        edit_config(layer_types=["linear_attention"] * 3),
        UnsupportedModelError,
        r"linear_attention",
    ),
    "odd head size": (
        "qwen2",
        edit_config(head_dim=7),
        UnsupportedModelError,
        r"head_dim=7 is odd",
    ),
    "no weights": (
        "qwen2",
        remove("model.safetensors"),
        CheckpointError,
        r"has neither model\.safetensors nor model\.safetensors\.index\.json",
    ),
    "only .bin": (
        "qwen2",
        only_bin,
        UnsupportedModelError,
        r"only \.bin weights.*save_pretrained",
    ),
    "truncated weights": (
        "qwen2",
        truncate("model.safetensors", 0.7),
        CheckpointError,
        r"model\.safetensors cannot be read .*download it again",
    ),
    "truncated header": (
        "qwen2",
        truncate("model.safetensors", 0.001),
        CheckpointError,
        r"model\.safetensors cannot be read",
    ),
    "empty weights": (
        "qwen2",
        write("model.safetensors", b""),
        CheckpointError,
        r"model\.safetensors cannot be read",
    ),
    "weights that are something else": (
        "qwen2",
        write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        CheckpointError,
        r"model\.safetensors cannot be read",
    ),
    "a tensor of another shape": (
        "qwen2",
        edit_tensors(lambda t: t.update({LAYER: torch.zeros(96, 95)})),
        CheckpointError,
        rf"{LAYER}: shape \[96, 95\] where the config asks for \[96, 96\]",
    ),
    "config of another size": (
        "qwen2",
        edit_config(intermediate_size=88),
        CheckpointError,
        r"mlp\.\w+\.weight: shape \[.*80.*\] where the config asks for \[.*88.*\]",
    ),
    "a weight of whole numbers": (
        "qwen2",
        edit_tensors(lambda t: t.update({LAYER: torch.zeros(96, 96, dtype=torch.int8)})),
        CheckpointError,
        rf"{LAYER}: torch\.int8 where the config asks for torch\.float32",
    ),
    "a norm of another shape": (
        "qwen2",
        edit_tensors(lambda t: t.update({"model.norm.weight": torch.ones(1)})),
        CheckpointError,
        r"model\.norm\.weight: shape \[1\] where the config asks for \[96\]",
    ),
    "a missing tensor": (
        "qwen2",
        edit_tensors(lambda t: t.pop(LAYER)),
        CheckpointError,
        rf"lacks 1 tensors that its config asks for, '{LAYER}' among them",
    ),
    "fewer layers than the config": (
        "qwen2",
        edit_config(num_hidden_layers=4, layer_types=None),
        CheckpointError,
        r"lacks 12 tensors .*model\.layers\.3\.",
    ),
    "more layers than the config": (
        "qwen2",
        edit_config(num_hidden_layers=2, layer_types=None),
        CheckpointError,
        r"unexpected tensor 'model\.layers\.2\..*do config\.json and weights belong together",
    ),
    "an unexpected tensor": (
        "qwen2",
        edit_tensors(lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)})),
        CheckpointError,
        r"unexpected tensor 'model\.layers\.0\.self_attn\.q_norm\.weight'",
    ),
    "an untied head that is missing": (
        "qwen2",
        edit_tensors(lambda t: t.pop("lm_head.weight")),
        CheckpointError,
        r"'lm_head\.weight'",
    ),
    "a tied model with neither table": (
        "llama-linear-biased",
        edit_tensors(lambda t: t.pop("model.embed_tokens.weight")),
        CheckpointError,
        r"lacks 'model\.embed_tokens\.weight' that its config asks for; is a weight file",
    ),
    "a tied model with a head of another shape": (
        "llama-linear-biased",
        edit_tensors(lambda t: t.update({"lm_head.weight": torch.zeros(95, 96)})),
        CheckpointError,
        r"lm_head\.weight: shape \[95, 96\] where the config asks for \[96, 96\]",
    ),
    "weights without a tensor": (
        "qwen2",
        write("model.safetensors", (2).to_bytes(8, "little") + b"{}"),
        CheckpointError,
        r"lacks \d+ tensors that its config asks for",
    ),
    "a dtype that quire does not read": (
        "qwen2",
        edit_tensors(lambda t: t.update({LAYER: torch.zeros(96, 96, dtype=torch.complex64)})),
        UnsupportedModelError,
        rf"{LAYER} is stored as C64; quire reads F64, F32",
    ),
    "a missing shard": (
        "mistral",
        remove("model-00002-of-00005.safetensors"),
        CheckpointError,
        r"model-00002-of-00005\.safetensors is missing; .*index\.json lists it: download",
    ),
    "a truncated shard": (
        "mistral",
        truncate("model-00002-of-00005.safetensors", 0.9),
        CheckpointError,
        r"model-00002-of-00005\.safetensors cannot be read",
    ),
    "a truncated index": (
        "mistral",
        truncate("model.safetensors.index.json", 0.5),
        CheckpointError,
        r"index\.json lists no weight files .*download it again",
    ),
    "an index of something else": (
        "mistral",
        write("model.safetensors.index.json", b'{"files": []}'),
        CheckpointError,
        r"index\.json lists no weight files",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoint(name: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source, change, error, message = BROKEN[name]
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint(source), folder)
    LLM(folder, device="cpu", max_num_seqs=1)  # whole, it loads
    change(folder)
    with pytest.raises(error, match=message):
        LLM(folder, device="cpu", max_num_seqs=1)


def test_frequencies_that_old_checkpoints_carry_are_ignored(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("llama-linear-biased"), folder)
    expected = LLM(folder, device="cpu").generate(GOOD, GREEDY)[0].outputs
    frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(lambda t: t.update({frequencies: torch.zeros(8)}))(folder)
    assert LLM(folder, device="cpu").generate(GOOD, GREEDY)[0].outputs == expected


def test_unknown_model_name() -> None:
    message = r"no checkpoint 'quire-maxi'.*quire-mini.*nor a folder, nor a hub name like"
    with pytest.raises(CheckpointError, match=message):
        LLM("quire-maxi")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        LLM(Path("no/such/folder"))


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **_: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    message = (
        r"could not fetch 'someone/model' from the hub \(OSError: no route to host\); .*quire-"
    )
    with pytest.raises(CheckpointError, match=message):
        LLM("someone/model")


def test_a_hub_name_is_fetched_and_read(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint("qwen2")
    asked = []

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        """Copy what the patterns allow, as the hub's client would."""
        asked.append(name)
        for pattern in allow_patterns:
            for path in source.glob(pattern):
                shutil.copy(path, tmp_path)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    fetched = LLM("someone/model", device="cpu").generate(GOOD, GREEDY)[0].outputs
    assert asked == ["someone/model"]
    assert fetched == LLM(source, device="cpu").generate(GOOD, GREEDY)[0].outputs
