"""What a course decides for itself, and what follows for a hand-in."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from labkit.course.roster import NUMBERED, Roster, folded
from labkit.reader.lab import LabError

T = TypeVar("T")


@dataclass(frozen=True)
class Late:
    """What a late hand-in loses: `factor` of its points is left, and `words` say why."""

    factor: float = 1.0
    words: str = ""


@dataclass(frozen=True)
class Own:
    """What holds for one student alone, in one lab."""

    due: datetime | None = None  # an extension
    bonus: float = 0.0  # points added after the late rule, for a frontier task
    points: float | None = None  # all that count, whatever was earned
    why: str = ""  # which the student reads

    def words(self) -> list[str]:
        """What the student is told."""
        why = f": {self.why}" if self.why else ""
        said = [f"extended to {self.due:%d %b %Y %H:%M}{why}"] if self.due else []
        if self.points is not None:
            return [*said, f"your instructor set {self.points:g} points{why}"]
        return [*said, f"a bonus of {self.bonus:g} points{why}"] if self.bonus else said


@dataclass(frozen=True)
class Course:
    """The rules of a course for one lab."""

    due: datetime | None = None
    column: str | None = None
    grace: timedelta = timedelta()
    percent_per_day: float = 0.0
    closed_after_days: float = math.inf
    use_file_times: bool = False
    times: dict[str, datetime] = field(default_factory=dict)  # by name, as the file has it
    counts: str = "last"
    at_most: int | None = None
    separator: str = ","  # of the tables for people
    roster: Roster = field(default_factory=Roster)
    own: dict[str, Own] = field(default_factory=dict)  # by name, as the file has it

    def names(self, student: str) -> set[str]:
        """All by which the course's files may name a student."""
        person = self.roster.person(student)
        numbered = NUMBERED.fullmatch(student)
        number = {numbered["number"]} if numbered else set()
        return {folded(student), *number, *(person.names if person else ())}

    def own_of(self, student: str) -> Own:
        """What holds for a student alone."""
        return _of(self.own, self.names(student)) or Own()

    def time_of(self, student: str, file_time: datetime | None) -> datetime | None:
        """When a hand-in came, or None where the course has no way to know."""
        known = _of(self.times, self.names(student)) if self.times else None
        return known or (file_time if self.use_file_times else None)

    def late(
        self, submitted: datetime | None, marked_late: bool = False, own: Own | None = None
    ) -> Late:
        """What the rules take from a hand-in of that time."""
        due = (own.due if own else None) or self.due
        if due is None:
            return Late()
        if submitted is None:
            if not marked_late:
                return Late()
            return Late(1.0, "marked late by the course system; nothing taken off: no time known")
        over = submitted - due
        if over <= self.grace:
            return Late()
        days = math.ceil(over / timedelta(days=1))
        said = f"handed in {_duration(over)} after the deadline of {due:%d %b %Y %H:%M}"
        if over > timedelta(days=min(self.closed_after_days, 36500)):
            return Late(0.0, f"{said}, after it was closed: no points")
        factor = max(0.0, 1 - days * self.percent_per_day / 100)
        return Late(factor, f"{said}: {100 * (1 - factor):g} % taken off")

    def counted(self, scores: Sequence[float]) -> int:
        """Which of a student's attempts counts, given the score of each after the late rule."""
        allowed = list(scores[: self.at_most])
        if self.counts == "best":
            return max(range(len(allowed)), key=lambda i: (allowed[i], i))
        return len(allowed) - 1

    def rules(self) -> dict[str, str]:
        """The rules that decide everybody's grade, in words, to see where two runs differ."""
        grace = f" after {_duration(self.grace)} of grace" if self.grace else ""
        closed = math.isfinite(self.closed_after_days)
        rate = f"{self.percent_per_day:g} % a day{grace}" if self.percent_per_day else "nothing"
        return {
            "deadline": str(self.due or "none"),
            "late": rate + (f", closed after {self.closed_after_days:g} days" if closed else ""),
            "attempt that counts": self.counts + (f" of {self.at_most}" if self.at_most else ""),
        }

    def check_names(self, students: Iterable[str]) -> None:
        """See that every name of the course's files is that of a student.

        Args:
            students: as their hand-ins name them.

        Raises:
            LabError: names that match nobody who handed in and nobody of the roster, or two
                names of one student.
        """
        students = list(students)
        of_student = {student: self.names(student) for student in students}
        known = {name for person in self.roster.people for name in person.names}
        known = known.union(*of_student.values())
        for where, table in (("students", self.own), ("times", self.times)):
            unknown = [name for name in table if folded(name) not in known]
            if unknown:
                near = difflib.get_close_matches(unknown[0], students, n=1, cutoff=0.5)
                roster = " and nobody on the roster" if self.roster.people else ""
                perhaps = f"; perhaps {near[0]!r}?" if near else "."
                raise LabError(
                    f"{where}: no hand-in{roster} is called "
                    f"{', '.join(map(repr, unknown))}{perhaps} Who has handed in nothing yet is "
                    "known by the roster"
                )
            for student, names in of_student.items():
                twice = [name for name in table if folded(name) in names]
                if len(twice) > 1:
                    raise LabError(f"{where}: {' and '.join(twice)} are both {student}: keep one")


def _of(table: dict[str, T], names: set[str]) -> T | None:
    """The entry under one of a student's names."""
    return next((entry for name, entry in table.items() if folded(name) in names), None)


def _duration(span: timedelta) -> str:
    hours = span.total_seconds() / 3600
    if hours < 1:
        return f"{60 * hours:g} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"
