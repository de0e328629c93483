"""The rows of a lab's `rubric.md`: what a marker gives points for, one by one.

A rubric holds a table for each written question, in the order of `lab.toml`, whose first column
is headed `points`; a row begins with what it asks for in bold: `| 1.5 | **The cause.** … |`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.reader.lab import Lab, LabError

HEAD = re.compile(r"^\|\s*points\s*\|", re.IGNORECASE)
ROW = re.compile(r"^\|\s*(?P<points>\d+(?:\.\d+)?)\s*\|\s*\*\*(?P<name>.+?)\*\*")


@dataclass(frozen=True)
class RubricRow:
    """One row: what it is called, and the most it gives."""

    name: str
    points: float

    @property
    def column(self) -> str:
        """The heading of its column in a table of marks."""
        return f"{self.name} /{self.points:g}"


def rubric_rows(text: str, lab: Lab) -> dict[str, tuple[RubricRow, ...]]:
    """Read the rows of each written question; none where the rubric has no such tables.

    Raises:
        LabError: a question's rows do not add up to its points, or two are called the same.
    """
    tables: list[list[RubricRow]] = []
    for line in text.splitlines():
        row = ROW.match(line)
        if HEAD.match(line):
            tables.append([])
        elif row and tables:
            tables[-1].append(RubricRow(row["name"].strip(" .:"), float(row["points"])))
    tables = [table for table in tables if table]
    if len(tables) != len(lab.written):
        return {question.name: () for question in lab.written}
    for question, table in zip(lab.written, tables, strict=True):
        total = sum(row.points for row in table)
        if abs(total - question.points) > 1e-9:
            raise LabError(
                f"rubric.md: the rows of {question.name} give {total:g} points, the question "
                f"{question.points:g}"
            )
        if len({row.name for row in table}) < len(table):
            raise LabError(f"rubric.md: two rows of {question.name} are called the same")
    return {q.name: tuple(rows) for q, rows in zip(lab.written, tables, strict=True)}
