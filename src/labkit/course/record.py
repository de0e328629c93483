"""`Record`: what is kept of one graded hand-in, as JSON, so that grading can be resumed.

A record holds the work (task cells, written answers), every verdict in words and the results in
Gradescope's format. All pages and tables of a class are made from records alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from labkit.course.intake import HandIn
from labkit.grading.report import Report
from labkit.reader.notebook import Submission

GRADED_NOT = "is graded, not"
NOTHING_FOUND = "no task of this lab found in these files"


@dataclass(frozen=True)
class Verdict:
    """One hidden test: `reason` is None when it passed."""

    task: str
    title: str
    spec: str
    points: float
    possible: float
    reason: str | None
    test: str = ""  # its name in lab.toml


@dataclass
class Record:
    """One graded hand-in."""

    lab: str
    student: str
    file: str  # its name alone: the feedback page shows it
    attempt: int
    submitted: str | None  # ISO 8601, local
    marked_late: bool
    file_digest: str
    settings_digest: str  # of the lab, the key and labkit, which decided the grade
    variant: str  # graded as
    seconds: float
    verdicts: list[Verdict] = field(default_factory=list)
    cells: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    read_notes: list[str] = field(default_factory=list)  # those of them from reading the file
    released: str | None = None  # the variant that the notebook names
    other_lab: str | None = None  # the lab that it says it is of, where that is another
    system: str = ""  # the course system that named the file
    problems: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)  # failures of the grader itself
    unsafe: bool = False  # graded without a sandbox
    frontier: list[str] = field(default_factory=list)  # names of the frontier cells handed in
    gradescope: dict[str, Any] = field(default_factory=dict)

    @property
    def nothing_found(self) -> bool:
        """Whether what was handed in held no task of the lab."""
        return not self.broken and nothing_found(self.cells, self.problems)

    @property
    def received(self) -> list[str]:
        """Sentences about what grading does not look at: each frontier cell has its own judge."""
        return [f"frontier cell `{name}` received; judged apart" for name in self.frontier]

    @property
    def automatic(self) -> float:
        """Points that the tests gave."""
        return sum(verdict.points for verdict in self.verdicts)

    def task_points(self, task: str) -> float:
        """Points of one task."""
        return sum(verdict.points for verdict in self.verdicts if verdict.task == task)

    @property
    def time(self) -> datetime | None:
        """When the file was handed in, as far as the file tells."""
        return datetime.fromisoformat(self.submitted) if self.submitted else None

    def write(self, path: Path) -> None:
        """Write the record so that an interrupt leaves a whole one or none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting = path.with_name(path.name + ".part")
        waiting.write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n", "utf8")
        waiting.replace(path)


def nothing_found(cells: Mapping[str, str], problems: Mapping[str, str]) -> bool:
    """Whether no task cell was found, not even one that cannot be compiled."""
    missing = ("no cell with the line", "the file ")  # as `labkit.reader.notebook` begins them
    return not cells and all(reason.startswith(missing) for reason in problems.values())


def note_files(submission: Submission, graded: str, others: Sequence[str]) -> None:
    """Note which of a student's files is graded, or that none holds a task: 0 is never silent."""
    if nothing_found(submission.cells, submission.problems):
        submission.notes.append(f"{NOTHING_FOUND}: {', '.join((graded, *others))}")
    elif others:
        submission.notes.append(f"{graded} {GRADED_NOT}: {', '.join(others)}")


def read_record(path: Path) -> Record | None:
    """Read a record; None where there is none of this form, and it has to be made again."""
    try:
        content = json.loads(path.read_text("utf8"))
        verdicts = [Verdict(**verdict) for verdict in content.pop("verdicts")]
        return Record(**content, verdicts=verdicts)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def submission_of(record: Record) -> Submission:
    """The hand-in as it was read then, to be graded again without its file."""
    notes = [note for note in record.notes if note in record.read_notes]
    texts = (dict(record.cells), dict(record.written), dict(record.problems))
    return Submission(
        *texts,
        notes,
        variant=record.released,
        other_lab=record.other_lab,
        student=record.student,
        frontier=list(record.frontier),
    )


def record_of(handin: HandIn, submission: Submission, report: Report, seconds: float) -> Record:
    """Put together what is kept of a graded hand-in; the digests are the caller's to set."""
    return Record(
        lab=report.lab.slug,
        student=handin.student,
        file=handin.file_name,
        attempt=handin.attempt,
        submitted=handin.submitted.isoformat() if handin.submitted else None,
        marked_late=handin.marked_late,
        file_digest="",
        settings_digest="",
        variant=report.variant,
        seconds=round(seconds, 3),
        verdicts=[
            Verdict(
                o.task.name, o.title, o.test.spec, o.points, o.test.points, o.reason, o.test.name
            )
            for o in report.outcomes
        ],
        cells=submission.cells,
        written=submission.written,
        notes=list(report.notes),
        read_notes=list(submission.notes),
        released=submission.variant,
        other_lab=submission.other_lab,
        system=handin.system,
        problems=submission.problems,
        broken=report.broken,
        unsafe=report.unsafe,
        frontier=submission.frontier,
        gradescope=report.gradescope(),
    )
