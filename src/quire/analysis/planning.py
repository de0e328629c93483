"""Which layout? Times, memory and bottleneck of a workload under each, and the best of them.

A layout's step is `step_parts` of its slowest stage; requests are scheduled by the model of the
engine's scheduler (`quire.analysis.queueing`), with these steps for a clock. Requests are dealt
to the copies of data parallelism one by one. Explained in the chapter "Parallelism".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quire.analysis.layout_clock import DecodeStep, LayoutClock, Machine, memories_of
from quire.analysis.queueing import Arrival, Run, SchedulerModel, percentile, serve
from quire.analysis.rank_memory import BLOCK_SIZE, RankMemory, blocks_that_fit
from quire.analysis.shares import Layout, Share, layouts, shares
from quire.analysis.step_parts import Load
from quire.errors import QuireError
from quire.models.config import ModelConfig


@dataclass(frozen=True)
class Slo:
    """Targets in seconds, of 99 in 100 requests; None: no target."""

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True)
class Forecast:
    """A workload under a layout. Times in seconds, bytes of one rank."""

    layout: Layout
    memory: RankMemory  # of the fullest stage
    num_blocks: int  # of each copy's cache, the null block included
    num_seqs: int  # of the workload's longest requests that each copy's cache holds
    ttft_alone_s: float  # of the longest prompt on an idle engine
    tpot_alone_s: float
    ttft_p50_s: float  # under the whole workload
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    tokens_per_s: float  # of output, all copies together
    decode: DecodeStep  # of the loaded engine: the step that yields the median token
    latency_alone_s: float  # of the longest prompt and the longest output on an idle engine

    def meets(self, slo: Slo) -> bool:
        """Whether 99 in 100 requests stay within the targets."""
        targets = ((self.ttft_p99_s, slo.ttft_s), (self.tpot_p99_s, slo.tpot_s))
        return all(target is None or value <= target for value, target in targets)


@dataclass(frozen=True)
class Refusal:
    """A layout that is not possible, and why."""

    layout: Layout
    reason: str


def plan(
    config: ModelConfig, num_gpus: int, arrivals: Sequence[Arrival], machine: Machine
) -> tuple[list[Forecast], list[Refusal]]:
    """Forecast every layout of so many devices; those that are refused come apart.

    Args:
        config: of the model.
        num_gpus: devices, all of which are used.
        arrivals: requests in order of time; all at 0 for a batch.
        machine: what they run on.

    Raises:
        QuireError: no request, or less than one device.
    """
    if not arrivals:
        raise QuireError("arrivals is empty: give one request at least")
    found, refused = [], []
    for layout in layouts(num_gpus, experts=config.moe is not None):
        try:
            found.append(forecast(config, layout, arrivals, machine))
        except QuireError as error:  # why it is not possible is what the caller asked for
            refused.append(Refusal(layout, str(error)))
    return found, refused


def forecast(
    config: ModelConfig, layout: Layout, arrivals: Sequence[Arrival], machine: Machine
) -> Forecast:
    """Return a workload's times and memory under a layout.

    Raises:
        QuireError: the model cannot be laid out like this, or does not fit; the message says why.
    """
    stages = shares(config, layout, machine.scheme)
    longest = max(arrival.prompt_tokens + arrival.output_tokens for arrival in arrivals)
    memories = memories_of(stages, machine)
    num_blocks = blocks_that_fit(memories, longest)
    num_seqs = (num_blocks - 1) // -(-longest // BLOCK_SIZE)
    runs = _runs(stages, layout, arrivals, machine, num_seqs)
    ttfts = [run.ttft(i) for run in runs for i in range(len(run.arrivals))]
    tpots = [run.tpot(i) for run in runs for i in range(len(run.arrivals))]
    num_tokens = sum(arrival.output_tokens for arrival in arrivals)
    last = max(times[-1] for run in runs for times in run.token_times)

    alone = LayoutClock(stages, machine)
    prompt = max(arrival.prompt_tokens for arrival in arrivals)
    output = max(arrival.output_tokens for arrival in arrivals)
    ttft = alone.time_of(Load.prompt(prompt))
    tpot = alone.time_of(Load.decode(1, prompt + output // 2))
    num_groups = min(layout.pipeline, -(-len(arrivals) // layout.data))  # of the first copy
    clock, load = LayoutClock(stages, machine, num_groups), _median_decode(runs[0])
    decode = clock.decode_step(load)
    return Forecast(
        layout=layout,
        memory=max(memories, key=lambda memory: memory.weights),
        num_blocks=num_blocks,
        num_seqs=num_seqs,
        ttft_alone_s=ttft,
        tpot_alone_s=tpot,
        ttft_p50_s=percentile(ttfts, 0.5),
        ttft_p99_s=percentile(ttfts, 0.99),
        tpot_p50_s=percentile(tpots, 0.5),
        tpot_p99_s=percentile(tpots, 0.99),
        tokens_per_s=num_tokens / (last - arrivals[0].time),
        decode=decode,
        latency_alone_s=ttft + (output - 1) * tpot,
    )


def _runs(
    stages: list[Share],
    layout: Layout,
    arrivals: Sequence[Arrival],
    machine: Machine,
    num_seqs: int,
) -> list[Run]:
    """Serve the requests: every copy its share of them, and every stage a group of those."""
    runs = []
    for copy in range(layout.data):
        own = list(arrivals[copy :: layout.data])
        num_groups = min(layout.pipeline, len(own))
        clock = LayoutClock(stages, machine, num_groups)
        seats = min(machine.max_num_seqs, num_seqs)
        for group in range(num_groups):
            server = SchedulerModel(-(-seats // num_groups), machine.max_num_batched_tokens)
            mine = own[group::num_groups]
            runs.append(serve(mine, server, clock, overlap=num_groups == 1))
    return runs


def _median_decode(run: Run) -> Load:
    """Return the load of the decode step that yields the median token of a group of requests."""
    steps = [step for step in run.steps if Load.of(step.entries).is_decode]
    if not steps:  # every request has one token
        return Load.decode(1, run.arrivals[0].prompt_tokens + 1)
    seen, half = 0, sum(len(step.entries) for step in steps) / 2
    for step in steps:
        seen += len(step.entries)
        if seen >= half:
            break
    return Load.of(step.entries)


def best(forecasts: Sequence[Forecast], slo: Slo | None = None) -> dict[str, Forecast]:
    """Return the best layout by goal: "latency", "throughput" and, with targets, "SLO".

    Of those within 1 % of one another the one with the fewest ranks to a copy is taken, as it
    has the least to go wrong. Where no layout meets the targets there is no "SLO".
    """
    if not forecasts:
        return {}

    def simplest(goal: str, among: Sequence[Forecast]) -> Forecast:
        def cost(forecast: Forecast) -> float:
            if goal == "latency":
                return forecast.latency_alone_s
            return 1 / forecast.tokens_per_s

        least = min(map(cost, among))
        near = [forecast for forecast in among if cost(forecast) <= 1.01 * least]
        return min(near, key=lambda f: (f.layout.tensor * f.layout.pipeline, cost(f)))

    chosen = {goal: simplest(goal, forecasts) for goal in ("latency", "throughput")}
    within = [forecast for forecast in forecasts if slo is not None and forecast.meets(slo)]
    if within:
        chosen["SLO"] = simplest("SLO", within)
    return chosen
