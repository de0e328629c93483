"""From records to grades: which attempt counts, what is late, what a person marked or decided.

Writes each student's `results.json` (Gradescope's format), and nbgrader's tables of the class:
`grades.csv` with the columns that it exports, `students.csv` for `nbgrader db student import`.
Course systems' tables are `labkit.course.lms`'s.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.course.course import Course, Late, Own
from labkit.course.lms import Line, write_for_systems
from labkit.course.marks import Mark
from labkit.course.record import Record
from labkit.course.roster import NUMBERED, Person
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
    own: Own = field(default_factory=Own)  # what the course decided for this student

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
        if self.own.points is not None:
            return self.own.points
        return round(self.raw * self.late.factor + self.own.bonus, 2)

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
        return [*unsafe, *self.record.notes, *self.record.received, *self._rules()]

    def _rules(self) -> list[str]:
        said = []
        if self.attempts > 1:
            said.append(f"attempt {self.record.attempt} of {self.attempts} counts")
        if self.late.words:
            said.append(self.late.words)
        return said + self.own.words()

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
                        "output": mark.words(),
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
        own = course.own_of(record.student)
        results.append(Result(lab, record, attempts, late, given, own))
    return results


def counted_attempts(records: Iterable[Record], course: Course) -> list[tuple[Record, int, Late]]:
    """Each student's attempt that counts, how many there were, and the late rule on it."""
    by_student: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_student[record.student].append(record)
    chosen = []
    for student in sorted(by_student, key=str.casefold):
        attempts = sorted(by_student[student], key=lambda record: record.attempt)
        own = course.own_of(student)
        lates = [course.late(course.time_of(student, r.time), r.marked_late, own) for r in attempts]
        scores = [r.automatic * late.factor for r, late in zip(attempts, lates, strict=True)]
        index = course.counted(scores)
        chosen.append((attempts[index], len(attempts), lates[index]))
    return chosen


def write_results(folder: Path, result: Result) -> None:
    """Write a student's `results.json`."""
    text = json.dumps(result.gradescope(), indent=1, ensure_ascii=False) + "\n"
    (folder / "results.json").write_text(text, "utf8")


def _from_name(result: Result) -> Person:
    """Who a student is as far as the hand-in's name tells."""
    numbered = NUMBERED.fullmatch(result.student)
    if numbered and result.record.system in ("canvas", "moodle"):
        return Person(numbered["name"], "", numbered["number"], numbered["number"])
    return Person(result.student, "", result.student)


def write_tables(out: Path, results: Sequence[Result], lab: Lab, course: Course) -> list[str]:
    """Write the tables that programs import; return what an instructor has to know about them."""
    possible = lab.automatic_points + lab.written_points
    grades: list[list[str]] = [list(NBGRADER)]
    students = [["id", "last_name", "first_name", "email", "lms_user_id"]]
    lines = []
    for result in results:
        person = course.roster.person(result.student)
        lines.append(Line(result.student, result.total, result.record.system, person))
        person = person or _from_name(result)
        student, last, first = person.login, person.last, person.first
        email = student if "@" in student else ""
        time = course.time_of(result.student, result.record.time)
        grades.append(
            [
                lab.slug,
                str(result.own.due or course.due or ""),
                str(time or ""),
                student,
                last,
                first,
                email,
                f"{result.raw:g}",
                f"{round(result.raw * (1 - result.late.factor), 2):g}",
                f"{result.total:g}",
                f"{possible:g}",
            ]
        )
        students.append([student, last, first, email, person.number])
    write_table(out / "grades.csv", grades)
    write_table(out / "students.csv", students)
    return write_for_systems(out, lines, course.roster, course.column or lab.title, possible)
