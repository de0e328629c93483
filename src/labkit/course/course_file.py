"""`course.toml`: the rules of a course, read with care.

    [course]
    roster = "roster.csv"             # a gradebook export of the course system
    separator = ";"                   # of the tables for people, where Excel wants it; or ","

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
    column = "Lab 1 (12345)"          # of the gradebook; by default the lab's title
    times = "lab-1-times.csv"         # in place of [late]'s

    [labs.autoregressive-decoding.students.ada]
    due = 2026-10-15T23:59:00         # an extension
    bonus = 5                         # for a frontier task, added after the late rule
    points = 80                       # in place of all that was earned
    why = "ill for three days"        # the student reads it

Everything is optional. Without `due`, or where the time of a hand-in is not known, nothing is
taken off. A word that is not known here is an error: misspelt, it would be a rule that does not
hold.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unicodedata import normalize

from labkit.course.course import Course, Own
from labkit.course.roster import Roster, read_roster
from labkit.course.tables import as_given, read_table
from labkit.reader.lab import LabError, labs_folder

KNOWN: dict[str, tuple[str, ...]] = {
    "course": ("roster", "separator"),
    "late": ("times", "grace_minutes", "percent_per_day", "closed_after_days"),
    "resubmission": ("counts", "at_most"),
}
OF_A_LAB = ("due", "column", "times", "students")
OF_A_STUDENT = ("due", "bonus", "points", "why")


def load_course(path: Path | None, slug: str) -> Course:
    """Read `course.toml` for one lab; None gives a course without rules.

    Raises:
        LabError: a key or a lab that is not known or a value that cannot be; the message names it.
    """
    if path is None:
        return Course()
    raw = _read(path)
    for section, values in raw.items():
        if section == "labs":
            continue
        if section not in KNOWN:
            raise LabError(f"{path}: [{section}] is not one of: {', '.join(KNOWN)}, labs")
        _check_keys(path, section, values, KNOWN[section])
    labs = raw.get("labs", {})
    _check_keys(path, "labs", labs, _known_labs(path, slug))
    for name, values in labs.items():
        _check_keys(path, f"labs.{name}", values, OF_A_LAB)
    of_course, late, again = (raw.get(section, {}) for section in KNOWN)
    lab = labs.get(slug, {})
    times = _check(path, lab, "times", str, _check(path, late, "times", str, None))
    roster = _check(path, of_course, "roster", str, None)
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
        separator=_check(path, of_course, "separator", str, ","),
        roster=read_roster(path.with_name(roster)) if roster is not None else Roster(),
        own=_students(path, f"labs.{slug}.students", lab.get("students", {})),
    )
    if course.counts not in ("last", "best"):
        raise LabError(f'{path}: counts is "last" or "best", not {course.counts!r}')
    if course.at_most is not None and course.at_most < 1:
        raise LabError(f"{path}: at_most is at least 1, not {course.at_most}")
    if course.separator not in (",", ";"):
        raise LabError(f'{path}: separator is "," or ";", not {course.separator!r}')
    return course


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf8"))
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise LabError(f"{path}: {error}") from None


def _known_labs(path: Path, slug: str) -> list[str]:
    """The book's labs, the one that is graded, and those in folders beside the course's file."""
    found = {file.parent.name for file in labs_folder().glob("*/lab.toml")}
    for file in path.parent.glob("*/lab.toml"):
        found.add(str(_read(file).get("slug")))
    return sorted(found | {slug})


def _students(path: Path, section: str, table: Any) -> dict[str, Own]:
    _check_keys(path, section, table, table)
    found = {}
    for name, values in table.items():
        _check_keys(path, f"{section}.{name}", values, OF_A_STUDENT)
        has_points = "points" in values
        found[normalize("NFC", name)] = Own(
            due=_check(path, values, "due", datetime, None),
            bonus=_number(path, values, "bonus", 0),
            points=_number(path, values, "points", 0) if has_points else None,
            why=_check(path, values, "why", str, ""),
        )
    return found


def _check_keys(path: Path, section: str, table: Any, known: Iterable[str]) -> None:
    """A word that is misspelt must not count for a rule that is not there."""
    if type(table) is not dict:
        raise LabError(f"{path}: {section} is a table, not {table!r}: write [{section}]")
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, list(known), n=1)
            perhaps = f"; perhaps {near[0]}?" if near else ""
            raise LabError(f"{path}: [{section}] {key} is not one of: {', '.join(known)}{perhaps}")


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
        LabError: no such file or column, a time that is none, or a student twice.
    """
    times: dict[str, datetime] = {}
    for number, row in enumerate(read_table(path, ("student", "submitted"))[1], 2):
        student = as_given(normalize("NFC", row["student"].strip()))
        try:
            time = datetime.fromisoformat(row["submitted"].strip())
        except ValueError:
            raise LabError(f"{path}, line {number}: {row['submitted']!r} is no time") from None
        if student in times:
            raise LabError(f"{path}, line {number}: {student} is there twice")
        local = time.astimezone() if time.tzinfo is not None else time
        times[student] = local.replace(tzinfo=None)
    return times
