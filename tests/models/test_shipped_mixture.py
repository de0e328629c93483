"""quire-mini-moe as it ships: the loads of its experts, and what its card says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import evaluate
import expert_loads
import pytest
import torch
from balance import distance, max_over_mean
from evaluation_data import MODELS, heldout_documents
from moe_decoder import QUIRE_MINI_MOE, MoEDecoder
from safetensors.torch import load_file
from torch import Tensor

from quire.resources import load_measurement

FOLDER = MODELS / "quire-mini-moe"
RUNS = {0.0: "moe-aux-0", 0.001: "moe-aux-0.001", 0.01: "quire-mini-moe"}
SHIPPED = 0.01
LAYERS, EXPERTS = QUIRE_MINI_MOE.num_hidden_layers, QUIRE_MINI_MOE.num_experts


@pytest.fixture(scope="module")
def model() -> Any:
    return evaluate.load_model(FOLDER, "cpu")


@pytest.fixture(scope="module")
def runs() -> dict[str, dict[str, Any]]:
    return {run["id"]: run for run in json.loads((MODELS / "training.json").read_text())["runs"]}


@pytest.fixture(scope="module")
def loads() -> dict[tuple[float, str], Tensor]:
    """Tokens of each expert [layers, experts], by weight of the balance loss and sort of text."""
    out: dict[tuple[float, str], Tensor] = {}
    for row in load_measurement(expert_loads.ID)["rows"]:
        if row["metric"] == "max_over_mean":
            given = row["parameters"]
            key = given["balance_weight"], row["case"].split("-")[2]
            counts = out.setdefault(key, torch.zeros(LAYERS, EXPERTS, dtype=torch.int64))
            experts = [given[f"expert_{expert}"] for expert in range(EXPERTS)]
            counts[given["layer"]] = torch.tensor(experts)
    return out


@pytest.fixture(scope="module")
def card() -> str:
    return (FOLDER / "README.md").read_text()


def mean(values: Tensor) -> float:
    return float(values.double().mean())


def values(run: dict[str, Any], key: str, sort: str) -> list[float]:
    found: list[float] = run["gate"][key][sort]
    return found


# Counting.


def test_transformers_layers_count_as_the_training_program(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expert_loads, "WINDOW", 150)
    texts = [document.ids[:400] for document in heldout_documents()[:2]]
    counts = expert_loads.count(model, texts)
    ours = MoEDecoder(QUIRE_MINI_MOE).eval()
    ours.load_checkpoint(load_file(FOLDER / "model.safetensors"))
    expected = torch.zeros(LAYERS, EXPERTS, dtype=torch.int64)
    for text in texts:
        for at in (0, 150, 300):
            with torch.inference_mode():
                _, routings = ours.routed(torch.tensor([text[at : min(at + 150, 400)]]))
            expected += torch.stack([routing.chosen.sum((0, 1)) for routing in routings])
    assert counts.sum(-1).tolist() == [2 * 800] * LAYERS
    # A near tie may fall the other way in another order of the sums.
    assert int((counts - expected).abs().sum()) <= 8
    again = expert_loads.count(model, texts)
    assert torch.equal(again, counts), "a hook of the call before still counts"


def test_no_run_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["expert_loads.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"no aux-\*\.tar in .*: sweep_moe\.py --out"):
        expert_loads.main()


# The recorded loads.


def test_figures_follow_from_the_counts(loads: dict[tuple[float, str], Tensor]) -> None:
    assert set(loads) == {(weight, sort) for weight in RUNS for sort in ("code", "prose")}
    seen = 0
    for row in load_measurement(expert_loads.ID)["rows"]:
        given = row["parameters"]
        weight, layer = given["balance_weight"], given["layer"]
        code, prose = loads[weight, "code"], loads[weight, "prose"]
        if row["metric"] == "distance_code_prose":
            assert row["value"] == pytest.approx(float(distance(code, prose)[layer]), abs=1e-4)
        else:
            counts = loads[weight, row["case"].split("-")[2]]
            assert row["value"] == pytest.approx(float(max_over_mean(counts)[layer]), abs=1e-4)
            assert given["without_tokens"] == int((counts[layer] == 0).sum())
            assert given["tokens"] * given["experts_per_token"] == int(counts[layer].sum())
        seen += 1
    assert seen == 3 * LAYERS * len(RUNS)


def test_the_gate_counted_the_same_on_the_gpu(
    loads: dict[tuple[float, str], Tensor], runs: dict[str, dict[str, Any]]
) -> None:
    """bfloat16 moves tokens that two experts want nearly alike, and no more."""
    for weight, name in RUNS.items():
        run = runs[name]
        assert run["router_aux_loss_coef"] == weight
        for sort in ("code", "prose"):
            counts = loads[weight, sort]
            assert int(counts[0].sum()) == 2 * run["gate"]["routed_tokens"][sort]
            ratios = max_over_mean(counts).tolist()
            assert ratios == pytest.approx(values(run, "max_over_mean", sort), rel=0.01)
            empty = (counts == 0).sum(-1).tolist()
            assert empty == values(run, "experts_without_tokens", sort)


def test_the_committed_weights_have_the_recorded_loads(
    model: Any, loads: dict[tuple[float, str], Tensor]
) -> None:
    """Some of the prose, read again, falls on the experts as all of it does and as no code does."""
    part = expert_loads.count(model, expert_loads.token_ids()["prose"][::6])
    assert distance(part, loads[SHIPPED, "prose"]).max() < 0.08
    assert distance(part, loads[SHIPPED, "code"]).min() > 0.16
    for weight in set(RUNS) - {SHIPPED}:
        assert distance(part, loads[weight, "prose"]).min() > 0.16


# The gate and the card.


def test_what_ships_passed_the_gate_and_has_the_fewest_bits(
    runs: dict[str, dict[str, Any]],
) -> None:
    shipped = runs["quire-mini-moe"]
    assert shipped["gate"]["passes"]
    assert all(shipped["gate"]["verdicts"].values())
    bits = {weight: runs[name]["heldout_bits_per_byte"] for weight, name in RUNS.items()}
    assert min(bits, key=lambda weight: bits[weight]) == SHIPPED
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["router_aux_loss_coef"] == SHIPPED


def test_the_card_states_the_recorded_figures(
    card: str, runs: dict[str, dict[str, Any]], loads: dict[tuple[float, str], Tensor]
) -> None:
    evaluation = json.loads((MODELS / "evaluation.json").read_text())
    name = "quire-mini-moe"
    lines = [
        f"| Bits per byte, 144 held-out files, 1.97 MB | {evaluation['bits_per_byte'][name]:.3f} |",
        "| Bits per byte without test suites, 1.29 MB | "
        f"{evaluation['bits_per_byte_without_tests'][name]:.3f} |",
        f"| {sum(evaluation['scan'][name]['matches'].values())} of 200 |",
        f"| {evaluation['function_heads'][name]['parse']} of 100 |",
    ]
    code, prose = loads[SHIPPED, "code"], loads[SHIPPED, "prose"]
    for label, figures in (
        ("Fullest expert over mean, code", max_over_mean(code)),
        ("Fullest expert over mean, prose", max_over_mean(prose)),
        ("Distance of code and prose", distance(code, prose)),
    ):
        lines.append(f"| {label} | " + " | ".join(f"{x:.2f}" for x in figures.tolist()) + " |")
    for weight, run in RUNS.items():
        both = [loads[weight, sort] for sort in ("code", "prose")]
        cells = [
            f"{weight:g}",
            f"{runs[run]['heldout_bits_per_byte']:.3f}",
            *(", ".join(f"{x:.2f}" for x in max_over_mean(counts).tolist()) for counts in both),
            *(", ".join(map(str, (counts == 0).sum(-1).tolist())) for counts in both),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for line in lines:
        assert line in card, line


def test_the_card_sets_what_came_out_beside_what_was_predicted(
    card: str, runs: dict[str, dict[str, Any]], loads: dict[tuple[float, str], Tensor]
) -> None:
    table = card.split("| predicted | came out |")[1]
    code, prose = ([loads[weight, sort] for weight in RUNS] for sort in ("code", "prose"))
    apart = [distance(*pair) for pair in zip(code, prose, strict=True)]
    for label, figures in {
        "Bits per byte": [f"{runs[run]['heldout_bits_per_byte']:.2f}" for run in RUNS.values()],
        "Fullest expert over mean, code": [f"{mean(max_over_mean(x)):.1f}" for x in code],
        "Fullest expert over mean, prose": [f"{mean(max_over_mean(x)):.1f}" for x in prose],
        "Distance of code and prose": [f"{mean(values):.2f}" for values in apart],
    }.items():
        row = next(line for line in table.split("\n") if line.startswith(f"| {label} "))
        assert row.endswith(f"| {', '.join(figures)} |"), row
    assert f"by layer it runs from {min(map(torch.min, apart)):.2f} to" in " ".join(card.split())
    assert f" to {max(map(torch.max, apart)):.2f}." in card


def test_the_card_states_how_it_was_trained(card: str, runs: dict[str, dict[str, Any]]) -> None:
    words = " ".join(card.split())
    run = runs["quire-mini-moe"]
    passes = run["tokens"] / json.loads((MODELS / "corpus.json").read_text())["tokens"]["train"]
    for stated in (
        f"{run['steps']:,} steps of {run['settings']['batch_tokens']:,} tokens",
        f"{run['tokens'] / 1e6:.0f} M tokens, {passes:.1f} passes over the corpus",
        f"took {run['seconds']:.0f} s",
        f"torch {run['torch'].split('+')[0]}",
        "one H200",
        f"{run['gate']['routed_tokens']['code']:,} tokens",
        f"{run['gate']['routed_tokens']['prose']:,} tokens",
        f"| Parameters | {run['parameters']:,} |",
    ):
        assert stated in words, stated
    assert run["device"] == "NVIDIA H200"
