"""`course.toml`: what a course decides for itself, and what follows for a hand-in.

    [course]
    roster = "roster.csv"             # a gradebook export of Canvas; optional

    [late]
    times = "times.csv"               # student,submitted; or "files": the files' own dates
    grace_minutes = 30
    percent_per_day = 10              # of the points earned, for each day begun
    closed_after_days = 5             # later than that counts nothing

    [resubmission]
    counts = "last"                   # or "best"
    at_most = 3                       # later ones are not counted

    [labs.autoregressive-decoding]
    due = 2026-10-12T23:59:00         # local time, as the dates of the files
    column = "Lab 1 (12345)"          # of Canvas's gradebook; by default the lab's title

Everything is optional. Without `due`, or where the time of a hand-in is not known, nothing is
taken off.
"""

from __future__ import annotations

import csv
import math
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unicodedata import normalize

from labkit.reader.lab import LabError

IDENTITY = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")  # Canvas's own columns
KNOWN: dict[str, tuple[str, ...]] = {
    "course": ("roster",),
    "late": ("times", "grace_minutes", "percent_per_day", "closed_after_days"),
    "resubmission": ("counts", "at_most"),
}
OF_A_LAB = ("due", "column")


@dataclass(frozen=True)
class Late:
    """What a late hand-in loses: `factor` of its points is left, and `words` say why."""

    factor: float = 1.0
    words: str = ""


@dataclass(frozen=True)
class Course:
    """The rules of a course for one lab."""

    due: datetime | None = None
    column: str | None = None
    grace: timedelta = timedelta()
    percent_per_day: float = 0.0
    closed_after_days: float = math.inf
    use_file_times: bool = False
    times: dict[str, datetime] = field(default_factory=dict)  # by student
    counts: str = "last"
    at_most: int | None = None
    roster: tuple[dict[str, str], ...] = ()  # rows of Canvas's identity columns

    def time_of(self, student: str, file_time: datetime | None) -> datetime | None:
        """When a hand-in came, or None where the course has no way to know."""
        if student in self.times:
            return self.times[student]
        return file_time if self.use_file_times else None

    def late(self, submitted: datetime | None, marked_late: bool = False) -> Late:
        """What the rules take from a hand-in of that time."""
        if self.due is None:
            return Late()
        if submitted is None:
            if not marked_late:
                return Late()
            return Late(1.0, "marked late by the course system; nothing taken off: no time known")
        over = submitted - self.due
        if over <= self.grace:
            return Late()
        days = math.ceil(over / timedelta(days=1))
        said = f"handed in {_duration(over)} after the deadline of {self.due:%d %b %Y %H:%M}"
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

    def identity(self, student: str) -> dict[str, str]:
        """A student's row of the roster; without one, what the file's name tells."""
        name, _, number = student.rpartition("_")
        for row in self.roster:
            keys = {row[key].casefold() for key in IDENTITY[:4] if row.get(key)}
            if student.casefold() in keys or (number and number == row.get("ID")):
                return {key: row.get(key, "") for key in IDENTITY}
        if name and number.isdigit():
            return dict.fromkeys(IDENTITY, "") | {"Student": name, "ID": number}
        return dict.fromkeys(IDENTITY, "") | {"Student": student, "SIS Login ID": student}


def _duration(span: timedelta) -> str:
    hours = span.total_seconds() / 3600
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"


def load_course(path: Path | None, slug: str) -> Course:
    """Read `course.toml` for one lab; None gives a course without rules.

    Raises:
        LabError: a key that is not known or a value that cannot be; the message names it.
    """
    if path is None:
        return Course()
    try:
        raw = tomllib.loads(path.read_text("utf8"))
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise LabError(f"{path}: {error}") from None
    for section, values in raw.items():
        if section == "labs":
            continue
        if section not in KNOWN:
            raise LabError(f"{path}: [{section}] is not one of: {', '.join(KNOWN)}, labs")
        _check_keys(path, section, values, KNOWN[section])
    labs = raw.get("labs", {})
    _check_keys(path, "labs", labs, labs)
    for name, values in labs.items():
        _check_keys(path, f"labs.{name}", values, OF_A_LAB)
    late, again = raw.get("late", {}), raw.get("resubmission", {})
    lab = labs.get(slug, {})
    times = _check(path, late, "times", str, None)
    roster = _check(path, raw.get("course", {}), "roster", str, None)
    course = Course(
        due=_check(path, lab, "due", datetime, None),
        column=_check(path, lab, "column", str, None),
        grace=timedelta(minutes=_number(path, late, "grace_minutes", 0)),
        percent_per_day=_number(path, late, "percent_per_day", 0),
        closed_after_days=_number(path, late, "closed_after_days", math.inf),
        use_file_times=times == "files",
        times=read_times(path.with_name(times)) if times not in (None, "files") else {},
        counts=_check(path, again, "counts", str, "last"),
        at_most=_check(path, again, "at_most", int, None),
        roster=tuple(read_roster(path.with_name(roster))) if roster is not None else (),
    )
    if course.counts not in ("last", "best"):
        raise LabError(f'{path}: counts is "last" or "best", not {course.counts!r}')
    if course.at_most is not None and course.at_most < 1:
        raise LabError(f"{path}: at_most is at least 1, not {course.at_most}")
    return course


def _check_keys(path: Path, section: str, table: Any, known: Iterable[str]) -> None:
    """A word that is misspelt must not count for a rule that is not there."""
    if type(table) is not dict:
        raise LabError(f"{path}: {section} is a table, not {table!r}: write [{section}]")
    for key in table:
        if key not in known:
            raise LabError(f"{path}: [{section}] {key} is not one of: {', '.join(known)}")


def _check(path: Path, table: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = table.get(key, default)
    if value is not default and type(value) is not kind:
        raise LabError(f"{path}: {key} is a {kind.__name__}, not {value!r}")
    if isinstance(value, datetime) and value.tzinfo is not None:
        raise LabError(f"{path}: {key} is local time, without an offset: {value}")
    return value


def _number(path: Path, table: dict[str, Any], key: str, default: float) -> float:
    value = table.get(key, default)
    if key in table and (type(value) not in (int, float) or not 0 <= value < math.inf):
        raise LabError(f"{path}: {key} is a number of at least 0, not {value!r}")
    return float(value)


def read_times(path: Path) -> dict[str, datetime]:
    """Read `student,submitted` rows; times in ISO 8601, local where they carry no offset.

    Raises:
        LabError: no such file or column, or a time that is none.
    """
    times = {}
    for number, row in enumerate(_rows(path, ("student", "submitted")), 2):
        try:
            time = datetime.fromisoformat(row["submitted"].strip())
        except ValueError:
            raise LabError(f"{path}, line {number}: {row['submitted']!r} is no time") from None
        local = time.astimezone() if time.tzinfo is not None else time
        times[normalize("NFC", row["student"].strip())] = local.replace(tzinfo=None)
    return times


def read_roster(path: Path) -> list[dict[str, str]]:
    """Read a gradebook export of Canvas: its identity columns of every student.

    Raises:
        LabError: no such file, or not such an export.
    """
    rows = _rows(path, IDENTITY[:2])
    return [row for row in rows if row["Student"] and "Points Possible" not in row["Student"]]


def _rows(path: Path, wanted: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in wanted if name not in (reader.fieldnames or [])]
            if missing:
                raise LabError(f"{path} has no column {' and no column '.join(missing)}")
            return [{k: v or "" for k, v in row.items() if type(k) is str} for row in reader]
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}") from None
