"""Whose a file is, as its place in what an instructor downloaded says.

    Canvas       lovelaceada_LATE_1234_56789_lab.ipynb   (an attempt number may end the name)
    Moodle       Ada Lovelace_1234_assignsubmission_file_/lab.ipynb, or flat, without the folder
    Blackboard   Lab 1_alovelace_attempt_2026-10-12-20-30-45_lab.ipynb
    Brightspace  1234-5678 - Ada Lovelace - Oct 12, 2026 930 PM/lab.ipynb, or flat
    Gradescope   submission_5678/lab.ipynb
    nbgrader     submitted/ada/<assignment>/lab.ipynb
    by hand      ada.ipynb, ada.zip or ada/anything

The outermost name decides over all that lies in it: what is in there was named by the student,
and who calls a file after somebody else hands in for nobody else.

Read for this: Moodle's `mod/assign/classes/downloader.php`, commit 2a6fd31 (folders since 3.1, flat
names the older form); for Blackboard's "Assignment File Download" the readme of
kwurst/bb-file-cleanup, which lists assignment, user name, "attempt", time and file; for
Brightspace scripts that sort its download, since its help does not say what the name is made of.
What Brightspace's first number counts is not said either, so it is part of the student's name
here: where it is the student's own, it keeps two people of one name apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

CANVAS = re.compile(r"(?P<student>[^_]+)(?P<late>_LATE)?_(?P<id>\d+)_\d+_(?P<name>.+)")
CANVAS_ATTEMPT = re.compile(r"-(\d{1,4})\.\w{1,8}$")
MOODLE = re.compile(r"(?P<student>.+)_(?P<id>\d+)_assignsubmission_(?:file|onlinetext)(?:_.*)?")
BLACKBOARD = re.compile(r"(?P<head>.+_.+)_attempt_(?P<time>\d{4}(?:-\d\d){5})(?:_.+|\.\w+)")
BRIGHTSPACE = re.compile(r"(?P<id>\d+)-\d+")  # what begins its names, before a " - "
YEAR = re.compile(r"\b\d{4}\b")
BRIGHTSPACE_TIME = re.compile(r"([A-Z][a-z]{2})[a-z]* (\d+), (\d{4}) (\d{1,2}):?(\d\d) ([AP])M")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
GRADESCOPE = re.compile(r"submission_\d+")
WRITTEN_BY_LABKIT = (".submit", ".save")  # before the `.json` of such a file's name
# Of a name; in a zip it may have 65,535 characters, in which these expressions would get lost.
LONGEST = 400
# What may stand behind the lab's own name in that of a copy.
COPY = re.compile(r"([-_ ]*(restored|solved|copy|final|submit|save|\(\d+\)|\d{1,3}(?!\d)))*")
ANYBODYS = ("submission", "notebook", "lab", "main")  # names of files that name nobody


@dataclass(frozen=True)
class Owner:
    """Whose a file is; `system` is the course system that says so, "" where a person did."""

    student: str
    system: str = ""
    attempt: int = 0
    submitted: datetime | None = None  # without a time zone, where the name says it
    marked_late: bool = False


def owner_of(place: PurePosixPath, of_class: str, slug: str, assignment: str = "") -> Owner:
    """Say whose the file at `place` is.

    Args:
        place: folders and file name below the folder or zip of the class.
        of_class: the name of that folder or zip.
        slug: of the lab, which a file's own name may be.
        assignment: what the names of a Blackboard download begin with (`common_beginning`).
    """
    first = place.parts[0]
    if is_nbgraders(place):
        return Owner(place.parts[1], "nbgrader")
    found = of_course_system(first, assignment)
    if found is not None:
        return found
    if len(place.parts) > 1:
        return Owner(first[:-4] if is_zip(first) else first)
    return Owner(of_class if names_nobody(first, slug) and of_class else stem(first))


def is_zip(name: str) -> bool:
    """Whether a name is that of a zip."""
    return name.lower().endswith(".zip")


def is_nbgraders(place: PurePosixPath) -> bool:
    """Whether nbgrader collected the file: under `submitted`, student, assignment."""
    return place.parts[0] == "submitted" and len(place.parts) >= 4


def names_nobody(name: str, slug: str) -> bool:
    """Whether a file's name is the lab's own, or as good as none."""
    short = stem(name)
    if len(short) <= LONGEST and short.startswith(slug):
        return COPY.fullmatch(short.removeprefix(slug)) is not None
    return short.lower() in ANYBODYS


def stem(name: str) -> str:
    """A file's name without its endings."""
    short = PurePosixPath(name).stem
    for ending in WRITTEN_BY_LABKIT:
        short = short.removesuffix(ending)
    return short


def of_course_system(name: str, assignment: str = "") -> Owner | None:
    """Read a name that a course system made; None where a person did."""
    if GRADESCOPE.fullmatch(name):
        return Owner(name, "gradescope")
    short = name if len(name) <= LONGEST else ""
    if found := MOODLE.fullmatch(short):
        return Owner(f"{found['student']}_{found['id']}", "moodle")
    if found := BLACKBOARD.fullmatch(short):
        user = found["head"].removeprefix(assignment) if assignment else ""
        user = user or found["head"].rpartition("_")[2]
        return Owner(user, "blackboard", submitted=_time(found["time"], "%Y-%m-%d-%H-%M-%S"))
    numbers, *parts = short.split(" - ")
    if (found := BRIGHTSPACE.fullmatch(numbers)) and (at := _first_with_year(parts)):
        student = f"{' '.join(parts[:at])}_{found['id']}"
        return Owner(student, "brightspace", submitted=_brightspace_time(parts[at]))
    if found := CANVAS.fullmatch(name):
        attempt = CANVAS_ATTEMPT.search(name)
        return Owner(
            f"{found['student']}_{found['id']}",
            "canvas",
            attempt=int(attempt[1]) if attempt else 0,
            marked_late=found["late"] is not None,
        )
    return None


def common_beginning(names: Iterable[str]) -> str:
    """What the names of a Blackboard download have in common: the assignment and a `_`.

    User names may hold a `_` as assignments may, so that one name alone can be cut in two ways.
    "" where fewer than two users are there: the last `_` then ends the assignment.
    """
    short = (name for name in names if len(name) <= LONGEST)
    heads = {found["head"] for name in short if (found := BLACKBOARD.fullmatch(name))}
    if len(heads) < 2:
        return ""
    first, last = min(heads), max(heads)  # what these share, all share
    same = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]),
                len(first))  # fmt: skip
    return first[: first.rfind("_", 0, same) + 1]


def _time(text: str, form: str) -> datetime | None:
    try:
        return datetime.strptime(text, form)
    except ValueError:  # the 0th of month 0
        return None


def _first_with_year(parts: list[str]) -> int:
    """Where in Brightspace's name the time stands, behind the student's; 0 where there is none."""
    return next((at for at, part in enumerate(parts) if at and YEAR.search(part)), 0)


def _brightspace_time(text: str) -> datetime | None:
    """`Oct 12, 2026 930 PM`: hour and minute without a separator; None in another language."""
    found = BRIGHTSPACE_TIME.fullmatch(text)
    if found is None or found[1] not in MONTHS:
        return None
    hour = int(found[4]) % 12 + (12 if found[6] == "P" else 0)
    return _time(
        f"{found[3]}-{MONTHS.index(found[1]) + 1}-{found[2]} {hour}:{found[5]}", "%Y-%m-%d %H:%M"
    )
