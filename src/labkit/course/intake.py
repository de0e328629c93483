"""From what an instructor downloads to one hand-in a student and attempt.

Folders, single files and zips are searched for notebooks (`.ipynb`) and submit files (`.json`);
`labkit.course.names` says whose each is. A zip in a folder, or in a zip, is a student's own and is
read like a folder. Where a student sent several files at a time, the one that holds most of the
lab's tasks is graded (`labkit.course.contents`), whatever it is called.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path, PurePosixPath

from labkit.course.archives import UNREADABLE, opened, pieces
from labkit.course.contents import Budget, tasks_in
from labkit.course.files import File, Source, readable, sources_of
from labkit.course.names import (
    Owner,
    common_beginning,
    names_nobody,
    of_course_system,
    owner_of,
)
from labkit.reader.lab import Lab, LabError
from labkit.reader.outputs import MAX_BYTES

SUFFIXES = (".ipynb", ".json")
MAX_FOLDER = 100  # bytes of a folder's name; file systems allow 255


@dataclass(frozen=True)
class HandIn:
    """One file of one student.

    `members` lead to it in the zip at `path`: none for a file of its own, one for a file of the
    zip, two for one of a zip in it.
    """

    student: str
    path: Path
    members: tuple[str, ...] = ()
    attempt: int = 0
    submitted: datetime | None = None  # without a time zone, as name, archive or disk says it
    marked_late: bool = False
    system: str = ""  # the course system whose way of naming says whose it is
    others: tuple[str, ...] = ()  # names of what the student sent with it, not graded

    @property
    def fits(self) -> bool:
        """Whether its name ends as that of a notebook or submit file."""
        return PurePosixPath(self.file_name).suffix in SUFFIXES

    @property
    def name(self) -> str:
        """The file as a message should name it."""
        inside = ": ".join(self.members)
        return readable(f"{self.path.name}: {inside}" if inside else str(self.path))

    @property
    def file_name(self) -> str:
        """The name that the student gave the file, as the student may read it."""
        last = self.members[-1] if self.members else self.path.name
        return readable(PurePosixPath(last.replace("\\", "/")).name)

    def read(self) -> Iterator[bytes]:
        """The file's bytes, a little at a time; those beyond MAX_BYTES are left out.

        Raises:
            UNREADABLE: it cannot be read, is damaged, encrypted or refused.
        """
        left = MAX_BYTES
        with opened(self.path, self.members) as file:
            for piece in pieces(file):
                yield piece[:left]
                left -= len(piece)
                if left <= 0:
                    return

    def digest(self) -> str:
        """A fingerprint of the file's bytes, or of why they cannot be read."""
        kept = hashlib.sha256()
        try:
            for piece in self.read():
                kept.update(piece)
        except UNREADABLE as error:
            kept.update(str(error).encode())
        return kept.hexdigest()


def find_handins(
    paths: list[Path], lab: Lab, results: Path | None = None
) -> tuple[list[HandIn], list[str]]:
    """Find every hand-in under `paths`; return them by student and attempt, and what was odd.

    What lies in `results`, where an earlier run wrote, is none.

    Raises:
        LabError: a path that is not there, nothing found, or files of which it cannot be said
            whose they are.
    """
    problems: list[str] = []
    sources = sources_of(paths, problems, results)
    _refuse_doubt(sources, lab)
    found = [handin for source in sources for handin in _handins(source, lab, problems)]
    if not found:
        listed = ", ".join(map(str, paths))
        raise LabError(f"no notebook (.ipynb) and no submit file (.json) in {listed}")
    return _numbered(found), problems


def _refuse_doubt(sources: Sequence[Source], lab: Lab) -> None:
    """Never guess whether a folder among several is a student's or a part of the class.

    Raises:
        LabError: files that a person named, in more than one folder or zip.
    """
    by_hand = [(source, _named_by_hand(source, lab)) for source in sources]
    doubted = [file for source, named in by_hand if source.whole for file in named.values()]
    whole = [source for source, named in by_hand if source.whole and named]
    again = Counter(student for _, named in by_hand for student in named)
    twice = [student for student, count in again.items() if count > 1]
    if len(whole) < 2 and not twice:
        return
    if twice:
        doubted = [named[twice[0]] for _, named in by_hand if twice[0] in named]
    shown = " and ".join(str(file.path / "/".join(file.members)) for file in doubted[:2])
    raise LabError(
        f"whose are {shown}: is it the file's name that says so, or that of its folder? Give the "
        "folder above (each folder, zip or file in it is a student's), or one argument at a time "
        "(each file in it is named after its student); runs with one --out add up"
    )


def _named_by_hand(source: Source, lab: Lab) -> dict[str, File]:
    """By student, the hand-ins at the top of a class that only their own names give to somebody."""
    return {
        owner_of(file.place, source.name, lab.slug).student: file
        for file in source.files
        if len(file.place.parts) == 1
        and file.place.suffix in SUFFIXES
        and not of_course_system(file.place.name)
        and not (source.whole and names_nobody(file.place.name, lab.slug))
    }


def _handins(source: Source, lab: Lab, problems: list[str]) -> Iterator[HandIn]:
    """The hand-ins of a class, one for each student and attempt."""
    beginning = common_beginning(file.place.parts[0] for file in source.files)
    by_student: dict[str, list[tuple[Owner, File]]] = defaultdict(list)
    for file in source.files:
        owner = owner_of(file.place, source.name, lab.slug, beginning)
        by_student[owner.student].append((owner, file))
    strays: list[str] = []
    for student, owned in by_student.items():
        everything = [_handin(owner, file) for owner, file in owned]
        handins = [handin for handin in everything if not _is_receipt(handin)] or everything
        _name_a_section(student, owned, problems)
        fit = [handin for handin in handins if handin.fits]
        a_students = bool(handins[0].system) or any(len(f.place.parts) > 1 for _, f in owned)
        if not fit and not a_students:  # a file of a person's naming: perhaps nobody's
            strays += [handin.name for handin in handins]
            continue
        strays += [handin.name for handin in handins if fit and not handin.fits]
        yield from _one_each(fit or handins, handins, lab)
    if strays:
        shown = ", ".join(strays[:5]) + (", …" if len(strays) > 5 else "")
        problems.append(f"left out, neither notebook nor submit file: {shown} ({len(strays)})")


def _handin(owner: Owner, file: File) -> HandIn:
    return HandIn(
        owner.student,
        file.path,
        file.members,
        owner.attempt,
        owner.submitted or file.time,
        owner.marked_late,
        owner.system,
    )


def _name_a_section(student: str, owned: Iterable[tuple[Owner, File]], problems: list[str]) -> None:
    """Say it where what counts as a student's folder looks like a part of the class."""
    inside = [f.place.parts[1] for o, f in owned if not o.system and len(f.place.parts) > 1]
    if any(of_course_system(name) or name == "submitted" for name in inside):
        problems.append(
            f"in {student} lie names that a course system makes: where {student} is no student but "
            "a part of the class, unpack it and give it by itself"
        )


def _is_receipt(handin: HandIn) -> bool:
    """Whether a course system wrote the file: Blackboard's page about each attempt."""
    return handin.system == "blackboard" and handin.file_name.endswith(".txt")


def _one_each(fit: list[HandIn], everything: list[HandIn], lab: Lab) -> Iterator[HandIn]:
    """Of a student's files the one that holds most of the lab, for each attempt."""
    if len(fit) == 1:
        yield replace(fit[0], others=_names(h for h in everything if h is not fit[0]))
        return
    budget = Budget()
    held = {handin: tasks_in(handin.path, handin.members, lab, budget) for handin in fit}
    works = [handin for handin in fit if held[handin]]

    def weight(handin: HandIn) -> tuple[int, datetime, str]:
        return held[handin], handin.submitted or datetime.min, handin.name

    if not works:
        best = max(fit, key=weight)
        yield replace(best, others=_names(h for h in everything if h is not best))
    attempts: dict[object, list[HandIn]] = defaultdict(list)
    for handin in works:
        # A course system counts attempts, or gives them the time at which they came.
        at = handin.submitted if handin.system in ("blackboard", "brightspace") else None
        attempts[handin.attempt, at].append(handin)
    for group in attempts.values():
        best = max(group, key=weight)
        yield replace(best, others=_names(handin for handin in group if handin is not best))


def _names(handins: Iterable[HandIn]) -> tuple[str, ...]:
    return tuple(handin.file_name for handin in handins)


def _numbered(found: list[HandIn]) -> list[HandIn]:
    """Order each student's hand-ins by attempt and time, and count them from 1."""
    by_student: dict[str, list[HandIn]] = defaultdict(list)
    for handin in found:
        by_student[handin.student].append(handin)
    ordered = []
    for student in sorted(by_student):
        attempts = sorted(
            by_student[student], key=lambda h: (h.attempt, h.submitted or datetime.min, h.name)
        )
        ordered += [replace(h, attempt=number) for number, h in enumerate(attempts, 1)]
    return ordered


def folder_name(student: str) -> str:
    """A student's name as a folder is called: no separator, no leading dot, not empty."""
    plain = re.sub(r"[^\w@+.-]+", "-", student).strip(".-") or "student"
    return plain.encode()[:MAX_FOLDER].decode(errors="ignore")
