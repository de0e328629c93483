"""The tables that course systems import, each with the columns that its system asks for.

    canvas.csv       Student, ID, SIS User ID, SIS Login ID, Section, <column>
    moodle.csv       Identifier, Full name, Grade, Maximum Grade, Last modified (grade)
    blackboard.csv   Last Name, First Name, Username, <column>
    brightspace.csv  OrgDefinedId, Username, <column> Points Grade, End-of-Line Indicator

A table is written for the system that the roster is from; without a roster, for the one whose
names the hand-ins bear, and for hand-ins that a person named, for each that knows a user name.
With a roster the column keeps the name, and with it the number, that it has in the export; a
Moodle worksheet comes back filled in, with the times by which Moodle sees what changed since.

Sources beside those of `labkit.course.roster`: Moodle's importer leaves out, without a word, a
grade above the assignment's maximum (`mod/assign/feedback/offline/locallib.php`, commit 0497556),
so such a grade is cut here and said. Blackboard wants every cell of a CSV in quotes, and makes a
new column, of text, for a name without its number. Brightspace wants "Points Grade" behind the name
of the item.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.course.roster import CANVAS, NUMBERED, Person, Roster
from labkit.course.tables import write_table

MOODLE = ("Identifier", "Full name", "Grade", "Maximum Grade", "Last modified (grade)")
SHOWN = 20  # names in one sentence
BY_LOGIN = ("canvas", "blackboard", "brightspace")  # that know a user name
# What a system writes behind the name of a gradebook's column.
NUMBERS = re.compile(r"( \(\d+\)| \[Total Pts: .*\]( \|\d+)?| Points Grade( <.*>)?)$")

Table = list[list[str]]


@dataclass(frozen=True)
class Line:
    """What one student gets, and who it is."""

    student: str
    points: float
    system: str  # that named the hand-in, or ""
    person: Person | None


def write_for_systems(
    out: Path, lines: Sequence[Line], roster: Roster, column: str, possible: float
) -> list[str]:
    """Write the tables under `out`; return what an instructor has to know about them."""
    problems = []
    makers = {"canvas": _canvas, "moodle": _moodle, "blackboard": _blackboard,
              "brightspace": _brightspace}  # fmt: skip
    problems += _without_place(lines, roster)
    if not roster.system and any(line.system == "brightspace" for line in lines):
        problems.append(
            "no table for Brightspace: its names of files hold no user names; export its gradebook "
            "and name it as the `roster` in course.toml"
        )
    title = _column_in(roster.header, column)
    for system, make in makers.items():
        path = out / f"{system}.csv"
        mine = [line for line in lines if system in _systems(line, roster)]
        if not mine:
            path.unlink(missing_ok=True)  # of an earlier run, with another roster
            continue
        table, said = make(mine, roster, title, possible)
        problems += said
        write_table(path, table, quote_all=system == "blackboard")
    return problems


def _without_place(lines: Sequence[Line], roster: Roster) -> list[str]:
    """Say who of the roster is missing, and who is in no table for being none or two of it."""
    lost = [line.student for line in lines if line.person is None] if roster.people else []
    doubled = [student for student in lost if roster.candidates(student)]
    strangers = [student for student in lost if student not in doubled]
    said = []
    absent = [f"{p.first} {p.last}".strip() for p in _absent(lines, roster)]
    if absent:
        listed = ", ".join(absent[:SHOWN]) + (", …" if len(absent) > SHOWN else "")
        said.append(
            f"{len(absent)} of {len(roster.people)} on the roster handed in nothing: {listed}"
        )
    if strangers:
        said.append(f"not on the roster, and in no table for it: {', '.join(strangers)}")
    if doubled:
        said.append(
            f"more than one on the roster is called so: {', '.join(doubled)}; in no table, enter "
            "their points by hand"
        )
    return said


def _systems(line: Line, roster: Roster) -> Sequence[str]:
    if roster.system:
        return (roster.system,) if line.person else ()
    if line.system == "brightspace":
        return ()  # the names of its files hold no user name
    return (line.system,) if line.system in ("canvas", "moodle", "blackboard") else BY_LOGIN


def _column_in(header: Sequence[str], column: str) -> str:
    """The gradebook's own name for a column: with the number that its system knows it by."""
    return next((name for name in header if NUMBERS.sub("", name) == column), column)


def _absent(lines: Sequence[Line], roster: Roster) -> list[Person]:
    there = [line.person for line in lines]
    return [person for person in roster.people if person not in there]


def _canvas(
    lines: Sequence[Line], roster: Roster, column: str, possible: float
) -> tuple[Table, list[str]]:
    table = [[*CANVAS, column], ["    Points Possible", "", "", "", "", f"{possible:g}"]]
    for line in lines:
        numbered = NUMBERED.fullmatch(line.student) if line.system == "canvas" else None
        if line.person:
            known = [line.person.row.get(key, "") for key in CANVAS]
        elif numbered:
            known = [numbered["name"], numbered["number"], "", "", ""]
        else:
            known = [line.student, "", "", line.student, ""]
        table.append([*known, f"{line.points:g}"])
    table += [[*(p.row.get(k, "") for k in CANVAS), ""] for p in _absent(lines, roster)]
    return table, []


def _moodle(
    lines: Sequence[Line], roster: Roster, column: str, possible: float
) -> tuple[Table, list[str]]:
    header = list(roster.header) or list(MOODLE)
    table, said = [header], []
    for line in lines:
        name, _, number = line.student.rpartition("_")
        row = {"Identifier": f"Participant {number}", "Full name": name,
               "Maximum Grade": f"{possible:g}"}  # fmt: skip
        row |= line.person.row if line.person else {}
        most = _number(row.get("Maximum Grade", ""), possible)
        row["Grade"] = f"{min(line.points, most):g}"
        if line.points > most:
            said.append(f"moodle.csv: {line.student} has {line.points:g}, more than Moodle's "
                        f"maximum of {most:g}, and gets that")  # fmt: skip
        table.append([row.get(key, "") for key in header])
    table += [[person.row.get(key, "") for key in header] for person in _absent(lines, roster)]
    if any(_number(p.row.get("Maximum Grade", ""), possible) != possible for p in roster.people):
        said.append(f"moodle.csv: the assignment's maximum grade is not the lab's {possible:g}")
    return table, said


def _number(text: str, default: float) -> float:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return default


def _blackboard(
    lines: Sequence[Line], roster: Roster, column: str, possible: float
) -> tuple[Table, list[str]]:
    table = [["Last Name", "First Name", "Username", column]]
    for line in lines:
        last, first = (line.person.last, line.person.first) if line.person else ("", "")
        user = line.person.row["Username"] if line.person else line.student
        table.append([last, first, user, f"{line.points:g}"])
    return table, []


def _brightspace(
    lines: Sequence[Line], roster: Roster, column: str, possible: float
) -> tuple[Table, list[str]]:
    title = column if "Points Grade" in column else f"{column} Points Grade"
    table = [["OrgDefinedId", "Username", title, "End-of-Line Indicator"]]
    for line in lines:
        row = line.person.row if line.person else {"Username": line.student}
        names = [row.get(key, "").removeprefix("#") for key in ("OrgDefinedId", "Username")]
        table.append([*(name and f"#{name}" for name in names), f"{line.points:g}", "#"])
    return table, []
