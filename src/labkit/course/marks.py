"""Written answers: collected by question for a person to mark, their points merged back.

For each question there is a page to read (`written/<question>.html`: rubric first, then every
answer under a number) and a table to fill in (`written/<question>.csv`: student, points,
comment). Names stand in the table alone, so that answers are read without them. A run of
`labkit grade` keeps what is filled in.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from labkit.course.record import Record
from labkit.course.tables import as_given, write_table
from labkit.reader.lab import LabError, Written

COLUMNS = ("answer", "student", "points", "of", "comment", "version")


@dataclass(frozen=True)
class Mark:
    """What a person gave an answer; `points` is None until then."""

    number: int  # of the answer on the page
    student: str
    points: float | None
    comment: str
    version: str  # a fingerprint of the answer that was marked

    def stale(self, answer: str) -> bool:
        """Whether the answer is another than the one marked."""
        return self.points is not None and self.version != fingerprint(answer)


def fingerprint(answer: str) -> str:
    """A short fingerprint of an answer, blank space aside."""
    return hashlib.sha256(" ".join(answer.split()).encode()).hexdigest()[:12]


def read_marks(path: Path, question: Written) -> dict[str, Mark]:
    """Read a table of marks by student; empty where there is no table yet.

    Raises:
        LabError: points that are no number, below 0 or above the question's; names the row.
            Or the file is not in UTF-8.
    """
    if not path.is_file():
        return {}
    try:
        return _read_marks(path, question)
    except UnicodeDecodeError:
        raise LabError(f"{path} is not in UTF-8: save it as CSV UTF-8") from None


def _read_marks(path: Path, question: Written) -> dict[str, Mark]:
    marks = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in ("student", "points") if name not in (reader.fieldnames or [])]
        if missing:
            raise LabError(f"{path} has no column {' and no column '.join(missing)}")
        for line, row in enumerate(reader, 2):
            student = as_given(row["student"])
            points = _points(row["points"] or "", f"{path}, line {line} ({student})", question)
            number = row.get("answer") or ""
            marks[student] = Mark(
                int(number) if number.isdecimal() else 0,
                student,
                points,
                as_given(row.get("comment") or ""),
                row.get("version") or "",
            )
    return marks


def _points(text: str, where: str, question: Written) -> float | None:
    if not text.strip():
        return None
    try:
        points = float(text.replace(",", "."))
    except ValueError:
        raise LabError(f"{where}: {text!r} is no number of points") from None
    if not 0 <= points <= question.points:
        raise LabError(f"{where}: {points:g} is not between 0 and {question.points:g}")
    return points


def collect_answers(
    path: Path, question: Written, records: Iterable[Record]
) -> tuple[dict[str, Mark], list[str]]:
    """Bring a table of marks up to date and write it; return the marks and what was odd.

    Answers stand in an order that tells nothing of their writers' names. An answer that changed
    after it was marked keeps its points, and is named.
    """
    before = read_marks(path, question)
    marks: dict[str, Mark] = {}
    problems = []
    answered = [record for record in records if question.name in record.written]
    for number, record in enumerate(
        sorted(answered, key=lambda r: fingerprint(r.student + question.name)), 1
    ):
        answer, old = record.written[question.name], before.get(record.student)
        if old is None or old.points is None:
            comment = old.comment if old else ""
            marks[record.student] = Mark(number, record.student, None, comment, fingerprint(answer))
            continue
        marks[record.student] = Mark(
            number, record.student, old.points, old.comment, old.version or fingerprint(answer)
        )
        if marks[record.student].stale(answer):
            problems.append(
                f"{question.name}: {record.student} changed the answer after it was marked; "
                "mark it again and empty its `version` cell"
            )
    gone = [m for m in before.values() if m.student not in marks and m.points is not None]
    problems += [f"{question.name}: marks of {m.student}, who has no answer here" for m in gone]
    _write(path, question, [*marks.values(), *gone])
    return marks, problems


def _write(path: Path, question: Written, marks: Iterable[Mark]) -> None:
    rows = []
    for mark in marks:
        points = "" if mark.points is None else f"{mark.points:g}"
        of = f"{question.points:g}"
        rows.append([mark.number, mark.student, points, of, mark.comment, mark.version])
    write_table(path, [COLUMNS, *rows])
