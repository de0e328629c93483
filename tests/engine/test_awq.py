"""AWQ and SmoothQuant: scales that leave a model as it was, and make its rounding better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import SPECS, TOLERANCE, oracle_logits, random_prompts
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from quire.models.decoder import DecoderLayer
from quire.quantization.algorithms.awq import search_scales
from quire.quantization.algorithms.calibration import (
    Recording,
    Statistics,
    output_error,
)
from quire.quantization.algorithms.smoothquant import smoothing_scales
from quire.quantization.inputs import rounded_inputs
from quire.quantization.rounding import round_to_nearest
from quire.quantization.scheme import Scheme
from quire.quantize.folding import folds
from quire.quantize.layer import record, scale_layer
from quire.quantize.recipe import Recipe
from quire.quantize.source import Source, linears

CPU = torch.device("cpu")
RECIPES = {
    "awq": Recipe(Scheme.named("int4-g8"), "awq"),
    "awq-asym": Recipe(Scheme.named("int4-g16-asym"), "awq"),
    "smooth": Recipe(Scheme.named("int8"), smooth=0.5),
    "smooth-all": Recipe(Scheme.named("int8"), smooth=1.0),
}

Folder = Callable[[str], Path]
Oracle = Callable[[str], PreTrainedModel]


def names(source: Source) -> set[str]:
    return {name for group in source.linear_names() for name in group}


def scaled_logits(source: Source, recipe: Recipe, token_ids: list[int]) -> tuple[Tensor, int]:
    """Logits with every layer scaled and nothing rounded, and how many scales are not 1."""
    hidden, num_scaled = source.embed(token_ids), 0
    for index in range(source.config.num_layers):
        layer = source.layer(index)
        before = [linear.weight.clone() for linear in linears(layer)]
        record(source, layer, index, [hidden])
        scale_layer(source, layer, recipe, names(source))
        for linear, weight in zip(linears(layer), before, strict=True):
            num_scaled += int(((linear.weight / weight - 1).abs() > 0.01).any(0).sum())
        hidden = source.run(layer, index, hidden)
    return source.logits(hidden), num_scaled


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", SPECS)
def test_scaling_alone_changes_no_logit(
    name: str, recipe: Recipe, checkpoint: Folder, oracle: Oracle
) -> None:
    """Against transformers on the original, with biases, grouped heads, windows, norms of heads."""
    (token_ids,) = random_prompts([80], seed=3)
    source = Source(checkpoint(name), CPU, 100)
    logits, num_scaled = scaled_logits(source, recipe, token_ids)
    assert num_scaled > 300  # columns and rows whose weights are others now
    expected = oracle_logits(oracle(name), token_ids)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


def test_norms_in_16_bits(checkpoint: Folder, tmp_path: Path) -> None:
    """A norm's divided weight is rounded when it is stored, and columns answer what is stored."""
    original = checkpoint("mistral")
    for path in original.iterdir():
        if path.suffix == ".safetensors":
            tensors = {name: x.bfloat16() for name, x in load_file(path).items()}
            save_file(tensors, tmp_path / path.name)
        else:
            text = path.read_text("utf-8").replace('"float32"', '"bfloat16"')
            (tmp_path / path.name).write_text(text, "utf-8")
    source = Source(tmp_path, CPU, 100)
    assert source.dtype == torch.bfloat16
    (token_ids,) = random_prompts([80], seed=4)
    hidden = source.embed(token_ids)
    for index in range(source.config.num_layers):
        hidden = source.run(source.layer(index), index, hidden)
    expected = source.logits(hidden)
    logits, num_scaled = scaled_logits(source, RECIPES["smooth"], token_ids)
    assert num_scaled > 300
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
    layer = source.layer(0)
    record(source, layer, 0, [source.embed(token_ids)])
    scale_layer(source, layer, RECIPES["smooth"], names(source))
    norm = layer.input_layernorm.weight
    assert torch.equal(norm, norm.bfloat16().float())
    assert not torch.equal(norm, source.layer(0).input_layernorm.weight)


def places(source: Source, quantized: set[str]) -> list[tuple[str, str]]:
    def last(name: str) -> str:
        return name.rpartition(".")[2]

    return [
        (last(place.before.name), "+".join(last(name) for name in place.after.shard_rows))
        for place in folds(source.layer(0), quantized)
    ]


def test_where_scales_go(checkpoint: Folder) -> None:
    """o_proj only where no two query heads share a value head; nothing that is left as it is."""
    several = Source(checkpoint("qwen2-two-groups"), CPU, 50)
    grouped = [
        ("input_layernorm", "q_proj+k_proj+v_proj"),
        ("post_attention_layernorm", "gate_proj+up_proj"),
        ("up_proj", "down_proj"),
    ]
    assert places(several, names(several)) == grouped
    each = Source(checkpoint("llama-linear-biased"), CPU, 50)
    assert places(each, names(each)) == [grouped[0], ("v_proj", "o_proj"), *grouped[1:]]
    left = {name for name in names(each) if not name.endswith(("gate_proj", "up_proj"))}
    assert places(each, left) == [grouped[0], ("v_proj", "o_proj")]
    assert places(each, {n for n in left if not n.endswith("o_proj")}) == grouped[:1]


# --- the scales --------------------------------------------------------------


def inputs(columns: int, seed: int, large: float) -> Statistics:
    """Inputs of which every eleventh feature is larger."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * columns, columns, generator=generator)
    x[:, ::11] *= large
    statistics = Statistics(columns, CPU)
    statistics.add(x)
    return statistics


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["int4-g16", "int4-g16-asym", "int4-channel"]),
    columns=st.integers(20, 90),
    seed=st.integers(0, 2**16),
    large=st.sampled_from([1.0, 5.0, 40.0]),
)
def test_outputs_never_err_more_than_without_scales(
    name: str, columns: int, seed: int, large: float
) -> None:
    scheme, noted = Scheme.named(name), inputs(columns, seed, large)
    weight = torch.randn(16, columns, generator=torch.Generator().manual_seed(seed))
    scales, alpha = search_scales(weight, noted.hessian, noted.mean_magnitude, scheme)
    scaled = round_to_nearest(weight * scales, scheme).dequantize() / scales
    plain = round_to_nearest(weight, scheme).dequantize()
    lost = output_error(scaled - weight, noted.hessian)
    without = output_error(plain - weight, noted.hessian)
    assert lost <= without
    assert (alpha == 0) == bool((scales == 1).all())


def test_large_features_gain_by_scales() -> None:
    """Not each time: where few columns are large, no α may be better than none."""
    scheme, gains = Scheme.named("int4-g16"), 0
    for seed in range(40):
        noted = inputs(64, seed, large=40.0)
        weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(seed))
        gains += search_scales(weight, noted.hessian, noted.mean_magnitude, scheme)[1] > 0
    assert gains >= 36


def test_a_search_by_hand() -> None:
    """One feature is nine times as large: every α by the paper's formula, the best is taken."""
    noted = Statistics(4, CPU)
    noted.add(torch.tensor([[9.0, 1.0, 1.0, 1.0], [-9.0, 1.0, -1.0, 1.0], [9.0, -1.0, -1.0, 1.0]]))
    assert noted.mean_magnitude.tolist() == [9, 1, 1, 1]
    weight = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    scheme = Scheme.named("int4-channel")
    errors = []
    for step in range(20):
        s = noted.mean_magnitude ** (step / 20)
        s = s / (s.max() * s.min()).sqrt()
        rounded = round_to_nearest(weight * s, scheme).dequantize() / s
        x = torch.tensor([[9.0, 1.0, 1.0, 1.0], [-9.0, 1.0, -1.0, 1.0], [9.0, -1.0, -1.0, 1.0]])
        errors.append(float((x @ (rounded - weight).T).square().sum()))
    best = min(range(20), key=errors.__getitem__)
    assert best > 0
    scales, alpha = search_scales(weight, noted.hessian, noted.mean_magnitude, scheme)
    assert alpha == best / 20
    assert scales[0] / scales[1] == pytest.approx(9**alpha)
    assert scales[0] * scales[1] == pytest.approx(1)


def test_smoothing_by_hand() -> None:
    largest = torch.tensor([16.0, 1.0, 0.0, 4.0])
    weight = torch.tensor([[0.25, -4.0, 2.0, 0.0], [-1.0, 1.0, 1.0, 0.0]])
    assert smoothing_scales(largest, weight, 0.5).tolist() == [4.0, 0.5, 1.0, 1.0]
    assert smoothing_scales(largest, weight, 1.0).tolist() == [16.0, 1.0, 1.0, 1.0]
    assert smoothing_scales(largest, weight, 0.0).tolist() == [1.0, 0.25, 1.0, 1.0]


def test_smoothing_makes_rounded_inputs_better() -> None:
    """One scale a token and four features that are forty times as large as the others."""
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(200, 64, generator=generator), torch.randn(32, 64, generator=generator)
    x[:, ::16] *= 40
    scheme = Scheme.named("int8")
    scales = smoothing_scales(x.abs().amax(0), weight, 0.5)
    errors = []
    for s in (torch.ones(64), scales):
        rounded = round_to_nearest(weight * s, scheme).dequantize()
        errors.append(float((rounded_inputs(x / s, scheme) @ rounded.T - x @ weight.T).norm()))
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("name", ["int8", "fp8", "fp8_block"])
def test_rounded_inputs(name: str) -> None:
    """Half a step of the scale at most for integers, 2⁻⁴ of the number for E4M3."""
    x = torch.randn(9, 300, generator=torch.Generator().manual_seed(2)) * torch.logspace(-3, 3, 300)
    x[4] = 0
    rounded = rounded_inputs(x, Scheme.named(name))
    assert rounded.shape == x.shape
    size = 128 if name == "fp8_block" else 300
    for begin in range(0, 300, size):
        part, error = x[:, begin : begin + size], (rounded - x)[:, begin : begin + size].abs()
        largest = part.abs().amax(1, keepdim=True)
        if name == "int8":
            assert (error <= largest / 254 * 1.0001).all()
        else:
            smallest = largest / 448 * 2**-10  # half a step of the subnormal numbers
            assert (error <= torch.maximum(part.abs() / 16, smallest) * 1.0001).all()
        assert torch.equal(rounded.abs().amax(1) > 0, x.abs().amax(1) > 0)
    assert not torch.equal(rounded, x)


def test_statistics_are_of_what_goes_in(checkpoint: Folder) -> None:
    """H, means and largest inputs of a norm's readers, from the norm's own outputs."""
    source = Source(checkpoint("qwen3-sharded"), CPU, 50)
    (token_ids,) = random_prompts([40], seed=5)
    layer: DecoderLayer = source.layer(0)
    hidden = source.embed(token_ids)
    record(source, layer, 0, [hidden[:25], hidden[25:]])
    x = layer.input_layernorm(hidden)
    noted = scale_layer(source, layer, Recipe(Scheme.named("int8")), set())[
        layer.self_attn.qkv_proj
    ]
    assert noted.num_tokens == 40
    torch.testing.assert_close(noted.hessian, x.T @ x)
    torch.testing.assert_close(noted.mean_magnitude, x.abs().mean(0))
    assert torch.equal(noted.largest, x.abs().amax(0))
    scales = torch.linspace(0.5, 3, x.shape[1])
    noted.divide(scales)
    torch.testing.assert_close(noted.hessian, (x / scales).T @ (x / scales))
    torch.testing.assert_close(noted.largest, (x / scales).abs().amax(0))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", ["llama-linear-biased", "qwen3-sharded"])
def test_statistics_follow_the_scales(name: str, recipe: Recipe, checkpoint: Folder) -> None:
    """What GPTQ is given after smoothing is what the scaled layer's linear layers are given."""
    source = Source(checkpoint(name), CPU, 70)
    (token_ids,) = random_prompts([60], seed=6)
    layer, hidden = source.layer(0), [source.embed(token_ids)]
    record(source, layer, 0, hidden)
    followed = scale_layer(source, layer, recipe, names(source))
    record(source, layer, 0, hidden)
    for linear in linears(layer):
        assert isinstance(linear.method, Recording)
        again = linear.method.statistics
        assert again is not None
        noted = followed[linear]
        size = float(again.hessian.diagonal().max())
        torch.testing.assert_close(noted.hessian, again.hessian, atol=1e-5 * size, rtol=1e-4)
        torch.testing.assert_close(noted.largest, again.largest, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(noted.mean_magnitude, again.mean_magnitude, atol=1e-5, rtol=1e-4)
