"""A trace of what the engine did: every `SchedulerOutput` with its `StepResult`.

Explorables and chapters replay traces of real runs; nothing in them is drawn by hand. The
same trace opens in a timeline viewer, as a Chrome trace.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quire.messages import SchedulerOutput, StepResult

Event = dict[str, Any]  # of the Chrome trace


@dataclass
class TraceStep:
    """One step: what was asked, what came back, and when (seconds of `perf_counter`)."""

    scheduled: SchedulerOutput
    result: StepResult
    begin: float
    end: float


@dataclass(frozen=True)
class Decision:
    """Something the scheduler decided about one request.

    `kind` is "admit", "copy", "preempt" or "finish"; `details` says with what numbers or why.
    """

    step: int
    kind: str
    request_id: str
    row: int | None  # None: it ended while it waited
    details: dict[str, Any]


@dataclass
class Trace:
    """The steps of a run, in order. Pass one to `LLMEngine` to record into it."""

    steps: list[TraceStep] = field(default_factory=list)

    def record(
        self, scheduled: SchedulerOutput, result: StepResult, begin: float, end: float
    ) -> None:
        """Add a step."""
        self.steps.append(TraceStep(scheduled, result, begin, end))

    def decisions(self) -> list[Decision]:
        """Return whom each step admitted, copied blocks for, preempted and saw ended."""
        rows: dict[str, int] = {}
        return [decision for step in self.steps for decision in _decisions(step.scheduled, rows)]

    def acceptance(self) -> list[tuple[int, int]]:
        """Return how many guesses each position behind a request's last token had, and kept.

        The first pair is of the position right behind it. A guess counts as kept if the step
        gave its token, also where the text ended before it.
        """
        drafted: Counter[int] = Counter()
        kept: Counter[int] = Counter()
        for step in self.steps:
            for entry in step.scheduled.entries:
                told = step.result.token_ids.get(entry.request_id, ())
                drafted.update(range(entry.num_draft_tokens))
                kept.update(range(min(entry.num_draft_tokens, max(0, len(told) - 1))))
        return [(drafted[i], kept[i]) for i in range(len(drafted))]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the trace as plain lists and dicts; times start at 0."""
        origin = self.steps[0].begin if self.steps else 0.0
        return [
            {
                "scheduled": asdict(step.scheduled),
                "result": asdict(step.result),
                "begin": step.begin - origin,
                "end": step.end - origin,
            }
            for step in self.steps
        ]

    def to_chrome(self) -> dict[str, Any]:
        """Return the trace in Chrome's trace event format, for chrome://tracing or Perfetto.

        One track shows the steps and one each row's requests; two counters show the free
        blocks and the tokens of a step. Times are in microseconds from the first step.
        """
        events = [_named("process_name", 0, "quire"), _named("thread_name", 0, "steps")]
        rows = sorted({entry.row for step in self.steps for entry in step.scheduled.entries})
        events += [_named("thread_name", row + 1, f"row {row}") for row in rows]
        held: dict[str, int] = {}
        origin = end = self.steps[0].begin if self.steps else 0.0
        for step in self.steps:
            # With overlap a step is queued while the last one runs, and runs after it.
            begin, end = max(step.begin, end), max(step.end, end)
            start, duration = (begin - origin) * 1e6, (end - begin) * 1e6
            events += _slices(step.scheduled, start, duration)
            events += _counters(step.scheduled, start)
            events += [_mark(decision, start) for decision in _decisions(step.scheduled, held)]
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file; a request's own functions are written as their names."""
        Path(path).write_text(json.dumps(self.to_json(), default=repr), "utf-8")

    def save_chrome(self, path: str | Path) -> None:
        """Write `to_chrome` to a file."""
        Path(path).write_text(json.dumps(self.to_chrome()), "utf-8")


def _decisions(scheduled: SchedulerOutput, rows: dict[str, int]) -> Iterator[Decision]:
    """Yield a step's decisions; `rows` holds the rows of running requests from step to step."""
    step = scheduled.step
    for request_id in scheduled.finished_ids:
        reason = {"reason": str(scheduled.finish_reasons[request_id])}
        yield Decision(step, "finish", request_id, rows.pop(request_id, None), reason)
    for request_id in scheduled.preempted_ids:
        reason = {"reason": "no free blocks"}
        yield Decision(step, "preempt", request_id, rows.pop(request_id, None), reason)
    rows.update({entry.request_id: entry.row for entry in scheduled.entries})
    for request in scheduled.new_requests:
        hits = {
            "tokens": len(request.token_ids),
            "hit_tokens": scheduled.hit_tokens.get(request.request_id, 0),
        }
        yield Decision(step, "admit", request.request_id, request.row, hits)
    owners = _owners_of_blocks(scheduled)
    for group, copies in enumerate(scheduled.block_copies):
        for source, target in copies:
            request_id = owners[group, target]
            pair = {"group": group, "from": source, "to": target}
            yield Decision(step, "copy", request_id, rows[request_id], pair)


def _owners_of_blocks(scheduled: SchedulerOutput) -> dict[tuple[int, int], str]:
    """Return who holds each (KV group, block) that entries name in this step."""
    return {
        (group, block_id): entry.request_id
        for entry in scheduled.entries
        for group, block_ids in enumerate(entry.new_block_ids)
        for block_id in block_ids
    }


def _named(kind: str, track: int, name: str) -> Event:
    return {"ph": "M", "pid": 0, "tid": track, "name": kind, "args": {"name": name}}


def _slices(scheduled: SchedulerOutput, start: float, duration: float) -> Iterator[Event]:
    """Yield the step on its track and each of its requests on the track of its row."""
    span = {"ph": "X", "pid": 0, "ts": start, "dur": duration}
    sizes = {"requests": len(scheduled.entries), "tokens": scheduled.num_tokens}
    yield {**span, "tid": 0, "name": f"step {scheduled.step}", "args": sizes}
    for entry in scheduled.entries:
        positions = {
            "start": entry.start,
            "tokens": entry.num_tokens,
            "samples": entry.samples,
        }
        yield {**span, "tid": entry.row + 1, "name": entry.request_id, "args": positions}


def _counters(scheduled: SchedulerOutput, time: float) -> Iterator[Event]:
    values = {"free blocks": scheduled.num_free_blocks, "tokens in step": scheduled.num_tokens}
    for name, value in values.items():
        yield {"ph": "C", "pid": 0, "ts": time, "name": name, "args": {name: value}}


def _mark(decision: Decision, time: float) -> Event:
    """Return an instant on the request's row, or on the steps' track if it has none."""
    return {
        "ph": "i",
        "s": "t",  # drawn on its track alone
        "pid": 0,
        "ts": time,
        "tid": 0 if decision.row is None else decision.row + 1,
        "name": f"{decision.kind} {decision.request_id}",
        "args": decision.details,
    }
