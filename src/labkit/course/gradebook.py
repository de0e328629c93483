"""From records to grades: which attempt counts, what is late, what a person marked.

Writes each student's `results.json` (Gradescope's format) and the tables of the class:
`canvas.csv` with the columns that Canvas's gradebook imports, `grades.csv` with those that
nbgrader exports, `students.csv` for `nbgrader db student import`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.course.course import IDENTITY, Course, Late
from labkit.course.marks import Mark
from labkit.course.record import Record
from labkit.course.tables import write_table
from labkit.grading.report import UNSAFE
from labkit.reader.lab import Lab

NBGRADER = (
    "assignment", "duedate", "timestamp", "student_id", "last_name", "first_name", "email",
    "raw_score", "late_submission_penalty", "score", "max_score",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What one student gets."""

    lab: Lab
    record: Record  # of the attempt that counts
    attempts: int
    late: Late
    marks: Mapping[str, Mark]  # by question

    @property
    def student(self) -> str:
        """As the file's name says it."""
        return self.record.student

    @property
    def written(self) -> float:
        """Points that a person gave."""
        return sum(mark.points for mark in self.marks.values() if mark.points is not None)

    @property
    def raw(self) -> float:
        """Points before the late rule."""
        return self.record.automatic + self.written

    @property
    def total(self) -> float:
        """Points that count."""
        return round(self.raw * self.late.factor, 2)

    @property
    def possible(self) -> float:
        """All points of the lab."""
        return self.lab.automatic_points + self.lab.written_points

    @property
    def unmarked(self) -> list[str]:
        """Questions that were answered and wait for a person."""
        waiting = []
        for question in self.lab.written:
            mark = self.marks.get(question.name)
            if question.name in self.record.written and (mark is None or mark.points is None):
                waiting.append(question.name)
        return waiting

    def remarks(self) -> list[str]:
        """Sentences about the whole hand-in."""
        unsafe = [UNSAFE] if self.record.unsafe else []
        return [*unsafe, *self.record.notes, *self._rules()]

    def _rules(self) -> list[str]:
        said = []
        if self.attempts > 1:
            said.append(f"attempt {self.record.attempt} of {self.attempts} counts")
        if self.late.words:
            said.append(self.late.words)
        return said

    def gradescope(self) -> dict[str, Any]:
        """`results.json` with the written answers and the late rule in it."""
        content = {**self.record.gradescope, "score": self.total}
        tests = list(content.get("tests", []))
        for question in self.lab.written:
            mark = self.marks.get(question.name)
            if mark is not None and mark.points is not None:
                tests.append(
                    {
                        "name": question.title,
                        "number": str(len(tests) + 1),
                        "score": mark.points,
                        "max_score": question.points,
                        "status": "passed",
                        "output": mark.comment,
                        "visibility": "visible",
                    }
                )
        lines = [content.get("output", ""), *self._rules()]
        return content | {"tests": tests, "output": "\n".join(filter(None, lines))}


def results_of(
    lab: Lab,
    records: Iterable[Record],
    course: Course,
    marks: Mapping[str, Mapping[str, Mark]],
) -> list[Result]:
    """Choose each student's attempt and put everything together, by name.

    `marks` holds, by question, the marks by student.
    """
    results = []
    for record, attempts, late in counted_attempts(records, course):
        given = {name: table[record.student] for name, table in marks.items()
                 if record.student in table}  # fmt: skip
        results.append(Result(lab, record, attempts, late, given))
    return results


def counted_attempts(records: Iterable[Record], course: Course) -> list[tuple[Record, int, Late]]:
    """Each student's attempt that counts, how many there were, and the late rule on it."""
    by_student: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_student[record.student].append(record)
    chosen = []
    for student in sorted(by_student, key=str.casefold):
        attempts = sorted(by_student[student], key=lambda record: record.attempt)
        lates = [course.late(course.time_of(student, r.time), r.marked_late) for r in attempts]
        scores = [r.automatic * late.factor for r, late in zip(attempts, lates, strict=True)]
        index = course.counted(scores)
        chosen.append((attempts[index], len(attempts), lates[index]))
    return chosen


def write_results(folder: Path, result: Result) -> None:
    """Write a student's `results.json`."""
    text = json.dumps(result.gradescope(), indent=1, ensure_ascii=False) + "\n"
    (folder / "results.json").write_text(text, "utf8")


def write_tables(out: Path, results: Sequence[Result], lab: Lab, course: Course) -> None:
    """Write the tables of the class."""
    possible = lab.automatic_points + lab.written_points
    by_student = {result.student: course.identity(result.student) for result in results}
    handed_in = {tuple(row.values()) for row in by_student.values()}
    column = course.column or lab.title
    canvas: list[list[str]] = [[*IDENTITY, column]]
    canvas.append(["    Points Possible", "", "", "", "", f"{possible:g}"])
    canvas += [[*by_student[r.student].values(), f"{r.total:g}"] for r in results]
    absent = [{key: row.get(key, "") for key in IDENTITY} for row in course.roster]
    canvas += [[*row.values(), ""] for row in absent if tuple(row.values()) not in handed_in]
    write_table(out / "canvas.csv", canvas)

    grades: list[list[str]] = [list(NBGRADER)]
    students = [["id", "last_name", "first_name", "email", "lms_user_id"]]
    for result in results:
        row = by_student[result.student]
        student = row["SIS Login ID"] or row["SIS User ID"] or row["ID"] or result.student
        last, _, first = row["Student"].partition(", ")
        time = course.time_of(result.student, result.record.time)
        email = student if "@" in student else ""
        grades.append(
            [
                lab.slug,
                str(course.due or ""),
                str(time or ""),
                student,
                last,
                first,
                email,
                f"{result.raw:g}",
                f"{max(0.0, round(result.raw - result.total, 2)):g}",
                f"{result.total:g}",
                f"{possible:g}",
            ]
        )
        students.append([student, last, first, email, row["ID"]])
    write_table(out / "grades.csv", grades)
    write_table(out / "students.csv", students)
