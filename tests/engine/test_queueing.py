"""The queueing model decides as the engine does, and obeys the laws of queues."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import LLM
from quire.analysis.queueing import (
    Arrival,
    Gate,
    Run,
    SchedulerModel,
    at_rate,
    percentile,
    poisson_arrivals,
    serve,
)
from quire.analysis.step_time import StepTime, interpolate
from quire.bench import steps
from quire.bench.replay import TIMELINE, replay
from quire.errors import QuireError
from quire.resources import load_measurement

# With a cached token of 35 ns wherever the file has no rows over context.
STEP_TIME = StepTime.from_rows(load_measurement("steps-qwen3-8b-h200")["rows"], 35e-9)
LENGTHS = [(20, 5), (150, 12), (300, 3), (40, 25), (8, 1)]


def engine(max_num_seqs: int, budget: int, policy: str = "fcfs") -> LLM:
    return LLM(
        "quire-mini-draft",
        device="cpu",
        dtype="float32",
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        policy=policy,
        enable_prefix_caching=False,
    )


def crowd(rate: float, count: int = 24) -> list[Arrival]:
    """Arrivals of three clients with priorities, at unit rate made `rate`."""
    return [
        Arrival(
            a.time, a.prompt_tokens, a.output_tokens, client="abc"[i * i % 3], priority=i * 7 % 4
        )
        for i, a in enumerate(at_rate(poisson_arrivals(count, LENGTHS, seed=3), rate))
    ]


@pytest.mark.parametrize("policy", ["fcfs", "priority", "fair"])
@pytest.mark.parametrize(("seats", "budget"), [(3, 4096), (6, 64), (4, 16)])
def test_the_model_schedules_what_the_engine_schedules(
    policy: str, seats: int, budget: int
) -> None:
    arrivals = crowd(rate=40)
    real = replay(engine(seats, budget, policy), arrivals, STEP_TIME)
    model = serve(arrivals, SchedulerModel(seats, budget, policy), STEP_TIME)
    assert [step.entries for step in model.steps] == [step.entries for step in real.steps]
    assert model.token_times == real.token_times


@pytest.mark.parametrize("gate", [Gate("static", 4), Gate("dynamic", 4, 0.05)])
def test_gates_let_the_same_requests_through(gate: Gate) -> None:
    real = replay(engine(4, 4096), TIMELINE, STEP_TIME, gate)
    model = serve(TIMELINE, SchedulerModel(4, 4096), STEP_TIME, gate)
    assert model == real


def test_littles_law_holds_of_the_engine() -> None:
    arrivals = crowd(rate=40)
    check_littles_law(replay(engine(4, 64), arrivals, STEP_TIME))


def check_littles_law(run: Run) -> None:
    """Mean number present is arrivals a second × mean stay, from empty to empty."""
    count = len(run.arrivals)
    mean_stay = sum(run.latency(i) for i in range(count)) / count
    assert math.isclose(run.mean_in_system(), count / run.seconds * mean_stay, rel_tol=1e-9)


def check_run(run: Run, seats: int, budget: int) -> None:
    positions = dict.fromkeys(range(len(run.arrivals)), 0)
    for before, after in pairwise(run.steps):
        assert before.begin < before.end <= after.begin
    for step in run.steps:
        assert 0 < len(step.entries) <= seats
        assert sum(count for _, _, count in step.entries) <= budget
        for index, start, count in step.entries:
            assert count > 0
            assert start == positions[index]  # each position once, in order
            assert step.begin >= run.arrivals[index].time
            positions[index] += count
    for i, arrival in enumerate(run.arrivals):
        assert positions[i] == arrival.prompt_tokens + arrival.output_tokens - 1
        assert len(run.token_times[i]) == arrival.output_tokens


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 90), st.integers(1, 9)),
        min_size=1,
        max_size=15,
    ),
    seats=st.integers(1, 5),
    budget=st.integers(5, 200),
    kind=st.sampled_from(["continuous", "static", "dynamic"]),
    policy=st.sampled_from(["fcfs", "priority", "fair"]),
)
def test_every_run_computes_each_position_once(
    data: list[tuple[int, int, int]], seats: int, budget: int, kind: str, policy: str
) -> None:
    arrivals = [Arrival(t / 100, p, o, client=str(p % 2)) for t, p, o in sorted(data)]
    gate = Gate(kind, batch=seats, window=0.03)
    run = serve(arrivals, SchedulerModel(seats, budget, policy), STEP_TIME, gate)
    check_run(run, seats, budget)
    check_littles_law(run)


def test_a_gate_opens_on_an_empty_server_only() -> None:
    run = serve(TIMELINE, SchedulerModel(4, 4096), STEP_TIME, Gate("static", 4))
    ends = [times[-1] for times in run.token_times]
    first = [next(s.begin for s in run.steps if i in {e[0] for e in s.entries}) for i in range(10)]
    assert min(first[4:8]) >= max(ends[:4])
    assert min(first[8:]) >= max(ends[4:8])


def test_dynamic_batching_waits_no_longer_than_its_window() -> None:
    arrivals = [Arrival(0.0, 10, 2), Arrival(9.0, 10, 2)]
    static = serve(arrivals, SchedulerModel(2, 99), STEP_TIME, Gate("static", 2))
    dynamic = serve(arrivals, SchedulerModel(2, 99), STEP_TIME, Gate("dynamic", 2, 0.5))
    assert static.steps[0].begin == 9.0
    assert dynamic.steps[0].begin == 0.5


def test_a_fair_share_for_the_client_with_one_request() -> None:
    flood = [Arrival(0.0, 64, 4, client="a") for _ in range(30)] + [Arrival(0.001, 64, 4, "b")]
    times = {
        policy: serve(flood, SchedulerModel(2, 64, policy), STEP_TIME).ttft(30)
        for policy in ("fcfs", "fair")
    }
    assert times["fair"] < times["fcfs"] / 4


def test_whoever_comes_to_an_empty_server_starts_at_the_count_of_the_last_to_leave() -> None:
    """As in the engine: a newcomer is not owed what another had before the pause."""
    arrivals = [Arrival(0.0, 200, 20, client="a"), Arrival(0.0, 30, 2, client="c")]
    arrivals += [Arrival(9.0, 40, 5, client="b") for _ in range(6)]
    arrivals += [Arrival(9.001, 40, 5, client=client) for client in "aac"]
    real = replay(engine(2, 256, "fair"), arrivals, STEP_TIME)
    model = serve(arrivals, SchedulerModel(2, 256, "fair"), STEP_TIME)
    assert model == real
    assert model.ttft(8) < model.ttft(6)  # a's first is served before b's fifth


def test_with_overlap_whoever_comes_during_a_step_misses_the_next_one() -> None:
    """Steps of one second: that of 0 to 1 is chosen at 0, that of 1 to 2 at 0 as well."""
    second = StepTime(((1, 1.0),), ((1, 1.0),))
    arrivals = [Arrival(0.0, 3, 9), Arrival(0.5, 3, 1), Arrival(1.0, 3, 1), Arrival(40.0, 3, 1)]
    waiting = serve(arrivals, SchedulerModel(4, 64), second)
    overlapping = serve(arrivals, SchedulerModel(4, 64), second, overlap=True)
    assert [times[0] for times in waiting.token_times] == [1.0, 2.0, 2.0, 41.0]
    assert [times[0] for times in overlapping.token_times] == [1.0, 3.0, 3.0, 41.0]
    assert waiting.token_times[0] == overlapping.token_times[0]


def test_interpolation() -> None:
    points = ((1.0, 2.0), (3.0, 6.0), (5.0, 5.0))
    assert [interpolate(points, x) for x in (0, 1, 2, 3, 4, 5, 9)] == [2, 2, 4, 6, 5.5, 5, 5]
    assert interpolate(points[:2], 4) == 8
    assert interpolate(points[:1], 7) == 2


POINTS = [
    {"case": "prefill-16", "value": 10.0, "parameters": {"prompt_tokens": 16}},
    {"case": "prefill-256", "value": 20.0, "parameters": {"prompt_tokens": 256}},
    {"case": "decode-batch1", "value": 4.0, "parameters": {"batch": 1, "prompt_tokens": 256}},
    {"case": "decode-batch3", "value": 6.0, "parameters": {"batch": 3, "prompt_tokens": 256}},
]


def over_context(decode_ms: list[float], mixed_ms: list[float]) -> list[dict[str, Any]]:
    """Rows as `quire bench steps` writes them, for 10 requests at 256, 1,256, … tokens."""
    rows = []
    for i, value in enumerate(decode_ms):
        parameters = {"batch": 10, "prompt_tokens": 256 + 1000 * i}
        rows.append({"case": f"context-{i}", "value": value, "parameters": parameters})
    for i, value in enumerate(mixed_ms):
        parameters = {"batch": 10, "context": 256 + 1000 * i, "prompt_tokens": 1024}
        rows.append({"case": f"mixed-{i}", "value": value, "parameters": parameters})
    return rows


def test_a_cached_token_takes_the_slope_of_the_rows_over_context() -> None:
    rows = POINTS + over_context([5.0, 6.0, 7.0], [20.0, 23.0])
    time = StepTime.from_rows(rows, token_seconds=9.0)
    assert time.decode_token == pytest.approx(1e-3 / 10_000)
    assert time.mixed_token == pytest.approx(3e-3 / 10_000)
    assert (len(time.decode), len(time.mixed)) == (2, 2)  # these rows are no points


def test_a_short_prompt_alone_is_no_point() -> None:
    """On a GPU `quire bench steps` times it a second time, as it is served: `alone-N`."""
    alone = {"case": "alone-16", "value": 0.1, "parameters": {"batch": 1, "prompt_tokens": 16}}
    assert StepTime.from_rows([*POINTS, alone]) == StepTime.from_rows(POINTS)


def test_without_rows_over_context_a_cached_token_takes_what_is_given() -> None:
    time = StepTime.from_rows(POINTS, token_seconds=9.0)
    assert (time.decode_token, time.mixed_token) == (9.0, 9.0)
    # One row has no slope, and a falling line counts as a flat one.
    one = StepTime.from_rows(POINTS + over_context([5.0], [20.0, 19.0]), token_seconds=9.0)
    assert (one.decode_token, one.mixed_token) == (9.0, 0.0)
    assert StepTime.from_rows(POINTS).decode_token == 0


def test_a_step_takes_longer_by_the_cached_tokens_that_the_measured_one_did_not_read() -> None:
    time = StepTime.from_rows(POINTS + over_context([5.0, 6.0], [20.0, 22.0]))
    assert time.context == steps.CONTEXT + steps.NUM_TOKENS // 2
    as_measured = [(i, time.context - 1, 1) for i in range(3)]  # the new token is one of them
    assert time.seconds(as_measured) == pytest.approx(6e-3)
    longer = [(0, time.context + 9_999, 1), *as_measured[1:]]
    assert time.seconds(longer) == pytest.approx(6e-3 + 1e-3)
    assert time.seconds([(0, 0, 1), *as_measured[1:]]) < 6e-3
    assert time.seconds([(0, 0, 256)]) == pytest.approx(20e-3)  # a prompt alone, as measured
    mixed = [(0, 4_000, 1), (1, 6_000, 255)]  # a decode and a later chunk
    assert time.seconds(mixed) == pytest.approx(20e-3 + 2e-3)


def test_percentiles_are_values_that_occurred() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, q) for q in (0, 0.2, 0.21, 0.5, 0.99, 1)] == [1, 1, 2, 3, 5, 5]


def test_goodput_counts_requests_that_met_both_targets() -> None:
    arrivals = [Arrival(0.0, 10, 3), Arrival(0.0, 10, 3)]
    run = Run(arrivals, [], [[1.0, 2.0, 3.0], [2.0, 2.5, 3.0]])
    assert run.attainment(ttft=1.5, tpot=1.0) == 0.5
    assert run.attainment(ttft=2.0, tpot=0.5) == 0.5
    assert run.attainment(ttft=2.0, tpot=1.0) == 1.0


def test_the_rate_changes_nothing_but_times() -> None:
    slow = poisson_arrivals(5, LENGTHS, seed=1)
    fast = at_rate(slow, 10)
    assert [a.time * 10 for a in fast] == pytest.approx([a.time for a in slow])
    assert [a.prompt_tokens for a in fast] == [a.prompt_tokens for a in slow]


def test_a_replay_refuses_an_engine_that_overlaps() -> None:
    llm = LLM("quire-mini-draft", device="cpu", overlap=True)
    with pytest.raises(QuireError, match="overlap"):
        replay(llm, TIMELINE, STEP_TIME)
