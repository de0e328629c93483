"""The people of a course, from the export of a course system's gradebook.

Its first columns say which system it is from:

    Canvas       Student, ID, SIS User ID, SIS Login ID, Section           (gradebook export)
    Moodle       Identifier, Full name, …, Grade, Maximum Grade, …         (grading worksheet)
    Blackboard   Last Name, First Name, Username, Student ID, …            (Work Offline, Download)
    Brightspace  OrgDefinedId, Username, …, End-of-Line Indicator          (Enter Grades, Export)

Moodle writes its columns in the language of who downloads them; English ones are read.
Sources: `gradebook_importer.rb` of canvas-lms; Moodle's
`mod/assign/feedback/offline/importgradeslib.php`, commit 452e36f (a participant's number ends the
identifier; identifier, grade and its time are what it asks for); "Uploading or Downloading Grade
Center Items for Working Offline" in Blackboard's help for the Grade Center, library.blackboard.com
(the user name identifies a student, a number behind the title a column); "Importing grades" in
Brightspace's, article 3538 of its community as of 2025 (user name or OrgDefinedId), whose export
writes a `#` before both.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from unicodedata import normalize

from labkit.course.tables import Row, as_given, read_table
from labkit.reader.lab import LabError

CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
NUMBERED = re.compile(r"(?P<name>.+)_(?P<number>\d+)")  # as hand-ins of course systems are named
SYSTEMS = (  # by the columns that tell it
    ("brightspace", ("End-of-Line Indicator",)),
    ("brightspace", ("OrgDefinedId",)),
    ("moodle", ("Identifier", "Full name")),
    ("canvas", ("Student", "ID")),
    ("blackboard", ("Last Name", "First Name", "Username")),
)


@dataclass(frozen=True)
class Person:
    """Somebody of a course: `number` is what ends the names of their hand-ins, or ""."""

    last: str
    first: str
    login: str
    number: str = ""
    row: Row = field(default_factory=dict)
    names: frozenset[str] = frozenset()  # all that may name them, as `folded` has it


@dataclass(frozen=True)
class Roster:
    """The people of a course; `system` is "" where there is no roster."""

    system: str = ""
    header: tuple[str, ...] = ()
    people: tuple[Person, ...] = ()

    def person(self, student: str) -> Person | None:
        """Who a student is whose hand-in is named so; None where nobody or more than one can be."""
        people = self.candidates(student)
        return people[0] if len(people) == 1 else None

    def candidates(self, student: str) -> list[Person]:
        """All that a student can be whose hand-in is named so."""
        found = NUMBERED.fullmatch(student)
        if found and found["number"] in self._by_number:
            return [self._by_number[found["number"]]]
        candidates = [student]
        if found and self.system == "brightspace":  # the number is none of the roster's
            candidates += [found["name"], found["name"].partition(" ")[0]]
        named = [self._by_name.get(folded(name), []) for name in candidates]
        return next((people for people in named if len(people) == 1), next(filter(None, named), []))

    @cached_property
    def _by_number(self) -> dict[str, Person]:
        return {person.number: person for person in self.people if person.number}

    @cached_property
    def _by_name(self) -> dict[str, list[Person]]:
        found: dict[str, list[Person]] = defaultdict(list)
        for person in self.people:
            for name in person.names:
                found[name].append(person)
        return found


def folded(name: str) -> str:
    """A name as two are compared: accents joined to their letters, case and outer space aside."""
    return normalize("NFC", name.strip()).casefold()


def read_roster(path: Path) -> Roster:
    """Read the export of a course system.

    Raises:
        LabError: no such file, or no such export; the message says what columns one has.
    """
    header, rows = read_table(path)
    for system, columns in SYSTEMS:
        if set(columns) <= set(header):
            people = [_person(system, {k: as_given(v) for k, v in row.items()}) for row in rows]
            return Roster(system, tuple(header), tuple(p for p in people if p is not None))
    known = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in SYSTEMS)
    raise LabError(f"{path} is no gradebook that is known by its columns ({known})")


def _person(system: str, row: Row) -> Person | None:
    if system == "canvas":
        if not row["Student"] or "Points Possible" in row["Student"]:
            return None
        last, _, first = row["Student"].partition(", ")
        login = row.get("SIS Login ID") or row.get("SIS User ID") or row["ID"]
        keys = [row.get(key, "") for key in CANVAS[:4]]
        return _made(last, first, login, row["ID"], row, keys)
    if system == "moodle":
        ending = re.search(r"\d+$", row["Identifier"])
        keys = [row.get(k, "") for k in ("Identifier", "Username", "Email address", "ID number")]
        login = next(filter(None, keys[1:]), row["Identifier"])
        return _made(row["Full name"], "", login, ending[0] if ending else "", row, keys)
    keys = [row.get(k, "").removeprefix("#")
            for k in ("Username", "OrgDefinedId", "Student ID", "Email")]  # fmt: skip
    login = next(filter(None, keys), "")
    return _made(row.get("Last Name", ""), row.get("First Name", ""), login, "", row, keys)


def _made(
    last: str, first: str, login: str, number: str, row: Row, keys: Iterable[str]
) -> Person | None:
    whole = [f"{last}, {first}", f"{first} {last}"] if first else [last]
    names = frozenset(folded(name) for name in [*keys, *whole] if name.strip(" ,"))
    return Person(last, first, login, number, row, names) if names else None
