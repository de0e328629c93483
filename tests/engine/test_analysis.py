"""`quire.analysis` against transformers' own models, torch's FLOP counter and brute force."""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from quire import QuireError, info
from quire.analysis import (
    LayerTime,
    active_parameters,
    catalog_config,
    catalog_json,
    count_parameters,
    decode_work,
    electricity_usd_per_million_tokens,
    experts_touched,
    find_hardware,
    joules_per_token,
    kv_bytes_per_token,
    kv_cache_bytes,
    linear_weights,
    load_hardware,
    memory_ledger,
    mla_kv_bytes_per_token,
    predict,
    prefill_work,
    recompute_work,
    roofline_time,
    short_dtype,
    usd_per_million_tokens,
    weight_bytes,
)
from quire.analysis.work import attention_flops, causal_pairs, step_weight_bytes
from quire.bench import command, linear, steps
from quire.models.architectures import find_architecture
from quire.models.config import ModelConfig
from quire.models.moe_config import MoEConfig
from quire.resources import load_measurement

SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
TINY: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "llama-biased": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 8,
        "head_dim": 8,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "tie_word_embeddings": True,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 16,
        "tie_word_embeddings": True,
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 4,
    },
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "decoder_sparse_step": 2,
        "attention_bias": True,
    },
}


def quire_config(name: str) -> ModelConfig:
    return ModelConfig.from_dict({**SIZES, **TINY[name]})


def transformers_model(raw: dict[str, Any], **kwargs: Any) -> torch.nn.Module:
    values = {key: value for key, value in raw.items() if key != "torch_dtype"}
    config = AutoConfig.for_model(**values)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config, **kwargs).eval()
    return model


@pytest.mark.parametrize("name", TINY)
def test_parameters_are_those_of_transformers(name: str) -> None:
    model = transformers_model({**SIZES, **TINY[name]})
    count = count_parameters(quire_config(name))
    by_part = dict.fromkeys(("embedding", "attention", "mlp", "norm", "head"), 0)
    for parameter, tensor in model.named_parameters():
        part = (
            "norm" if "norm" in parameter else next(p for k, p in _PARTS.items() if k in parameter)
        )
        by_part[part] += tensor.numel()
    assert by_part == {part: getattr(count, part) for part in by_part}
    assert count.total == sum(by_part.values())


_PARTS = {"embed": "embedding", "self_attn": "attention", "mlp": "mlp", "lm_head": "head"}


@pytest.mark.parametrize("name", catalog_json())
def test_catalog_parameters_are_those_of_transformers(name: str) -> None:
    raw = catalog_json()[name]
    model_type = find_architecture(raw)[1].model_type
    with torch.device("meta"):
        model = transformers_model({**raw, "model_type": model_type})
    config = catalog_config(name)
    assert config is not None
    assert count_parameters(config).total == sum(p.numel() for p in model.parameters())


# Millions of parameters on the model cards, and without embedding and head where given.
PUBLISHED = {
    "Qwen/Qwen3-0.6B": (600, 440),
    "Qwen/Qwen3-8B": (8_200, 6_950),
    "Qwen/Qwen3-32B": (32_800, 31_200),
    "meta-llama/Llama-3.1-8B": (8_030, None),
    "meta-llama/Llama-3.1-70B": (70_600, None),
    "mistralai/Mistral-7B-v0.1": (7_240, None),
    "Qwen/Qwen2.5-7B": (7_610, 6_530),
    "Qwen/Qwen3-30B-A3B": (30_500, None),
}


@pytest.mark.parametrize("name", catalog_json())
def test_catalog_matches_the_published_counts(name: str) -> None:
    config = catalog_config(name)
    assert config is not None
    count = count_parameters(config)
    total, without_embedding = PUBLISHED[name]
    assert count.total / 1e6 == pytest.approx(total, rel=0.01)
    if without_embedding is not None:
        rest = count.total - count.embedding - count.head
        assert rest / 1e6 == pytest.approx(without_embedding, rel=0.01)


@pytest.mark.parametrize(
    "name", ["llama", "llama-biased", "qwen2", "qwen3", "mixtral", "qwen3_moe"]
)
def test_flops_and_cache_are_what_torch_counts(name: str) -> None:
    """Eager attention computes the whole square, which torch counts; ours counts the triangle."""
    batch, prompt = 3, 11
    config = quire_config(name)
    model = transformers_model({**SIZES, **TINY[name]}, attn_implementation="eager")
    if config.moe is not None:
        model.set_experts_implementation("eager")  # torch counts no grouped products
    tokens = torch.arange(batch * prompt).reshape(batch, prompt) % config.vocab_size
    cache = DynamicCache()
    with torch.no_grad(), FlopCounterMode(display=False) as prefill_counter:
        model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    work = prefill_work(config, batch, prompt, "fp32", "fp32")
    triangle = attention_flops(config, causal_pairs(config, prompt))
    square = attention_flops(config, config.num_layers * prompt**2)
    assert prefill_counter.get_total_flops() == work.flops + batch * (square - triangle)

    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert stored == batch * prompt * kv_bytes_per_token(config, "fp32")
    assert stored == batch * kv_cache_bytes(config, prompt, "fp32")

    with torch.no_grad(), FlopCounterMode(display=False) as decode_counter:
        model(tokens[:, :1], past_key_values=cache, use_cache=True)
    decode = decode_work(config, batch, prompt + 1, "fp32", "fp32")
    assert decode_counter.get_total_flops() == decode.flops


@pytest.mark.parametrize("name", ["mistral", "qwen3"])
def test_decode_bytes_are_the_weights_read_plus_the_cache(name: str) -> None:
    batch, context = 2, 20
    config = quire_config(name)
    model = transformers_model({**SIZES, **TINY[name]})
    read = sum(p.nbytes for n, p in model.named_parameters() if "embed" not in n)
    if config.tie_word_embeddings:  # the head reads the table that the embedding shares
        read += config.vocab_size * config.hidden_size * 4
    read += batch * config.hidden_size * 4
    seen = [min(context, w or context) for w in config.sliding_windows]
    cache = batch * 2 * config.num_kv_heads * config.head_size * 4 * (sum(seen) + len(seen))
    assert decode_work(config, batch, context, "fp32", "fp32").bytes_moved == read + cache


@given(
    tokens=st.integers(1, 40),
    windows=st.lists(st.one_of(st.none(), st.integers(1, 50)), min_size=3, max_size=3),
)
def test_causal_pairs_by_counting(tokens: int, windows: list[int | None]) -> None:
    config = replace(quire_config("llama"), sliding_windows=tuple(windows))
    counted = sum(
        1
        for window in windows
        for query in range(tokens)
        for key in range(query + 1)
        if window is None or query - key < window
    )
    assert causal_pairs(config, tokens) == counted


def test_recomputing_grows_with_the_context_and_moves_no_cache() -> None:
    config = quire_config("qwen3")
    first, tenth = (recompute_work(config, 1, n, "fp32") for n in (10, 100))
    assert tenth.flops > 9.9 * (first.flops - 2 * config.hidden_size * config.vocab_size)
    assert tenth.bytes_moved - first.bytes_moved == 90 * config.hidden_size * 4
    # One position of cached decode is what one position of recomputation adds.
    cached = decode_work(config, 1, 100, "fp32", "fp32").flops
    before = recompute_work(config, 1, 99, "fp32").flops
    assert tenth.flops - before == cached - 2 * config.hidden_size * config.vocab_size


def test_latent_attention_of_deepseek_v2() -> None:
    """60 layers of 512 + 64 elements: GQA with 2.25 KV heads of 128 would take as much."""
    assert mla_kv_bytes_per_token(60, 512, 64, "bf16") == 69_120
    assert mla_kv_bytes_per_token(60, 512, 64, "bf16") == 2.25 * 2 * 60 * 128 * 2


def test_kv_bytes_of_known_models() -> None:
    expected = {"qwen3-0.6b": 114_688, "llama-3.1-8b": 131_072, "qwen2.5-7b": 57_344}
    for name, size in expected.items():
        config = catalog_config(name)
        assert config is not None
        assert kv_bytes_per_token(config, "bfloat16") == size
        full_heads = replace(config, num_kv_heads=config.num_heads)
        assert kv_bytes_per_token(full_heads, "bf16") == size * config.num_groups


def test_a_sliding_window_bounds_the_cache() -> None:
    config = catalog_config("mistral-7b-v0.1")
    assert config is not None
    at_window = kv_cache_bytes(config, 4_096, "bf16")
    assert kv_cache_bytes(config, 2_048, "bf16") == at_window / 2
    assert kv_cache_bytes(config, 30_000, "bf16") == at_window


def test_roofline_is_the_longer_of_two_times() -> None:
    device = load_hardware()["h100-sxm"]
    ridge = device.ridge_point("bf16")
    moved = 1e9
    memory_time = moved / device.bandwidth_bytes_per_s
    for factor in (0.1, 0.9, 1.0):
        assert roofline_time(factor * ridge * moved, moved, device, "bf16") == memory_time
    assert roofline_time(3 * ridge * moved, moved, device, "bf16") == pytest.approx(3 * memory_time)
    assert roofline_time(1, moved, device, "bf16", mbu=0.5) == 2 * memory_time
    with pytest.raises(ValueError, match="no native bf16 rate"):
        load_hardware()["t4"].peak("bf16")


def test_limit_of_one_sequence_on_an_h200() -> None:
    """ANCHOR: 0.28 ms a token for the 0.6B, 3.6 ms for the 8B: weights over bandwidth."""
    device = find_hardware("h200").measured()
    for name, milliseconds in (("qwen3-0.6b", 0.28), ("qwen3-8b", 3.6)):
        config = catalog_config(name)
        assert config is not None
        result = predict(config, device, prompt_tokens=128, output_tokens=256)
        assert result.tpot_s * 1e3 == pytest.approx(milliseconds, rel=0.05)
        assert result.decode_bound == "memory"
        read = weight_bytes(config, "bf16") - 2 * count_parameters(config).head
        assert result.tpot_s > read / device.bandwidth_bytes_per_s


def test_experts_touched_by_counting() -> None:
    """Every choice of 2 of 4 experts by each of 3 tokens, equally likely."""
    moe = MoEConfig(4, 2, 24, False, (0, 1, 2))
    config = replace(quire_config("qwen3"), moe=moe)
    choices = list(itertools.combinations(range(4), 2))
    touched = [len(set().union(*three)) for three in itertools.product(choices, repeat=3)]
    assert experts_touched(config, 3) == pytest.approx(sum(touched) / len(touched))
    assert experts_touched(config, 1) == pytest.approx(2)
    with pytest.raises(ValueError, match="Qwen3ForCausalLM has no experts"):
        experts_touched(quire_config("qwen3"), 3)


def test_a_step_reads_the_experts_that_it_touches() -> None:
    config = quire_config("qwen3_moe")  # one layer in two has experts
    moe = config.moe
    assert moe is not None
    assert moe.layers == (1,)
    one = 3 * config.hidden_size * moe.intermediate_size
    idle = moe.num_experts - moe.experts_per_token
    count = count_parameters(config)
    assert active_parameters(config) == count.total - idle * one
    for tokens in (1, 2, 50):
        unread = moe.num_experts - experts_touched(config, tokens)
        expected = count.total - count.embedding - unread * one + tokens * config.hidden_size
        assert step_weight_bytes(config, tokens, "fp32") == pytest.approx(4 * expected)


def test_limits_of_a_mixture_on_an_h200() -> None:
    """ANCHOR: 30B-A3B reads 6.08 GB a token of its 61 GB, 1.42 ms; at batch 256 all of it."""
    config, device = catalog_config("qwen3-30b-a3b"), find_hardware("h200").measured()
    assert config is not None
    assert weight_bytes(config, "bf16") / 1e9 == pytest.approx(61.06, abs=0.01)
    assert active_parameters(config) / 1e9 == pytest.approx(3.3, rel=0.02)
    assert step_weight_bytes(config, 1, "bf16") / 1e9 == pytest.approx(6.08, abs=0.01)
    result = predict(config, device, prompt_tokens=128, output_tokens=256)
    assert result.tpot_s * 1e3 == pytest.approx(1.42, rel=0.02)
    everything = weight_bytes(config, "bf16") - 2 * count_parameters(config).embedding
    assert step_weight_bytes(config, 256, "bf16") == pytest.approx(everything, rel=1e-3)


def test_where_an_expert_is_no_layer_of_a_dense_model() -> None:
    config = catalog_config("qwen3-30b-a3b")
    assert config is not None
    with pytest.raises(QuireError, match="Qwen3MoeForCausalLM: a layer of experts"):
        LayerTime.of(config, find_hardware("h200"), None, launch_seconds=0)
    with pytest.raises(QuireError, match="bench linear times the products of a dense layer"):
        linear.run(config, torch.device("cpu"), torch.float32, 1)
    experts = 48 * 128 * 3 * 2048 * 768
    assert linear_weights(config) == experts + 48 * 2 * 2048 * 36 * 128


workloads = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 256),
        "prompt_tokens": st.integers(1, 4_000),
        "output_tokens": st.integers(2, 40),
        "weight_dtype": st.sampled_from(["fp32", "bf16", "fp8", "int4"]),
        "kv_dtype": st.sampled_from(["bf16", "fp8"]),
    }
)
devices = st.sampled_from(sorted(load_hardware()))
names = st.sampled_from(sorted(catalog_json()))


@settings(max_examples=60, deadline=None)
@given(name=names, device=devices, workload=workloads)
def test_prediction_keeps_its_own_books(name: str, device: str, workload: dict[str, Any]) -> None:
    config, hardware = catalog_config(name), load_hardware()[device]
    assert config is not None
    result = predict(config, hardware, **workload)
    batch, output = workload["batch"], workload["output_tokens"]
    latency = result.ttft_s + (output - 1) * result.tpot_s
    assert result.request_latency_s == pytest.approx(latency)
    assert result.output_tokens_per_s == pytest.approx(batch * output / latency)
    dollars = latency * hardware.usd_per_hour / 3600
    assert result.usd_per_million_output_tokens == pytest.approx(dollars / batch / output * 1e6)
    assert result.joules_per_output_token == pytest.approx(
        latency * hardware.tdp_watts / batch / output
    )
    bigger = predict(config, hardware, **{**workload, "batch": 2 * batch})
    assert bigger.tpot_s >= result.tpot_s * (1 - 1e-12)
    assert bigger.output_tokens_per_s >= result.output_tokens_per_s * (1 - 1e-12)
    slower = predict(config, hardware, **workload, mfu=0.5, mbu=0.25, step_overhead_s=1e-4)
    assert 2 * result.tpot_s * (1 - 1e-9) <= slower.tpot_s - 1e-4
    assert slower.tpot_s - 1e-4 <= 4 * result.tpot_s * (1 + 1e-9)


@given(
    name=names,
    capacity=st.floats(1e9, 5e11),
    context=st.integers(1, 50_000),
    budget=st.integers(1, 8_192),
)
def test_the_largest_batch_is_the_largest(
    name: str, capacity: float, context: int, budget: int
) -> None:
    config = catalog_config(name)
    assert config is not None

    def ledger(batch: int) -> Any:
        return memory_ledger(
            config,
            capacity,
            batch=batch,
            context=context,
            weight_dtype="int4",
            kv_dtype="fp8",
            compute_dtype="bf16",
            max_num_batched_tokens=budget,
        )

    largest = ledger(1).max_batch
    assert not ledger(largest + 1).fits
    if largest:
        assert ledger(largest).fits


def test_cost_by_hand() -> None:
    # 3.60 $/h at 1,000 tok/s: 0.001 $ buys 1,000 tokens, so 1 $ buys 10⁶.
    assert usd_per_million_tokens(3.60, 1000) == pytest.approx(1.0)
    assert joules_per_token(700, 1400) == 0.5
    # 0.5 J a token is 5·10⁵ J in 10⁶ tokens, 0.1389 kWh, 2.8 cents at 0.20 $/kWh.
    assert electricity_usd_per_million_tokens(700, 1400, 0.20) == pytest.approx(0.5 / 3.6 * 0.2)


def test_weights_without_a_native_rate_are_widened() -> None:
    devices = load_hardware()
    assert devices["h100-sxm"].compute_dtype("int4") == "bf16"
    assert devices["h100-sxm"].compute_dtype("fp8") == "fp8"
    assert devices["t4"].compute_dtype("bf16") == "fp16"
    assert devices["cpu-2core"].compute_dtype("bfloat16") == "fp32"
    measured = devices["h200-sxm"].measured()
    assert measured.bandwidth_bytes_per_s < devices["h200-sxm"].bandwidth_bytes_per_s
    assert devices["h100-sxm"].measured() is devices["h100-sxm"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 0}, "batch=0"),
        ({"output_tokens": 1}, "at least 2"),
        ({"mfu": 0.0}, "mfu=0.0"),
        ({"mbu": 1.5}, "mbu=1.5"),
        ({"step_overhead_s": -1.0}, "negative"),
        ({"kv_dtype": "fp7"}, "'fp7' is not known"),
    ],
)
def test_impossible_values_are_named(wrong: dict[str, Any], message: str) -> None:
    config = quire_config("qwen3")
    with pytest.raises(ValueError, match=message):
        predict(config, load_hardware()["t4"], **wrong)


def test_names_of_devices_and_dtypes() -> None:
    assert find_hardware("H200").key == "h200-sxm"
    assert short_dtype("torch.bfloat16") == "bf16"
    with pytest.raises(ValueError, match="several devices named 'h'"):
        find_hardware("h")
    with pytest.raises(ValueError, match="no device named 'abacus'"):
        find_hardware("abacus")


def quire_info(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    info.add_arguments(parser)
    return info.run(parser.parse_args(arguments))


@pytest.mark.parametrize(
    ("name", "model"), [("steps-h200", "Qwen3-0.6B"), ("steps-qwen3-8b-h200", "Qwen3-8B")]
)
def test_recorded_limits_are_those_of_the_measured_ceilings(name: str, model: str) -> None:
    record, config = load_measurement(name), catalog_config(model.lower())
    device = find_hardware("h200").measured()
    assert config is not None
    assert f"--model {model} " in record["command"]
    assert steps.note(device, torch.bfloat16) in record["note"]
    for row in record["rows"]:
        if row["case"].startswith("mixed"):
            continue  # a prompt beside readers is held against no limit
        prompt, batch = int(row["parameters"]["prompt_tokens"]), int(row["parameters"]["batch"])
        work = (
            prefill_work(config, batch, prompt, "bf16", "bf16")
            if row["case"].startswith("prefill")
            else decode_work(config, batch, prompt + steps.NUM_TOKENS // 2, "bf16", "bf16")
        )
        limit = roofline_time(work.flops, work.bytes_moved, device, "bf16") * 1e3
        assert row["baselines"]["limit"] == pytest.approx(limit)
        assert row["value"] > limit


def test_bench_holds_a_gpu_against_its_measured_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, names = torch.device("cuda"), iter(["NVIDIA H200", "NVIDIA H100 80GB HBM3", "Abacus 9"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: next(names))
    assert command._ceilings(gpu) == find_hardware("h200").measured() != find_hardware("h200")
    assert command._ceilings(gpu) == find_hardware("h100")  # we measured none of its ceilings
    assert command._ceilings(gpu) is None
    assert command._ceilings(torch.device("cpu")) is None


def test_info_prints_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    assert quire_info("Qwen/Qwen3-8B", "--hardware", "h200", "--batch", "64") == 0
    table = capsys.readouterr().out
    config = catalog_config("qwen3-8b")
    assert config is not None
    result = predict(
        config, find_hardware("h200").measured(), batch=64, prompt_tokens=512, output_tokens=256
    )
    rows = {line[:20].strip(): line[20:].split() for line in table.splitlines() if line[:2] == "  "}
    assert rows["parameters"] == ["8,190,735,360"]
    assert rows["KV cache a token"][:2] == ["147", "kB"]
    assert rows["TPOT"][:2] == [f"{result.tpot_s * 1e3:.3g}", "ms"]
    assert rows["throughput"][0] == f"{result.output_tokens_per_s:,.0f}"
    assert rows["price"][0] == f"${result.usd_per_million_output_tokens:,.4g}"
    values = [line for line in table.splitlines() if line.startswith("  ")]
    assert len({line[:22].rstrip() for line in values}) == len(values) - 1  # weights, twice


def test_info_calls_times_limits_where_nothing_was_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    heading = "\nlimits (no engine that does this work is faster) on NVIDIA "
    for arguments, expected in (
        (("h200", "--data-sheet"), f"{heading}H200 SXM\n"),
        (("h100",), f"{heading}H100 SXM\n"),
        (
            ("h200",),
            "\nestimate (some kernels pass measured ceilings) on NVIDIA H200 SXM, measured",
        ),
        (
            ("h200", "--data-sheet", "--mbu", "0.9"),
            "\nestimate at the given MFU, MBU, overhead on ",
        ),
    ):
        assert quire_info("qwen3-8b", "--hardware", *arguments) == 0
        assert expected in capsys.readouterr().out


def test_info_reads_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, **TINY["qwen3"]}))
    assert quire_info(str(tmp_path), "--hardware", "cpu") == 0
    total = count_parameters(quire_config("qwen3")).total
    assert f"{total:,}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("qwen3-8b", "--hardware", "abacus"), "choose one of cpu-2core"),
        (("qwen3-8b", "--dtype", "fp7"), "'fp7' is not known"),
        (("qwen3-8b", "--batch", "0"), "batch=0"),
        (("no-such-model",), "is no shipped model"),
        (("/",), "config.json"),
    ],
)
def test_info_answers_bad_input_in_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quire_info(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("quire info: ")
    assert error.count("\n") == 1


def test_info_says_when_a_model_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert quire_info("llama-3.1-70b", "--hardware", "h100") == 0
    assert "DOES NOT FIT in 80.0 GB" in capsys.readouterr().out
