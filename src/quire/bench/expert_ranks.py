"""`quire bench expert-ranks`: a mixture of experts on several GPUs, by where its experts are.

`tp4` cuts every expert among 4 ranks. With `ep4` a rank has a quarter of the experts whole, by
their numbers; with `ep4-packed` by recorded loads, and with `ep4-copies` the busiest have copies as
well. `ep4-all-to-all` places as `ep4` does and sends tokens to the ranks of their experts, kernel
by kernel. The runs are those of `quire bench engine`: one request, and `mix256`.

Weights are random, and a random router's loads are uneven by chance only, in another way for other
prompts, so that no placement could know them. So the router's rows are scaled
(`MoEConfig.router_spread`): experts of lower numbers are busier, whatever the prompts are. No
trained router orders its experts like that: `ep4` is nearly its worst case.

Loads are counted by an engine of their own, which nobody times: counting takes kernels. Those that
place experts are of other prompts than the timed ones. The imbalance is that of the timed
prompts' counts over the placement in use, a copy taking an even share: the busiest rank's pairs of
token and expert over the mean, in the mean of the layers and in the worst. It adds up a whole run;
single steps are less even.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from quire.bench.engine import OPTIONS, Load, mix256, seconds_once, uniform_load
from quire.bench.measurement import Row
from quire.bench.several_gpus import check_layouts, count_gpus
from quire.config import EngineOptions
from quire.errors import QuireError
from quire.llm import LLM
from quire.models.config import ModelConfig
from quire.models.moe_config import MoEConfig
from quire.parallel.expert_loads import ExpertLoads
from quire.parallel.expert_placement import contiguous
from quire.parallel.expert_plan import Placements

SPREAD = 0.5  # of a router's rows, exp(±0.5): the first quarter of the experts gets about half
SPARE = 8  # copies: one for so many experts


@dataclass(frozen=True)
class Layout:
    """How ranks share experts: "tp", "ep" or what is said behind "ep4-"."""

    ranks: int
    kind: str

    def num_copies(self, moe: MoEConfig) -> int:
        """Return the slots beyond one an expert: a multiple of the ranks."""
        if self.kind != "copies":
            return 0
        return -(-moe.num_experts // (SPARE * self.ranks)) * self.ranks

    def options(self, moe: MoEConfig, loads: Path | None) -> EngineOptions:
        """Return the engine's options; `loads` is the file of those that place experts."""
        given: EngineOptions = {"tensor_parallel_size": self.ranks}
        if self.kind == "tp":
            return given
        given["enable_expert_parallel"] = True
        if self.kind in ("packed", "copies"):
            given["expert_loads"] = str(loads)
            given["num_redundant_experts"] = self.num_copies(moe)
        if self.kind == "all-to-all":
            given["expert_dispatch"] = "all_to_all"
        return given


def _layouts() -> Iterator[tuple[str, Layout]]:
    for ranks in (2, 4, 8):
        yield f"tp{ranks}", Layout(ranks, "tp")
        yield f"ep{ranks}", Layout(ranks, "ep")
        for kind in ("packed", "copies", "all-to-all"):
            yield f"ep{ranks}-{kind}", Layout(ranks, kind)


LAYOUTS = dict(_layouts())


@dataclass(frozen=True)
class Works:
    """What engines run: one request, many, and the others whose loads place experts."""

    one: Load
    many: Load
    others: Load


@dataclass(frozen=True)
class Recorded:
    """What experts were sent: the file of the others' loads, and the loads of the many."""

    file: Path
    timed: ExpertLoads


def run(
    model: ModelConfig,
    name: str,
    device: torch.device,
    labels: Sequence[str] | None = None,
    spread: float = SPREAD,
) -> list[Row]:
    """Measure layouts, each row printed as soon as it is there.

    Args:
        model: with experts; its weights are drawn.
        name: of the model, for the rows.
        device: CUDA.
        labels: of `LAYOUTS`; None: all on all GPUs, and of two, `ep2` and `ep2-copies`.
        spread: of the router's rows.

    Raises:
        QuireError: the model has no experts; fewer GPUs than two, or than a layout needs; a layout
            of no such name.
    """
    if model.moe is None:
        raise QuireError(f"bench expert-ranks runs a model with experts, and {name} has none")
    count = count_gpus("expert-ranks", device)
    chosen = default_labels(count) if labels is None else list(labels)
    check_layouts(chosen, {label: layout.ranks for label, layout in LAYOUTS.items()}, count)
    skewed = replace(model, moe=replace(model.moe, router_spread=spread))
    works = Works(uniform_load(1, 128, 256), mix256(), mix256(seed=1))
    rows = []
    for row in measure(skewed, name, chosen, {**OPTIONS, "device": "cuda"}, works):
        imbalance = row.parameters.get("imbalance_mean")
        seen = "" if imbalance is None else f", imbalance {imbalance:.2f}"
        print(f"{row.case}: {row.value:.5g} {row.unit}{seen}", file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def default_labels(num_gpus: int) -> list[str]:
    """Return the layouts of so many GPUs, the largest number of ranks that they allow first."""
    most = max(layout.ranks for layout in LAYOUTS.values() if layout.ranks <= num_gpus)
    whole = [label for label, layout in LAYOUTS.items() if layout.ranks == most]
    return whole if most == 2 else [*whole, "ep2", "ep2-copies"]


def measure(
    model: ModelConfig,
    name: str,
    labels: Sequence[str],
    options: EngineOptions,
    works: Works,
) -> Iterator[Row]:
    """Yield the rows of layouts; `options` are those that all engines share."""
    moe = model.moe
    assert moe is not None
    recorded: dict[int, Recorded] = {}
    found: dict[tuple[str, str], float] = {}
    with TemporaryDirectory() as folder:
        for label in labels:
            layout = LAYOUTS[label]
            ranks = layout.ranks
            if layout.kind != "tp" and ranks not in recorded:
                file = Path(folder) / f"loads-{ranks}.json"
                recorded[ranks] = record(model, ranks, options, works, file)
            loads = recorded.get(ranks)
            own = layout.options(moe, None if loads is None else loads.file)
            merged: EngineOptions = {**options, **own}
            llm = LLM(model, **merged)
            parameters: dict[str, float] = {
                "ranks": ranks,
                "copies": layout.num_copies(moe),
                "router_spread": moe.router_spread,
            }
            placed: dict[str, float] = {}
            if layout.kind != "tp" and loads is not None:
                placed = imbalance(moe, ranks, llm.config.expert_placements, loads.timed)
            for work, value, metric, unit in _times(llm, layout, works):
                found[label, work] = value
                others = (other for other in (f"tp{ranks}", f"ep{ranks}") if other != label)
                beside = {other: found[other, work] for other in others if (other, work) in found}
                about = parameters | (placed if work == "mix256" else {})
                yield Row(f"{name}-{label}-{work}", metric, value, unit, beside, about)
            llm.engine.shutdown()
            del llm


def record(
    model: ModelConfig, ranks: int, options: EngineOptions, works: Works, file: Path
) -> Recorded:
    """Count what experts are sent, of the other prompts into a file, then of the timed ones.

    A random model depends on the number of its ranks, whose heads are drawn alike, but not on
    where experts are: one engine counts for all placements.
    """
    counting: EngineOptions = {
        **options,
        "tensor_parallel_size": ranks,
        "enable_expert_parallel": True,
        "record_expert_loads": True,
    }
    llm = LLM(model, **counting)
    llm.generate(*works.others, use_tqdm=False)
    before = llm.expert_loads()
    before.save(file)
    llm.generate(*works.many, use_tqdm=False)
    timed = llm.expert_loads() - before
    llm.engine.shutdown()
    return Recorded(file, timed)


def imbalance(
    moe: MoEConfig, ranks: int, placements: Placements, loads: ExpertLoads
) -> dict[str, float]:
    """Return the greatest load over the mean, of ranks and of experts.

    Of ranks it is the mean of the layers, and the worst of them; of experts the mean of the layers.

    Args:
        moe: the model's experts.
        ranks: that share them.
        placements: by layer; a layer without one has its experts by their numbers.
        loads: of the run that is judged.
    """
    by_number = contiguous(moe.num_experts, ranks)
    each = [placements.get(n, by_number).imbalance(loads.tokens[n]) for n in moe.layers]
    experts = [max(own) / statistics.mean(own) for own in (loads.tokens[n] for n in moe.layers)]
    return {
        "imbalance_mean": statistics.mean(each),
        "imbalance_worst": max(each),
        "expert_max_over_mean": statistics.mean(experts),
    }


def _times(llm: LLM, layout: Layout, works: Works) -> Iterator[tuple[str, float, str, str]]:
    """Yield works with what each took after a warm-up, of the many by a quarter of them."""
    if layout.kind != "all-to-all":
        seconds_once(llm, works.one)
        seconds = statistics.median(seconds_once(llm, works.one) for _ in range(3))
        num_tokens = sum(own.output_limit for own in works.one[1])
        yield "batch1", seconds / num_tokens * 1e3, "ms_per_token", "ms"
    llm.generate(works.many[0][::4], works.many[1][::4], use_tqdm=False)
    num_tokens = sum(own.output_limit for own in works.many[1])
    yield "mix256", num_tokens / seconds_once(llm, works.many), "tokens_per_second", "tokens/s"
