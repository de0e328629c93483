"""What grading found: a results file in Gradescope's format, and a table for the terminal."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.reader.lab import HiddenTest, Lab, Task

BROKEN = "the grader itself failed here, tell your instructor"
UNSAFE = "graded without a sandbox (--unsafe-local): the code could read files and use the network"


@dataclass(frozen=True)
class Outcome:
    """One hidden test on one submission; `reason` is None when it passed."""

    task: Task
    test: HiddenTest
    title: str
    points: float
    reason: str | None
    seconds: float = 0.0  # that the test took, its child's start included


@dataclass
class Report:
    """All outcomes of one submission."""

    lab: Lab
    variant: str
    outcomes: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    written: dict[str, str] = field(default_factory=dict)
    unsafe: bool = False

    @property
    def score(self) -> float:
        """Points earned."""
        return sum(outcome.points for outcome in self.outcomes)

    @property
    def best(self) -> float:
        """Points that could be earned by the tests that ran."""
        return sum(outcome.test.points for outcome in self.outcomes)

    @property
    def broken(self) -> list[str]:
        """Failures of the grader, which say nothing about the submission."""
        reasons = [o.reason for o in self.outcomes if o.reason is not None]
        return [reason for reason in reasons if reason.startswith(BROKEN)]

    @property
    def seconds(self) -> float:
        """Wall time that the tests took."""
        return sum(outcome.seconds for outcome in self.outcomes)

    def task_score(self, name: str) -> float:
        """Points earned in one task."""
        return sum(outcome.points for outcome in self.outcomes if outcome.task.name == name)

    def reasons(self, name: str) -> list[str]:
        """Why points of a task were lost, each reason once."""
        found = [o.reason for o in self.outcomes if o.task.name == name and o.reason is not None]
        return list(dict.fromkeys(found))

    def gradescope(self) -> dict[str, Any]:
        """The content of `results.json`, as Gradescope's autograder reads it."""
        lines = [f"{self.lab.title}, variant {self.variant}.", *self.notes]
        for question in self.lab.written:
            state = "handed in" if self.written.get(question.name) else "missing"
            lines.append(
                f"{question.title}: {state}, {question.points:g} points to be marked by hand."
            )
        if self.unsafe:
            lines.append(UNSAFE)
        tests = [
            {
                "name": f"{outcome.task.title}: {outcome.title}",
                "number": str(number),
                "score": outcome.points,
                "max_score": outcome.test.points,
                "status": "passed" if outcome.reason is None else "failed",
                "output": outcome.reason or "",
                "visibility": "visible",
            }
            for number, outcome in enumerate(self.outcomes, 1)
        ]
        return {
            "score": self.score,
            "output": "\n".join(lines),
            "visibility": "visible",
            "stdout_visibility": "hidden",
            # Students' words are in it, so nothing of it is rendered as HTML.
            "output_format": "text",
            "test_output_format": "text",
            "test_name_format": "text",
            "tests": tests,
            "extra_data": {"lab": self.lab.slug, "variant": self.variant},
        }

    def write(self, path: Path) -> None:
        """Write `results.json`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.gradescope(), indent=1, ensure_ascii=False) + "\n", "utf8")

    def text(self) -> str:
        """The report as lines for a terminal."""
        lines = [UNSAFE] if self.unsafe else []
        lines += self.notes
        for task in self.lab.tasks:
            lines.append(f"{task.name:<14} {self.task_score(task.name):>5g} of {task.points:g}")
            for reason in self.reasons(task.name):
                lines += [f"    {line}" for line in reason.split("\n")]
        for question in self.lab.written:
            state = "handed in" if self.written.get(question.name) else "missing"
            lines.append(f"{question.name:<14} {state}; {question.points:g} points by hand")
        lines.append(f"{'together':<14} {self.score:>5g} of {self.best:g}")
        return "\n".join(lines)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Lay out rows in columns; the first is text, the others are flushed right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    )
