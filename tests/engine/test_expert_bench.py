"""The benchmarks of experts do what they say; what they time is not judged here."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from quire import LLM, QuireError, SamplingParams
from quire.analysis import find_hardware
from quire.bench import engine, expert_ranks, experts
from quire.bench.engine import Load
from quire.bench.expert_ranks import LAYOUTS, Works
from quire.config import EngineOptions
from quire.kernels.experts import apply_experts_torch, route_experts
from quire.models.config import ModelConfig
from quire.models.loader import resolve_checkpoint
from quire.parallel.expert_loads import ExpertLoads
from quire.parallel.expert_placement import ExpertPlacement, replicated

CPU = torch.device("cpu")
OPTIONS: EngineOptions = {
    "device": "cpu",
    "dtype": "float32",
    "max_model_len": 128,
    "max_num_seqs": 8,
    "num_blocks": 200,
    "enable_prefix_caching": False,
    "distributed_executor_backend": "lockstep",
}


def model(spread: float = 0.0) -> ModelConfig:
    """The form of quire-mini-moe, whose weights are drawn."""
    config = ModelConfig.from_folder(resolve_checkpoint("quire-mini-moe"))
    assert config.moe is not None
    return replace(config, moe=replace(config.moe, router_spread=spread))


def load(seed: int, num_requests: int = 6, num_tokens: int = 8) -> Load:
    generator = random.Random(seed)
    prompts = [[generator.randrange(4000) for _ in range(40)] for _ in range(num_requests)]
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    return prompts, [params] * num_requests


WORKS = Works(load(0, 1, 4), load(1), load(2))


def test_loads_do_not_depend_on_who_holds_experts(tmp_path: Path) -> None:
    """Else what one engine counts would say nothing about another."""
    recorded = expert_ranks.record(model(), 2, OPTIONS, WORKS, tmp_path / "loads.json")
    assert sum(recorded.timed.tokens[0]) == 2 * sum(len(p) + 7 for p in WORKS.many[0])
    moe = model().moe
    assert moe is not None
    for label in ("ep2", "ep2-packed", "ep2-copies", "ep2-all-to-all", "tp2"):
        own = LAYOUTS[label].options(moe, recorded.file)
        given: EngineOptions = {**OPTIONS, **own, "record_expert_loads": True}
        llm = LLM(model(), **given)
        llm.generate(*WORKS.many, use_tqdm=False)
        assert llm.expert_loads() == recorded.timed, label


def test_an_expert_is_drawn_alike_on_every_rank_and_unlike_another() -> None:
    from quire.layers.moe import Experts
    from quire.models.moe_config import MoEConfig
    from quire.parallel.part import even_part

    config = MoEConfig(4, 2, 12, True, (0,))

    def drawn(prefix: str = "layers.0.mlp", **held: object) -> Experts:
        made = Experts(config, 16, prefix, torch.float32, CPU, **held)  # type: ignore[arg-type]
        made.fill_random(torch.Generator().manual_seed(3))
        return made

    whole, copied = drawn(), drawn(held=[2, 0])
    part = drawn(features=even_part(12, 1, 3))
    for slot, expert in enumerate(copied.held):
        assert torch.equal(copied.gate_up[slot], whole.gate_up[expert])
        assert torch.equal(copied.down[slot], whole.down[expert])
    assert torch.equal(part.down, whole.down[:, :, 4:8])
    assert torch.equal(part.gate_up[:, 4:], whole.gate_up[:, 12 + 4 : 12 + 8])
    assert not torch.equal(whole.gate_up[0], whole.gate_up[1])
    assert not torch.equal(whole.gate_up, drawn("layers.1.mlp").gate_up)


def test_every_layout_has_its_rows() -> None:
    labels = ["tp2", "ep2", "ep2-packed", "ep2-copies", "ep2-all-to-all"]
    rows = {
        row.case: row for row in expert_ranks.measure(model(1.0), "mini", labels, OPTIONS, WORKS)
    }
    cases = [f"mini-{label}-{work}" for label in labels for work in ("batch1", "mix256")]
    cases.remove("mini-ep2-all-to-all-batch1")
    assert list(rows) == cases
    for case, row in rows.items():
        assert row.value > 0
        assert row.parameters["copies"] == (2 if "copies" in case else 0)  # of 16 experts
        assert (row.parameters["ranks"], row.parameters["router_spread"]) == (2, 1.0)
        assert ("imbalance_mean" in row.parameters) == ("-ep2" in case and "mix256" in case)
    assert rows["mini-tp2-mix256"].baselines == {}
    assert rows["mini-ep2-batch1"].baselines == {"tp2": rows["mini-tp2-batch1"].value}
    for kind in ("packed", "copies", "all-to-all"):
        assert rows[f"mini-ep2-{kind}-mix256"].baselines == {
            "tp2": rows["mini-tp2-mix256"].value,
            "ep2": rows["mini-ep2-mix256"].value,
        }
    worst = {
        case: row.parameters for case, row in rows.items() if "imbalance_worst" in row.parameters
    }
    by_number, packed = worst["mini-ep2-mix256"], worst["mini-ep2-packed-mix256"]
    assert by_number["imbalance_mean"] > 1.2 * packed["imbalance_mean"] > 1.2
    assert all(p["imbalance_worst"] >= p["imbalance_mean"] for p in worst.values())
    assert worst["mini-ep2-all-to-all-mix256"] == by_number


def test_imbalance_is_of_the_placement_and_the_loads_that_are_judged() -> None:
    moe = replace(model().moe, num_experts=4, layers=(0, 3))  # type: ignore[type-var]
    loads = ExpertLoads({0: (6, 2, 0, 0), 3: (1, 1, 1, 1)})
    assert expert_ranks.imbalance(moe, 2, {}, loads) == {
        "imbalance_mean": 1.5,
        "imbalance_worst": 2.0,
        "expert_max_over_mean": 2.0,
    }
    even = {0: ExpertPlacement(((0, 1, 2), (0, 1, 3)))}
    assert expert_ranks.imbalance(moe, 2, even, loads)["imbalance_mean"] == 1.0


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("num_experts", [8, 16, 128])
def test_ranks_have_equally_many_copies(ranks: int, num_experts: int) -> None:
    moe = replace(model().moe, num_experts=num_experts)  # type: ignore[type-var]
    copies = LAYOUTS[f"ep{ranks}-copies"].num_copies(moe)
    assert num_experts / 8 <= copies < num_experts / 8 + ranks
    replicated([1] * num_experts, ranks, num_experts + copies)  # raises if they cannot


def test_layouts_by_the_number_of_gpus() -> None:
    assert expert_ranks.default_labels(2) == [label for label in LAYOUTS if "p2" in label]
    four = expert_ranks.default_labels(4)
    assert four[-2:] == ["ep2", "ep2-copies"]
    assert {LAYOUTS[label].ranks for label in four[:-2]} == {4}
    assert len(four) == 7
    assert {LAYOUTS[label].ranks for label in expert_ranks.default_labels(8)[:-2]} == {8}
    assert expert_ranks.default_labels(3) == expert_ranks.default_labels(2)


@pytest.mark.parametrize(
    ("labels", "words"),
    [(("ep2", "ep3"), "layout 'ep3': must be one of tp2"), (("ep4",), "'ep4' needs 4 GPUs")],
)
def test_layouts_that_cannot_be_run(
    labels: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(QuireError, match=words):
        expert_ranks.run(model(), "mini", torch.device("cuda"), labels)


def test_ranks_need_gpus_and_experts() -> None:
    with pytest.raises(QuireError, match="needs two GPUs, and torch sees 0"):
        expert_ranks.run(model(), "mini", CPU)
    with pytest.raises(QuireError, match="runs a model with experts, and dense has none"):
        expert_ranks.run(replace(model(), moe=None), "dense", CPU)


def test_a_spread_router_prefers_the_first_experts() -> None:
    """The share of the first quarter, in the mean of the layers, rises with it from a quarter."""
    shares = []
    for spread in (0.0, 0.5, 1.0):
        llm = LLM(model(spread), device="cpu", dtype="float32", record_expert_loads=True)
        llm.generate(*WORKS.many, use_tqdm=False)
        tokens = llm.expert_loads().tokens.values()
        shares.append(statistics.mean(sum(layer[:4]) / sum(layer) for layer in tokens))
    assert shares[0] == pytest.approx(0.25, abs=0.1)
    assert all(fewer + 0.1 < more for fewer, more in pairwise(shares)), shares


# --- on one GPU ----------------------------------------------------------------


def test_a_layer_is_timed_both_ways_where_tokens_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' twins in their places: each contender makes the same of the same choice."""
    seen: dict[str, list[torch.Tensor]] = {}
    made: list[torch.Tensor] = []

    def once(work: Callable[[], object]) -> float:
        work()
        return 1e-6 * experts.CHOICES

    def us(work: Callable[[int], torch.Tensor]) -> float:
        seen[work.__name__] = [work(i) for i in range(experts.CHOICES)]
        return once(lambda: made.extend(seen[work.__name__]))

    def paired(*given: torch.Tensor) -> torch.Tensor:
        return apply_experts_torch(*given[:6])

    def routed(x, logits, top_k, renormalize, *held):  # type: ignore[no-untyped-def]
        return route_experts(x, logits, top_k, renormalize, *held[:3])

    monkeypatch.setattr(experts, "_us", us)
    monkeypatch.setattr(experts, "paired_experts", paired)
    monkeypatch.setattr(experts, "grouped_experts", apply_experts_torch)
    monkeypatch.setattr(experts, "routed_pairs", routed)
    monkeypatch.setattr(experts, "TOKENS", (3, 16, 17))
    moe = model().moe
    assert moe is not None
    rows = experts.layers(moe, 32, CPU, find_hardware("h200"))
    assert [row.case for row in rows] == ["layer-3", "choice-3", "layer-16", "layer-17"]
    for row in rows:
        ways = {"torch_grouped", "read"} | (
            {"pairs", "groups"} if row.case != "layer-17" else set()
        )
        assert set(row.baselines) == ({"apart"} if row.case == "choice-3" else ways)
        assert (row.metric == "us") == row.case.startswith("layer")
        assert moe.experts_per_token <= row.parameters["experts_touched"] <= moe.num_experts


def test_experts_of_a_step_are_counted() -> None:
    """One token meets k different ones; of more, never fewer, and never more than there are."""
    moe = model().moe
    assert moe is not None
    found = experts.experts_touched(
        model(), (1, 2, 6), device="cpu", dtype="float32", max_num_seqs=8, max_model_len=512
    )
    assert found[1] == moe.experts_per_token
    assert found[1] < found[2] <= 2 * moe.experts_per_token
    assert found[2] < found[6] <= moe.num_experts


@pytest.fixture(autouse=True)
def words_of_the_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are drawn from its vocabulary."""
    monkeypatch.setattr(engine, "VOCABULARY", 4000)
    monkeypatch.setattr(experts, "CONTEXT", 16)
    monkeypatch.setattr(experts, "NUM_STEPS", 6)


@pytest.mark.gpu
def test_contenders_on_a_gpu_make_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 of the kernels, of torch's grouped products, and of the choice in the pairs."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no Triton kernels serve here")
    outputs: dict[str, list[torch.Tensor]] = {}

    def us(work: Callable[[int], torch.Tensor]) -> float:
        outputs[work.__name__] = [work(i).float() for i in range(experts.CHOICES)]
        return 1.0

    monkeypatch.setattr(experts, "_us", us)
    monkeypatch.setattr(experts, "TOKENS", (2,))
    moe = model().moe
    assert moe is not None
    experts.layers(
        replace(moe, num_experts=128, experts_per_token=8),
        256,
        torch.device("cuda"),
        find_hardware("h200"),
    )
    for one, other in (
        ("pairs", "groups"),
        ("ours", "torch_grouped"),
        ("choice_apart", "choice_in_pairs"),
    ):
        for a, b in zip(outputs[one], outputs[other], strict=True):
            assert float((a - b).norm() / b.norm()) < 0.02
    assert statistics.mean(float(out.abs().mean()) for out in outputs["ours"]) > 0
