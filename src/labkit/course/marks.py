"""Written answers: collected by question for a person to mark, their points merged back.

For each question there is a page to read (`written/<question>.html`: rubric first, then every
answer under a number) and a table to fill in (`written/<question>.csv`: a column for each row of
the rubric, a comment). The page holds no names; with `blind` the table holds codes in their place,
which a random secret of the class makes (`blind.key` beside the results), so that a marker who has
the `written` folder and a list of names learns nothing. A run of `labkit grade` keeps what is
filled in.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.course.record import Record
from labkit.course.tables import Row, as_given, read_table, write_for_people
from labkit.grading.rubric import RubricRow
from labkit.reader.lab import LabError, Written

SECRET = "blind.key"
CODE = "code-"


@dataclass(frozen=True)
class Mark:
    """What a person gave an answer; `points` is None until then."""

    number: int  # of the answer on the page
    student: str
    points: float | None
    comment: str
    version: str  # a fingerprint of the answer that was marked
    rows: tuple[tuple[str, float | None], ...] = ()  # by row of the rubric, None where empty

    def stale(self, answer: str) -> bool:
        """Whether the answer is another than the one marked."""
        return self.points is not None and self.version != fingerprint(answer)

    def has_words(self) -> bool:
        """Whether a person has written anything into the row."""
        rows = any(points is not None for _, points in self.rows)
        return self.points is not None or bool(self.comment) or rows

    def given(self) -> str:
        """Each row's points, as the student reads them."""
        return "; ".join(f"{name}: {points:g}" for name, points in self.rows if points is not None)

    def words(self) -> str:
        """What the student reads about it: each row's points, then the comment."""
        return "\n".join(filter(None, [self.given(), self.comment]))


def fingerprint(answer: str) -> str:
    """A short fingerprint of an answer, blank space aside."""
    return hashlib.sha256(" ".join(answer.split()).encode()).hexdigest()[:12]


def coder(out: Path, blind: bool) -> Callable[[str], str] | None:
    """What turns a student into a code; None where no table of the class was ever blind.

    With `blind` the class's secret is made where there is none yet.
    """
    path = out / SECRET
    if not path.is_file():
        if not blind:
            return None
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32) + "\n", "ascii")
    key = path.read_bytes()
    return lambda student: CODE + hmac.digest(key, student.encode(), "sha256").hex()[:10]


@dataclass(frozen=True)
class Sheet:
    """A table of marks: of which question, with which columns, and who is called what in it."""

    path: Path
    question: Written
    rows: Sequence[RubricRow] = ()
    separator: str = ","
    code: Callable[[str], str] | None = None  # of a student, where marking is or was blind
    blind: bool = False

    @property
    def columns(self) -> list[str]:
        """The header of the table."""
        rows = [row.column for row in self.rows]
        return ["answer", "student", *rows, "points", "of", "comment", "version"]


def read_marks(sheet: Sheet, students: Iterable[str]) -> tuple[dict[str, Mark], list[str]]:
    """Read a table of marks by student, and what was odd; empty where there is no table yet.

    Args:
        sheet: the table; rows of the rubric that it lacks are not filled in.
        students: whom a code may stand for.

    Raises:
        LabError: points that are no number, below 0 or above what the row or the question gives;
            names the row. Or a student twice, or a file that is not in UTF-8.
    """
    if not sheet.path.is_file():
        return {}, []
    names = {sheet.code(student): student for student in students} if sheet.code else {}
    marks, odd = {}, []
    _, table = read_table(sheet.path, ("student", "points"))
    for line, row in enumerate(table, 2):
        given = as_given(row["student"])
        mark, words = _mark(sheet, row, names.get(given, given), f"{sheet.path}, line {line}")
        if mark.student in marks:
            raise LabError(f"{sheet.path}, line {line}: {given} is there twice")
        marks[mark.student] = mark
        odd += [f"{sheet.question.name}: {given}: {words}"] if words else []
    return marks, odd


def _mark(sheet: Sheet, row: Row, student: str, where: str) -> tuple[Mark, str]:
    """A row's mark. The rubric's rows decide where they are filled in, else the points do."""
    where = f"{where} ({as_given(row['student'])})"
    points = _points(row["points"], where, sheet.question.points)
    rows = [
        (r.name, _points(row.get(r.column, ""), f"{where}, {r.name}", r.points)) for r in sheet.rows
    ]
    given = [earned for _, earned in rows if earned is not None]
    words = ""
    if given and len(given) < len(rows):
        counts = "the answer counts as unmarked" if points is None else f"{points:g} points count"
        words = f"{len(given)} of {len(rows)} rows are marked, {counts}"
    elif given:
        together = round(sum(given), 6)
        if points not in (None, together):
            words = f"the rows add up to {together:g}, not to the {points:g} beside them"
        points = together
    number = row.get("answer", "")
    mark = Mark(
        int(number) if number.isdecimal() else 0,
        student,
        points,
        as_given(row.get("comment", "")),
        row.get("version", ""),
        tuple(rows),
    )
    return mark, words


def _points(text: str, where: str, most: float) -> float | None:
    if not text.strip():
        return None
    try:
        points = float(text.replace(",", "."))
    except ValueError:
        raise LabError(f"{where}: {text!r} is no number of points") from None
    if not 0 <= points <= most:
        raise LabError(f"{where}: {points:g} is not between 0 and {most:g}")
    return points


def collect_answers(sheet: Sheet, records: Iterable[Record]) -> tuple[dict[str, Mark], list[str]]:
    """Bring a table of marks up to date and write it; return the marks and what was odd.

    Answers stand in an order that tells nothing of their writers' names. An answer that changed
    after it was marked keeps its points, and is named.
    """
    question = sheet.question
    records = list(records)
    answered = [record for record in records if question.name in record.written]
    before, problems = read_marks(sheet, [record.student for record in records])
    marks: dict[str, Mark] = {}
    # An order that a list of names gives away would tell who wrote what.
    hidden = sheet.code or fingerprint
    for number, record in enumerate(
        sorted(answered, key=lambda r: hidden(r.student + question.name)), 1
    ):
        answer, old = record.written[question.name], before.get(record.student)
        version = fingerprint(answer)
        if old is None:
            marks[record.student] = Mark(number, record.student, None, "", version)
            continue
        if old.points is not None:
            version = old.version or version
        mark = Mark(number, record.student, old.points, old.comment, version, old.rows)
        marks[record.student] = mark
        if mark.stale(answer):
            problems.append(
                f"{question.name}: {record.student} changed the answer after it was marked; "
                "mark it again and empty its `version` cell"
            )
    gone = [m for m in before.values() if m.student not in marks and m.has_words()]
    problems += [f"{question.name}: marks of {m.student}, who has no answer here" for m in gone]
    _write(sheet, [*marks.values(), *gone])
    return marks, problems


def _shown(sheet: Sheet, student: str) -> str:
    if sheet.code is None or not sheet.blind or student.startswith(CODE):
        return student
    return sheet.code(student)


def _write(sheet: Sheet, marks: Iterable[Mark]) -> None:
    table: list[list[object]] = [list(sheet.columns)]
    for mark in marks:
        rows = dict(mark.rows)
        earned = [rows.get(row.name) for row in sheet.rows]
        table.append(
            [
                mark.number,
                _shown(sheet, mark.student),
                *("" if points is None else float(points) for points in earned),
                "" if mark.points is None else float(mark.points),
                float(sheet.question.points),
                mark.comment,
                mark.version,
            ]
        )
    write_for_people(sheet.path, table, sheet.separator)
