"""The benchmarks of batching do what they say; what they time is not judged here."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from quire import LLM, Trace
from quire.analysis.queueing import Arrival
from quire.bench import command, load, overlap, spike, steps
from quire.bench.measurement import Row
from quire.components import Components
from quire.config import EngineConfig
from quire.kv.kv_cache_manager import KVCacheManager
from quire.models.config import ModelConfig
from quire.models.loader import resolve_checkpoint

CPU = torch.device("cpu")


def test_a_spike_is_measured_at_each_budget() -> None:
    rows = spike.run("quire-mini-draft", CPU, 2, 96, (128, 32), repeats=1)
    assert [row.parameters["budget"] for row in rows] == [128, 32]
    for row in rows:
        assert row.value >= row.parameters["median_gap_before_ms"] > 0
        assert row.parameters["newcomer_ttft_ms"] > 0


def test_on_a_cpu_the_budgets_of_a_spike_reach_below_the_bend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, tuple[int, ...]]] = []

    def note(
        model: object, device: object, readers: int, prompt: int, budgets: tuple[int, ...]
    ) -> list[Row]:
        asked.append((readers, budgets))
        return []

    monkeypatch.setattr(spike, "run", note)
    command._measure_batching("spike", "quire-mini-draft", CPU)
    [(readers, budgets)] = asked
    assert readers < budgets[-1] == 8 < 16 == budgets[-2] < 32  # each leaves the newcomer something


def test_the_adjusted_budget_bounds_every_step() -> None:
    made: list[spike.AdjustableScheduler] = []

    def make(config: EngineConfig, kv: KVCacheManager) -> spike.AdjustableScheduler:
        made.append(spike.AdjustableScheduler(config, kv))
        return made[-1]

    trace = Trace()
    llm = LLM(
        "quire-mini-draft",
        device="cpu",
        max_num_batched_tokens=64,
        components=Components(scheduler=make),
        trace=trace,
    )
    made[0].set_budget(16)
    spike.arrive(llm, 2, 100, seed=0)
    assert max(step.scheduled.num_tokens for step in trace.steps) == 16


def test_a_load_is_submitted_by_the_clock_and_timed_from_when_it_was_due() -> None:
    llm = LLM("quire-mini-draft", device="cpu", max_num_seqs=1)
    arrivals = [Arrival(0.0, 8, 30), Arrival(1e-6, 8, 2), Arrival(0.05, 8, 2)]
    run = load.play(llm, arrivals)
    assert [len(times) for times in run.token_times] == [30, 2, 2]
    assert run.ttft(1) > run.latency(0) * 0.9  # it waited for the only seat
    assert all(run.token_times[i][0] >= arrivals[i].time for i in range(3))


def test_a_row_of_a_load_agrees_with_itself() -> None:
    [row] = load.run("quire-mini-draft", CPU, (50.0,), 0.2, 4, 64, [(8, 4), (30, 6)])
    p = row.parameters
    assert p["requests"] == 20
    assert p["ttft_p50_ms"] <= p["ttft_p99_ms"]
    assert 0 <= p["attainment"] <= 1


def context_rows(monkeypatch: pytest.MonkeyPatch, num_blocks: int | None) -> list[Row]:
    """The rows that vary the context, of quire-mini-draft with 3 requests."""
    config = ModelConfig.from_folder(resolve_checkpoint("quire-mini-draft"))
    monkeypatch.setattr(steps, "LLM", partial(LLM, num_blocks=num_blocks))
    monkeypatch.setattr(steps, "NEWCOMER", 64)
    rows = steps.run("quire-mini-draft", config, CPU, None, (4,), (16, 256, 512))
    return [row for row in rows if row.case.startswith(("context", "mixed"))]


def test_steps_are_timed_over_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row.case: row for row in context_rows(monkeypatch, None)}
    assert list(rows) == ["context-256", "mixed-256", "context-512", "mixed-512"]
    assert all(row.value > 0 and row.parameters["batch"] == 3 for row in rows.values())
    assert rows["context-512"].parameters["prompt_tokens"] == 512
    assert rows["mixed-512"].parameters["context"] == 512
    assert rows["mixed-512"].parameters["prompt_tokens"] == 64


def test_a_context_that_has_no_room_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = context_rows(monkeypatch, 3 * (256 + 64 + 16) // 16 + 8)
    assert [row.case for row in rows] == ["context-256", "mixed-256"]


def test_overlap_is_compared_with_waiting() -> None:
    [row] = overlap.run("quire-mini-draft", CPU, (2,), repeats=1)
    assert row.value > 0
    assert row.baselines["waiting"] > 0


@pytest.mark.parametrize(
    ("spans", "length"),
    [([], 0), ([(0, 2), (3, 4)], 3), ([(0, 5), (1, 2), (4, 7)], 7), ([(0, 1), (1, 2)], 2)],
)
def test_overlapping_kernels_count_once(spans: list[tuple[float, float]], length: float) -> None:
    assert overlap.covered(spans) == length
