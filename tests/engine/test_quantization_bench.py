"""`quire bench quantization-quality`: its rows, and that what it judges is what the engine runs."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from compressed_tensors.quantization.quant_args import FP4_E2M1_DATA
from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales
from torch import Tensor

from quire import LLM, QuireError
from quire.bench import quantization_quality as bench
from quire.bench import quantization_variants as variants
from quire.bench.measurement import Row
from quire.bench.perplexity import heldout_texts, nats_per_token
from quire.bench.quantization_scores import Judge, Scores
from quire.models.loader import resolve_checkpoint
from quire.quantization.codes import Codes
from quire.quantization.scheme import SCHEMES, Scheme
from quire.quantize.driver import quantize
from quire.quantize.recipe import Recipe
from quire.quantize.source import Source, linears
from quire.quantize.texts import read_documents, sequences
from quire.resources import data_dir
from quire.tokenizer import Tokenizer, load_tokenizer

CPU = torch.device("cpu")
MODEL = "quire-mini-draft"
LENGTH = 96
PARTS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """The whole benchmark at toy size: two layers, three texts."""
    return bench.run(MODEL, CPU, num_texts=3, num_calibration_texts=4, length=LENGTH)


@pytest.fixture(scope="module")
def judged(rows: list[Row]) -> dict[str, Row]:
    return {row.case: row for row in rows if row.metric == bench.METRIC}


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    return heldout_texts(LLM(MODEL, device=CPU), 7, LENGTH)


@pytest.fixture(scope="module")
def judge(texts: list[list[int]]) -> Judge:
    return Judge(source_of(), texts[::2])


def source_of() -> Source:
    return Source(resolve_checkpoint(MODEL), CPU, LENGTH)


def weights(changed: variants.Changed) -> list[Tensor]:
    return [linear.weight for layer in changed.layers for linear in linears(layer)]


def kl(scores: Scores) -> float:
    return float(scores.kl.mean())


# --- the rows --------------------------------------------------------------------


def test_every_case_has_its_row(rows: list[Row], judged: dict[str, Row]) -> None:
    integers = ("int4-channel", "int4-g128", "int4-g64", "int4-g32", "int3-g128")
    expected = {
        *("plain", "int8-channel-rtn", "int8-tensor-rtn", "int4-tensor-rtn", "int2-g32-asym-rtn"),
        *(f"{name}{zero}-rtn" for name in integers for zero in ("", "-asym")),
        *(f"fp8-{part}-rtn" for part in ("channel", "tensor", "block")),
        *("mxfp4-rtn", "mxfp4-raised-rtn", "nvfp4-rtn"),
        *(f"int4-{group}-gptq" for group in ("g128", "g32", "channel")),
        *("int4-g128-gptq-act-order", "int4-g128-asym-gptq"),
        *("int4-g128-awq", "int4-g128-asym-awq"),
        *("inputs-int8-token", "inputs-int8-tensor", "inputs-fp8-token"),
        *("w8a8-int8", "w8a8-int8-smoothed", "w8a8-fp8", "w8a8-fp8-block"),
        *(f"planted-int4-g128-{name}" for name in ("rtn", "awq", "gptq", "gptq-act-order")),
        *(f"planted-inputs-{name}" for name in ("int8-token", "int8-tensor", "fp8-token")),
        *("planted-plain", "planted-w8a8-int8", "planted-w8a8-int8-smoothed", "planted-w8a8-fp8"),
        *(f"kv-{kv}-{name}" for kv in ("int8", "fp8") for name in ("plain", "int8", "int4-g128")),
    }
    assert set(judged) == expected
    others = {row.case for row in rows if row.metric == "largest_to_median"}
    assert others == {
        f"{prefix}-{layer}-{part}"
        for prefix in ("outliers", "planted-outliers")
        for layer in range(2)
        for part in PARTS
    }
    keys = [(row.case, row.metric) for row in rows]
    assert len(keys) == len(set(keys))
    for row in rows:
        assert all(math.isfinite(value) for value in (row.value, *row.parameters.values()))
        if "low" in row.parameters:
            assert row.parameters["low"] <= row.value <= row.parameters["high"]


def test_plain_weights_cost_nothing(judged: dict[str, Row]) -> None:
    plain = judged["plain"]
    assert plain.value == 0
    parameters = plain.parameters
    for name in ("low", "high", "kl_mean", "kl_p999", "improved", "largest_logit_change"):
        assert parameters[name] == 0
    assert parameters["kept"] == 1
    assert parameters["bits_a_weight"] == 16
    planted = judged["planted-plain"]
    assert abs(planted.value) < 1e-3
    assert 0 < planted.parameters["kl_mean"] < 1e-6
    assert planted.parameters["kept"] == 1
    assert 0 < planted.parameters["largest_logit_change"] < bench.MOST_CHANGED_LOGIT


def test_finer_grids_change_less(judged: dict[str, Row]) -> None:
    """By the mean KL, whose order no luck of a few tokens turns round."""
    found = {case: row.parameters["kl_mean"] for case, row in judged.items()}
    ladders = (
        ("int8-channel-rtn", "int4-g32-rtn", "int4-g128-rtn", "int3-g128-rtn"),
        ("int4-g32-rtn", "int4-g64-rtn", "int4-channel-rtn", "int4-tensor-rtn"),
        ("int4-g128-asym-rtn", "int3-g128-asym-rtn", "int2-g32-asym-rtn"),
        ("int8-channel-rtn", "fp8-channel-rtn", "nvfp4-rtn"),
        ("int4-g128-gptq", "int4-g128-rtn"),
        ("int4-g32-gptq", "int4-g32-rtn"),
        ("int4-channel-gptq", "int4-channel-rtn"),
        ("int4-g128-asym-gptq", "int4-g128-asym-rtn"),
        ("int4-g128-asym-rtn", "int4-g128-rtn"),
        ("inputs-int8-token", "inputs-int8-tensor"),
        ("inputs-int8-token", "w8a8-int8", "planted-w8a8-int8"),
        ("planted-w8a8-int8-smoothed", "planted-w8a8-int8"),
        ("planted-int4-g128-awq", "planted-int4-g128-rtn"),
        ("planted-int4-g128-gptq", "planted-int4-g128-rtn"),
        ("int4-g128-rtn", "planted-int4-g128-rtn"),
        ("inputs-int8-token", "planted-inputs-int8-token", "planted-inputs-int8-tensor"),
    )
    for ladder in ladders:
        for better, worse in pairwise(ladder):
            assert found[better] < found[worse], f"{better} against {worse}"
    for case, row in judged.items():
        tail = [row.parameters[f"kl_p{level}"] for level in ("50", "90", "99", "999")]
        assert tail == sorted(tail), case


def test_bits_of_a_weight(judged: dict[str, Row]) -> None:
    """Scales and zeros by hand for the draft's shapes: inputs of 128, into down_proj 448."""
    bits = {case: row.parameters["bits_a_weight"] for case, row in judged.items()}
    rows_of = {128: 4 * 64 + 2 * 448, 448: 128}  # q, k, v and o have 128 + 64 + 64 and 128
    rows_of[128] += 128
    total = sum(columns * count for columns, count in rows_of.items())
    scales = {
        size: sum(count * -(-columns // size) for columns, count in rows_of.items())
        for size in (32, 64, 128, 1000)
    }
    for name, size in (("channel", 1000), ("g128", 128), ("g64", 64), ("g32", 32)):
        assert bits[f"int4-{name}-rtn"] == pytest.approx(4 + 16 * scales[size] / total)
        assert bits[f"int4-{name}-asym-rtn"] == pytest.approx(4 + 20 * scales[size] / total)
    assert bits["int4-g128-gptq"] == bits["int4-g128-awq"] == bits["int4-g128-rtn"]
    assert bits["mxfp4-rtn"] == 4.25
    assert bits["nvfp4-rtn"] == pytest.approx(4.5, abs=0.01)
    assert bits["fp8-tensor-rtn"] == pytest.approx(8 + 16 * 14 / (2 * total))


def test_a_cache_and_weights_together(rows: list[Row], judged: dict[str, Row]) -> None:
    together = [row for row in rows if row.metric == "excess_over_sum_percent"]
    assert len(together) == 4
    for row in together:
        alone = sum(judged[part].value for part in row.baselines)
        assert row.value == pytest.approx(judged[row.case].value - alone, abs=1e-6)
        assert [judged[part].value for part in row.baselines] == list(row.baselines.values())
        kls = [judged[part].parameters["kl_mean"] for part in (row.case, *row.baselines)]
        assert [row.parameters["kl_mean"], row.parameters["kl_mean_sum"]] == [kls[0], sum(kls[1:])]
        assert kls[0] == pytest.approx(sum(kls[1:]), rel=0.3)  # no rounding left out


def test_two_cases_side_by_side(rows: list[Row], judged: dict[str, Row]) -> None:
    found = {row.case: row for row in rows if row.metric == "bits_per_byte_against_percent"}
    assert len(found) == len(bench.COMPARED)
    for case, other in bench.COMPARED:
        first, second = (judged[name].parameters["bits_per_byte"] for name in (case, other))
        row = found[f"{case} to {other}"]
        assert row.value == pytest.approx(100 * (first / second - 1), abs=1e-6)


def test_planted_channels_stand_out(rows: list[Row]) -> None:
    found = {row.case: row for row in rows if row.metric == "largest_to_median"}
    for layer in range(2):
        for part in ("qkv_proj", "gate_up_proj"):
            planted = found[f"planted-outliers-{layer}-{part}"]
            assert planted.value > 5 * found[f"outliers-{layer}-{part}"].value
            assert planted.parameters["channels_above_10"] >= 5
        for part in ("o_proj", "down_proj"):
            same = found[f"planted-outliers-{layer}-{part}"]
            assert same.value == pytest.approx(found[f"outliers-{layer}-{part}"].value, rel=1e-3)


def test_what_plantings_span(rows: list[Row], judged: dict[str, Row]) -> None:
    for case, row in judged.items():
        assert ("plantings" in row.parameters) == case.startswith("planted-")
        if case.startswith("planted-"):
            assert row.parameters["plantings"] == len(bench.SEEDS)
            assert row.parameters["lowest"] < row.value < row.parameters["highest"]
    for row in rows:
        if row.metric == "largest_to_median":
            parameters = row.parameters
            first = parameters["largest"] / parameters["median"]
            assert 0.9999 * parameters["lowest"] <= row.value <= 1.0001 * parameters["highest"]
            assert 0.9999 * parameters["lowest"] <= first <= 1.0001 * parameters["highest"]
            if row.case.startswith("outliers-"):
                assert row.value == pytest.approx(first, rel=1e-5)


def test_only_on_a_cpu() -> None:
    with pytest.raises(QuireError, match="--device cpu"):
        bench.run(MODEL, torch.device("cuda"))


# --- what is judged --------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "kv"),
    [
        *((scheme, None) for scheme in (None, "int8", "fp8", "fp8_block", "int4-g128")),
        *((None, "fp8"), ("int8", "int8"), ("int4-g32-asym", "fp8")),
    ],
)
def test_the_engine_runs_what_is_judged(
    scheme: str | None, kv: str | None, judge: Judge, texts: list[list[int]]
) -> None:
    """Nats of a token, from the benchmark's layers and from `LLM` with the same options."""
    source = source_of()
    if kv is not None:
        source = variants.SmallCache(resolve_checkpoint(MODEL), CPU, LENGTH, kv)
    changed = variants.plain(source)
    if scheme is not None:
        named = Scheme.named(scheme)
        changed = variants.rounded(source, variants.by_scheme(named), named)
    count = sum(len(text) - 1 for text in judge.texts)
    found = float(judge.scores(changed, source).nats.sum()) / count
    llm = LLM(
        MODEL,
        device=CPU,
        dtype="float32",
        quantization=scheme,
        kv_cache_dtype=kv,
        enable_prefix_caching=False,
    )
    # A last bit of a sum decides to which side an input is rounded.
    tolerance = 1e-3 if scheme is not None and named.inputs != "plain" else 1e-4
    expected = nats_per_token(llm, judge.texts)
    assert found == pytest.approx(expected, abs=tolerance)
    plain = float(judge.scores(variants.plain(source_of())).nats.sum()) / count
    if scheme != "int8" and (scheme, kv) != (None, None):  # on so little text int8 costs less
        assert abs(expected - plain) > 5 * tolerance


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_is_what_the_command_writes(method: str, judge: Judge, tmp_path: Path) -> None:
    """Down to the second layer's codes, which depend on how the first was quantized."""
    source = source_of()
    recipe = Recipe(Scheme.named("int4-g64"), method, length=LENGTH)
    documents = read_documents([data_dir() / "models" / "heldout.jsonl.gz"])[:3]
    path = tmp_path / "calibration.jsonl"
    documents = [text[:1500] for text in documents]
    path.write_text("\n".join(json.dumps({"text": text}) for text in documents), "utf-8")
    report = quantize(source.folder, tmp_path / "out", recipe, [path], device=CPU)
    tokenizer = Tokenizer(load_tokenizer(source.folder))
    calibration = [s.token_ids for s in sequences(documents, tokenizer, LENGTH)]
    changed = variants.calibrated(source, recipe, calibration)
    assert changed.bits_a_weight == pytest.approx(report.bits_a_weight)
    count = sum(len(text) - 1 for text in judge.texts)
    found = float(judge.scores(changed).nats.sum()) / count
    llm = LLM(tmp_path / "out", device=CPU, dtype="float32", enable_prefix_caching=False)
    assert found == pytest.approx(nats_per_token(llm, judge.texts), abs=1e-4)


def test_numbers_of_the_judge(judge: Judge, texts: list[list[int]]) -> None:
    """By the two models' whole distributions, computed apart."""
    source = source_of()
    scores = judge.scores(variants.rounded(source, bench.WEIGHTS["int4-g128-rtn"]))
    chosen: list[Tensor] = []
    for layers in (
        variants.plain(source).layers,
        variants.rounded(source, bench.WEIGHTS["int4-g128-rtn"]).layers,
    ):
        parts = []
        for text in judge.texts:
            hidden = source.embed(text)
            for index, layer in enumerate(layers):
                hidden = source.run(layer, index, hidden)
            parts.append(source.logits(hidden)[:-1].double().log_softmax(-1))
        chosen.append(torch.cat(parts))
    p, q = chosen
    targets = torch.cat([torch.tensor(text[1:]) for text in judge.texts])[:, None]
    assert float(scores.nats.sum()) == pytest.approx(-float(q.gather(1, targets).sum()), abs=1e-4)
    divergence = (p.exp() * (p - q)).sum(1)
    torch.testing.assert_close(scores.kl, divergence, atol=1e-7, rtol=1e-5)
    assert scores.kept == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))
    more = q.gather(1, targets) > p.gather(1, targets)
    assert scores.improved == pytest.approx(float(more.double().mean()), abs=0.01)
    assert 0.1 < scores.improved < 0.9  # some tokens gain where the average loses


def test_calibration_is_of_other_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[list[int]]] = []

    class Stop(Exception):
        pass

    def noted(source: Source, calibration: list[list[int]]) -> None:
        seen.append(calibration)
        raise Stop

    def kept(self: Judge, source: Source, judged: list[list[int]]) -> None:
        seen.append(judged)
        self.texts = judged

    monkeypatch.setattr(bench, "note_inputs", noted)
    monkeypatch.setattr(Judge, "__init__", kept)
    with pytest.raises(Stop):
        bench.run(MODEL, CPU, num_texts=13, num_calibration_texts=16, length=LENGTH)
    judged, calibration = ({tuple(text) for text in group} for group in seen)
    assert (len(judged), len(calibration)) == (13, 16)
    assert not judged & calibration


def test_planting_moves_a_factor_from_columns_to_norms() -> None:
    source = source_of()
    planted = [variants.Planted(source.folder, CPU, LENGTH, seed) for seed in (0, 1)]
    for index in range(source.config.num_layers):
        for norm, readers in variants.READERS.items():
            name = f"model.layers.{index}.{norm}.weight"
            factors = [each.tensor(name) / source.tensor(name).float() for each in planted]
            assert not torch.equal(*factors)
            for each, factor in zip(planted, factors, strict=True):
                large = factor.round() == variants.PLANTED_FACTOR
                assert int(large.sum()) == variants.PLANTED_CHANNELS
                torch.testing.assert_close(factor[~large], torch.ones_like(factor[~large]))
                for reader in readers:
                    name = f"model.layers.{index}.{reader}.weight"
                    product = each.tensor(name) * factor
                    torch.testing.assert_close(product, source.tensor(name).float())
    assert torch.equal(planted[0].tensor("model.norm.weight"), source.tensor("model.norm.weight"))


def test_inputs_of_one_scale_are_those_noted(texts: list[list[int]]) -> None:
    source = source_of()
    noted = variants.note_inputs(source, texts)
    changed = variants.with_fixed_inputs(source, bench.ONE_SCALE, noted)
    for layer, by_name in zip(changed.layers, noted, strict=True):
        assert [variants.linear_name(linear) for linear in linears(layer)] == list(PARTS)
        for linear in linears(layer):
            assert isinstance(linear.method, variants.RoundedInputs)
            scale = linear.method.fixed_scale
            assert scale is not None
            largest = by_name[variants.linear_name(linear)].largest.max()
            assert float(scale) == pytest.approx(float(largest) / 127)
            x = torch.tensor([[0.3, -0.7, 1000.0]]).repeat(1, linear.in_features)
            x = x[:, : linear.in_features] * largest
            expected = (x / scale).round().clamp(-127, 127) * scale
            torch.testing.assert_close(linear(x), expected @ linear.weight.T)


# --- roundings ---------------------------------------------------------------------


def some_weight(rows: int = 6, columns: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, columns, generator=generator)
    return weight * torch.rand(rows, 1, generator=generator) ** 3


def test_e2m1_is_compressed_tensors() -> None:
    values = torch.cat([torch.linspace(-8, 8, 1025), some_weight().flatten()])  # ties among them
    assert torch.equal(variants.to_e2m1(values), FP4_E2M1_DATA.cast_to_fp4(values.clone()))
    assert variants.to_e2m1(values).unique().numel() == 15


def test_mxfp4_blocks() -> None:
    """Scales are powers of two: the one the library says, or for 7 to 8 half of it."""
    weight = some_weight()
    weight[0, :32] = 0
    weight[1, :32].clamp_(-0.875, 0.875)[3] = 0.875  # 7 · 2⁻³
    weight[2, 32:64] *= 0.98 / weight[2, 32:64].abs().max()
    blocks = weight.view(6, 3, 32)
    largest = blocks.abs().amax(-1, keepdim=True)
    raised, bits = variants.mxfp4(weight, next_from=1.75)
    scale = torch.exp2(generate_mx_scales(largest) - 127)
    expected = FP4_E2M1_DATA.cast_to_fp4(blocks / scale) * scale
    expected[0, 0] = 0
    assert torch.equal(raised.view(6, 3, 32), expected)
    assert bits == 4.25 * weight.numel()
    floored, _ = variants.mxfp4(weight)
    scale = torch.exp2(largest.clamp(min=2.0**-20).log2().floor() - 2)
    expected = FP4_E2M1_DATA.cast_to_fp4(blocks / scale) * scale
    assert torch.equal(floored.view(6, 3, 32), expected)
    assert not torch.equal(floored, raised)
    assert float(floored[1, 3]) == 0.75
    assert float(raised[1, 3]) in (0.75, 1.0)


def test_nvfp4_blocks() -> None:
    weight = some_weight()
    weight[0, :16] = 0
    weight[1, 16:32] = 1e-6
    found, bits = variants.nvfp4(weight)
    assert bits == 4.5 * weight.numel() + 32
    assert torch.equal(found[0, :16], torch.zeros(16))
    whole = float(weight.abs().max()) / (6 * 448)
    for row in range(6):
        for begin in range(0, 96, 16):
            block = weight[row, begin : begin + 16]
            share = (block.abs().max() / 6 / whole).to(torch.float8_e4m3fn).float()
            scale = max(float(share), 2**-9) * whole
            expected = FP4_E2M1_DATA.cast_to_fp4(block / scale) * scale
            torch.testing.assert_close(found[row, begin : begin + 16], expected)


@pytest.mark.parametrize("scheme", [bench.INT4, bench.INT8, bench.FP8], ids=str)
def test_one_scale_for_a_weight(scheme: Scheme) -> None:
    weight = some_weight()
    found, bits = variants.by_tensor(scheme)(weight)
    assert bits == scheme.bits * weight.numel() + 16
    largest = float(weight.abs().max())
    span = 448.0 if scheme.kind == "fp8" else (2**scheme.bits - 1) / 2
    scale = float(torch.tensor(largest / span, dtype=torch.bfloat16))
    steps = (found.abs() / scale).double()
    if scheme.kind == "int":
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
        assert float((found - weight).abs().max()) <= 0.51 * scale
    else:
        codes = (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float()
        torch.testing.assert_close(found, codes * scale)


def test_a_block_of_rows_has_one_scale() -> None:
    scheme = SCHEMES["fp8_block"]
    codes = Codes(torch.zeros(200, 256).to(torch.float8_e4m3fn), torch.ones(200, 2), None, 8, 128)
    assert variants.code_bits(codes, scheme) == 200 * 256 * 8 + 2 * 2 * 16
