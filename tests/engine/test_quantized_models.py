"""Models with quantized layers against transformers on the numbers that the codes stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    CPU,
    MAX_POSITION,
    SPECS,
    TOLERANCE,
    decoder_logits,
    load_decoder,
    oracle_logits,
    random_prompts,
    transformers_model,
    write,
    write_text_model,
)
from quantized_checkpoints import KINDS, read_all, write_quantized
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from quire import LLM, SamplingParams
from quire.attention.torch_backend import TorchAttention
from quire.components import Components
from quire.errors import CheckpointError, QuireError
from quire.layers.linear import Linear
from quire.models.config import ModelConfig
from quire.models.decoder import Decoder
from quire.models.loader import initialize_random, load_weights
from quire.quantization.factory import methods, unquantized
from quire.quantization.rounding import round_to_nearest
from quire.quantization.scheme import Scheme
from quire.quantization.unpacked import IntegersOnCPU
from quire.resources import shipped_models

# Each format with two architectures, each architecture with many formats.
CASES = [
    (list(SPECS)[(i + turn * 3) % len(SPECS)], kind)
    for i, kind in enumerate(KINDS)
    for turn in range(2)
]
(TOKENS,) = random_prompts([60], seed=3)
ONLINE = ["int8", "int4-g32", "int4-g32-asym", "int4-channel", "int8-g16", "fp8", "fp8_block"]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=2)


def load(folder: Path, scheme: str | None = None) -> Decoder:
    config = ModelConfig.from_folder(folder)
    return load_decoder(folder, methods(config, scheme, torch.float32, CPU))


def round_like(
    x: Tensor, kind: str, per: str, scale: Tensor | None = None, size: int = 128
) -> Tensor:
    """Inputs as eight bits hold them, written from the formats' definitions."""
    most = 127.0 if kind == "int" else 448.0
    if scale is None:
        parts = list(x.split(size, -1)) if per == "group" else [x]
        scales = [part.abs().amax(-1, keepdim=True) / most for part in parts]
    else:
        parts, scales = [x], [scale]
    rounded = []
    for part, unit in zip(parts, scales, strict=True):
        code = (part / unit).clamp(-most, most)
        code = code.round() if kind == "int" else code.to(torch.float8_e4m3fn).float()
        rounded.append(code * unit)
    return torch.cat(rounded, -1)


def with_rounded_inputs(
    model: PreTrainedModel, kind: str, per: str, scales: dict[str, Tensor], size: int = 128
) -> PreTrainedModel:
    """Let transformers' layers round what they are given."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            scale = scales.get(name)
            module.register_forward_pre_hook(
                lambda _, args, scale=scale: (round_like(args[0], kind, per, scale, size),)
            )
    return model


def input_scales(folder: Path) -> dict[str, Tensor]:
    """What a checkpoint stores of layers' inputs; fused layers take the largest of their parts."""
    found = {
        name.removesuffix(".input_scale"): tensor.float()
        for name, tensor in read_all(folder).items()
        if name.endswith(".input_scale")
    }
    fused = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
    for name in list(found):
        for parts in fused:
            if name.rsplit(".", 1)[1] in parts:
                prefix = name.rsplit(".", 1)[0]
                found[name] = torch.stack([found[f"{prefix}.{p}"].reshape(1) for p in parts]).amax(
                    0
                )
    return found


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_logits(name: str, kind: str, tmp_path: Path) -> None:
    """A prompt in two chunks, every format with its own oracle's numbers."""
    quantized, dense = write_quantized(tmp_path, SPECS[name], KINDS[kind])
    oracle, per = transformers_model(dense), KINDS[kind].inputs
    if per != "plain":
        number = "fp" if "fp8" in kind else "int"
        size = KINDS[kind].config.get("weight_block_size", [128, 128])[1]
        oracle = with_rounded_inputs(oracle, number, per, input_scales(quantized), size)
    expected = oracle_logits(oracle, TOKENS)
    logits = decoder_logits(load(quantized), TOKENS, [37, 23])
    if per == "plain":
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
        return
    assert_rounded_alike(logits, expected)


def assert_rounded_alike(logits: Tensor, expected: Tensor) -> None:
    """Inputs are rounded to the same codes, but for ties that another order of addition decides.

    One such code moves every position behind it a little; some positions see none.
    """
    off = (logits - expected).abs()
    assert (off.amax(-1) < TOLERANCE).sum() >= 3
    assert off.mean() < 0.03 * expected.std()


@pytest.mark.parametrize("kind", ["ct-int4-g16", "gptq-g32", "awq-g16", "fp8-blocks"])
def test_layers_left_out(kind: str, tmp_path: Path) -> None:
    """What the config says stays as it was, and multiplies as plain weights do."""
    left_out = ["layers.1.", "down_proj"]
    quantized, dense = write_quantized(tmp_path, SPECS["qwen2"], KINDS[kind], left_out)
    model = load(quantized)
    plain = load(dense)
    for ours, theirs in zip(linear_layers(model), linear_layers(plain), strict=True):
        if any(word in name for name in ours.shard_rows for word in left_out):
            assert type(ours.method) is type(theirs.method)
            torch.testing.assert_close(ours.method.dequantize(ours), theirs.weight_as_stored)


def linear_layers(model: Decoder) -> list[Any]:
    """The layers' products, with the weight that they multiply by."""
    found = [module for module in model.modules() if isinstance(module, Linear)]
    for layer in found:
        layer.__dict__["weight_as_stored"] = layer.method.dequantize(layer)
    return found[:-1]  # the head is not one of the layers


def test_shards_that_differ(tmp_path: Path) -> None:
    """One plain projection among quantized ones cannot be a part of their matrix."""
    quantized, _ = write_quantized(tmp_path, SPECS["qwen2"], KINDS["ct-int4-g16"], ["k_proj"])
    with pytest.raises(CheckpointError, match=r"q_proj as .* and .*k_proj as unquantized"):
        load(quantized)


def test_orders_that_differ(tmp_path: Path) -> None:
    """Act-order gives q another order of columns than k, though both see the same inputs."""
    quantized, _ = write_quantized(tmp_path, SPECS["llama3-scaled"], KINDS["gptq-act-order"])
    path = quantized / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.self_attn.k_proj.g_idx"
    tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"k_proj.* order of columns: quantize the model"):
        load(quantized)


def test_a_missing_scale(tmp_path: Path) -> None:
    """The tensor that is missing is named."""
    quantized, _ = write_quantized(tmp_path, SPECS["llama3-scaled"], KINDS["ct-int4-g16"])
    path = quantized / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight_scale"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight_scale"):
        load(quantized)


@pytest.mark.parametrize("name", ["qwen3-sharded", "llama-linear-biased"])
@pytest.mark.parametrize("scheme", ONLINE)
def test_rounded_while_loaded(scheme: str, name: str, tmp_path: Path) -> None:
    """A fused layer has the numbers of its projections rounded one by one."""
    folder = write(tmp_path, SPECS[name])
    chosen = Scheme.named(scheme)
    oracle = transformers_model(folder)
    with torch.no_grad():
        for module_name, module in oracle.named_modules():
            if isinstance(module, nn.Linear) and module_name != "lm_head":
                module.weight.copy_(round_to_nearest(module.weight, chosen).dequantize())
    if chosen.inputs != "plain":
        oracle = with_rounded_inputs(oracle, chosen.kind, chosen.inputs, {})
    expected = oracle_logits(oracle, TOKENS)
    logits = decoder_logits(load(folder, scheme), TOKENS, [37, 23])
    if chosen.inputs == "plain":
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
    else:
        assert_rounded_alike(logits, expected)
    plain = decoder_logits(load_decoder(folder), TOKENS, [60])
    assert (logits - plain).abs().mean() > 0.002 * expected.std()  # it was rounded at all


def test_integers_multiply_as_rounded_numbers() -> None:
    """The product of codes is the product of the numbers that they stand for."""
    generator = torch.Generator().manual_seed(0)
    config = ModelConfig.from_folder(shipped_models()["quire-mini"])
    model = Decoder(
        config,
        TorchAttention(),
        MAX_POSITION,
        torch.float32,
        CPU,
        methods(config, "int8", torch.float32, CPU),
    )
    load_weights(model, shipped_models()["quire-mini"])
    layer = model.layers[0].mlp.down_proj
    assert isinstance(layer.method, IntegersOnCPU)
    x = torch.randn(19, layer.in_features, generator=generator) * 3
    expected = round_like(x, "int", "token").double() @ layer.method.dequantize(layer).double().T
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-4, rtol=1e-5)


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    """Rounded twice, by nobody's scheme, or by two who decide."""
    quantized, _ = write_quantized(tmp_path / "q", SPECS["llama3-scaled"], KINDS["awq-g16"])
    with pytest.raises(QuireError, match=r"quantization='int4' with a checkpoint.*\(awq\)"):
        LLM(quantized, quantization="int4", device="cpu")
    with pytest.raises(QuireError, match=r"scheme 'int9'.*int4"):
        LLM("quire-mini", quantization="int9", device="cpu")
    with pytest.raises(QuireError, match="scheme 4"):
        LLM("quire-mini", quantization=4, device="cpu")  # type: ignore[arg-type]
    own = Components(quant_method=unquantized(torch.float32, CPU))
    with pytest.raises(QuireError, match=r"quantization='int8' with a quant_method of your own"):
        LLM("quire-mini", quantization="int8", components=own, device="cpu")


@pytest.mark.parametrize("options", [{}, {"kv_cache_dtype": "int8"}, {"kv_window": 32}])
def test_runs_with_the_engines_options(options: dict[str, Any], tmp_path: Path) -> None:
    """Codes and the numbers that they stand for say the same, whatever else is asked for."""
    folder = write_text_model(tmp_path / "text")
    config = ModelConfig.from_folder(folder)
    coded = LLM(folder, quantization="int4-g32", device="cpu", **options)
    tensors = read_all(folder)
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            tensors[name] = round_to_nearest(tensor, Scheme.named("int4-g32")).dequantize()
    dense = tmp_path / "dense"
    write_text_model(dense)
    for old in dense.glob("*.safetensors*"):
        old.unlink()
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    assert config == ModelConfig.from_folder(dense)
    plain = LLM(dense, device="cpu", **options)
    prompts = ["def fibonacci(n):", "return", "if n < 2: return n\n" * 3]
    for ours, theirs in zip(
        coded.generate(prompts, GREEDY, use_tqdm=False),
        plain.generate(prompts, GREEDY, use_tqdm=False),
        strict=True,
    ):
        assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids
    speculating = LLM(
        folder,
        quantization="int4-g32",
        device="cpu",
        speculative_config={"method": "ngram", "num_speculative_tokens": 3},
        **options,
    )
    for ours, theirs in zip(
        speculating.generate(prompts, GREEDY, use_tqdm=False),
        coded.generate(prompts, GREEDY, use_tqdm=False),
        strict=True,
    ):
        assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids


@pytest.mark.parametrize("kind", ["ct-int4-g16-asym", "fp8-blocks", "ct-w8a8-static"])
def test_random_weights_of_a_quantized_config(kind: str, tmp_path: Path) -> None:
    """A model of no checkpoint has the formats that its config names, for measurements."""
    quantized, _ = write_quantized(tmp_path, SPECS["qwen2"], KINDS[kind])
    config = ModelConfig.from_folder(quantized)
    model = Decoder(
        config,
        TorchAttention(),
        MAX_POSITION,
        torch.float32,
        CPU,
        methods(config, None, torch.float32, CPU),
    )
    initialize_random(model)
    assert decoder_logits(model, TOKENS).isfinite().all()


def test_the_config_decides(tmp_path: Path) -> None:
    """Plain weights under a config that says they are quantized are refused."""
    folder = write(tmp_path, SPECS["llama3-scaled"])
    path = folder / "config.json"
    table = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "quantization_config": table}), "utf-8")
    with pytest.raises(CheckpointError, match="_proj"):
        load(folder)
