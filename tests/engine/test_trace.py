"""A trace holds every decision of a run, as JSON and as a timeline."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "protocols"))

from rig import Rig

from quire.messages import StepResult
from quire.scheduler import TokenBudgetScheduler
from quire.trace import Decision, Trace


@pytest.fixture(scope="module")
def traced() -> tuple[Rig, Trace]:
    """A run with a hit, a fork, a preemption, an abort; step n takes [n, n + 1.5) ms."""
    rig = Rig(TokenBudgetScheduler, num_blocks=6, max_num_seqs=3, in_flight=2)
    rig.add("first", [1] * 9, max_tokens=1)
    rig.run()
    rig.add("p", [1] * 11, max_tokens=18)
    rig.add("c", [1] * 11, max_tokens=18, parent_id="p", seed=1)
    rig.add("x", 9, max_tokens=18)
    rig.add("never", 30, max_tokens=1)
    for _ in range(3):
        rig.step()
    rig.scheduler.abort("never")
    rig.run()
    trace = Trace()
    for output in rig.outputs:
        tokens = {e.request_id: [7] for e in output.entries if e.samples}
        begin = 100 + output.step / 1000
        trace.record(output, StepResult(output.step, tokens), begin, begin + 0.0015)
    return rig, trace


def test_every_decision_is_there(traced: tuple[Rig, Trace]) -> None:
    rig, trace = traced
    decisions = trace.decisions()

    def of(kind: str) -> list[Decision]:
        return [decision for decision in decisions if decision.kind == kind]

    assert [d.request_id for d in of("admit")] == rig.admitted()
    assert [d.request_id for d in of("preempt")] == rig.preempted() != []
    assert {d.request_id: d.details["reason"] for d in of("finish")} == {
        "first": "length",
        "p": "length",
        "c": "length",
        "x": "length",
        "never": "abort",
    }
    admitted = {d.request_id: d.details for d in reversed(of("admit"))}
    assert admitted["first"] == {"tokens": 9, "hit_tokens": 0}
    assert admitted["p"] == {"tokens": 11, "hit_tokens": 8}
    assert admitted["c"] == {"tokens": 11, "hit_tokens": 10}
    copies = of("copy")
    assert [(d.request_id, d.details["group"]) for d in copies] == [("c", 0), ("c", 1)]
    (child,) = [e for e in rig.outputs[copies[0].step - 1].entries if e.request_id == "c"]
    assert child.new_block_ids[0][-1] == copies[0].details["to"]
    rows = {e.request_id: e.row for output in reversed(rig.outputs) for e in output.entries}
    assert next(d.row for d in of("finish") if d.request_id == "never") is None
    assert all(d.row == rows[d.request_id] for d in of("finish") if d.request_id in ("p", "first"))
    assert all(d.row is not None for d in [*of("preempt"), *copies])
    assert {d.details["reason"] for d in of("preempt")} == {"no free blocks"}


def test_json_holds_the_messages(traced: tuple[Rig, Trace], tmp_path: Path) -> None:
    rig, trace = traced
    trace.save(tmp_path / "trace.json")
    steps = json.loads((tmp_path / "trace.json").read_text("utf-8"))
    assert len(steps) == len(rig.outputs)
    assert steps[0]["begin"] == 0
    assert steps[1]["end"] == pytest.approx(0.0025)
    for step, output in zip(steps, rig.outputs, strict=True):
        scheduled = step["scheduled"]
        assert scheduled["num_free_blocks"] == output.num_free_blocks
        assert scheduled["preempted_ids"] == list(output.preempted_ids)
        assert scheduled["hit_tokens"] == output.hit_tokens
        assert scheduled["finish_reasons"] == output.finish_reasons
        assert [new["request_id"] for new in scheduled["new_requests"]] == [
            new.request_id for new in output.new_requests
        ]
        assert len(scheduled["entries"]) == len(output.entries)


def test_a_request_with_a_function_of_its_own_is_written(tmp_path: Path) -> None:
    rig = Rig(TokenBudgetScheduler)
    rig.add("f", 3, max_tokens=1, logits_processors=[max], logit_bias={3: 1.5})
    rig.run()
    trace = Trace()
    trace.record(rig.outputs[0], StepResult(1, {"f": [7]}), 0.0, 1.0)
    trace.save(tmp_path / "trace.json")
    (step,) = json.loads((tmp_path / "trace.json").read_text("utf-8"))
    params = step["scheduled"]["new_requests"][0]["sampling_params"]
    assert params["logits_processors"] == ["<built-in function max>"]
    assert params["logit_bias"] == {"3": 1.5}


def test_an_empty_trace(tmp_path: Path) -> None:
    assert Trace().to_json() == []
    assert Trace().decisions() == []
    assert {event["ph"] for event in Trace().to_chrome()["traceEvents"]} == {"M"}


def test_chrome_timeline(traced: tuple[Rig, Trace], tmp_path: Path) -> None:
    rig, trace = traced
    trace.save_chrome(tmp_path / "chrome.json")
    chrome = json.loads((tmp_path / "chrome.json").read_text("utf-8"))
    events: list[dict[str, Any]] = chrome["traceEvents"]
    assert all({"ph", "pid", "name"} <= event.keys() for event in events)
    assert all("ts" in event for event in events if event["ph"] != "M")

    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert tracks == {0: "steps", 1: "row 0", 2: "row 1", 3: "row 2"}

    slices = [event for event in events if event["ph"] == "X"]
    num_entries = sum(len(output.entries) for output in rig.outputs)
    assert len(slices) == len(rig.outputs) + num_entries
    for track in tracks:  # slices of one track follow one another
        spans = [(e["ts"], e["ts"] + e["dur"]) for e in slices if e["tid"] == track]
        assert all(one[1] <= two[0] + 1e-6 for one, two in itertools.pairwise(spans))
    steps = [event for event in slices if event["tid"] == 0]
    assert steps[0]["dur"] == pytest.approx(1500)
    assert steps[1]["ts"] == pytest.approx(1500)
    assert steps[1]["dur"] == pytest.approx(1000)  # queued at 1 ms, begun when step 1 ended
    assert [event["args"]["tokens"] for event in steps] == [o.num_tokens for o in rig.outputs]

    free = [e["args"]["free blocks"] for e in events if e["name"] == "free blocks"]
    assert free == [output.num_free_blocks for output in rig.outputs]
    marks = [event for event in events if event["ph"] == "i"]
    assert len(marks) == len(trace.decisions())
    assert {"preempt x", "admit c", "copy c", "finish never"} <= {mark["name"] for mark in marks}
    assert next(mark for mark in marks if mark["name"] == "finish never")["tid"] == 0
