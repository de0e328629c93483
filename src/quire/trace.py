"""A trace of what the engine did: every `SchedulerOutput` with its `StepResult`.

Explorables and chapters replay traces of real runs; nothing in them is drawn by hand.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quire.messages import SchedulerOutput, StepResult


@dataclass
class TraceStep:
    """One step: what was asked, what came back, and when (seconds of `perf_counter`)."""

    scheduled: SchedulerOutput
    result: StepResult
    begin: float
    end: float


@dataclass
class Trace:
    """The steps of a run, in order. Pass one to `LLMEngine` to record into it."""

    steps: list[TraceStep] = field(default_factory=list)

    def record(
        self, scheduled: SchedulerOutput, result: StepResult, begin: float, end: float
    ) -> None:
        """Add a step."""
        self.steps.append(TraceStep(scheduled, result, begin, end))

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

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file."""
        Path(path).write_text(json.dumps(self.to_json()), "utf-8")
