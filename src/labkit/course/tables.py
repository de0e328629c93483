"""CSV tables that a spreadsheet opens as text: names and answers in them come from students."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for a formula's beginning


def write_table(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a table so that an interrupt leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(path.name + ".part")
    with waiting.open("w", encoding="utf8", newline="") as file:
        csv.writer(file).writerows([[plain(str(cell)) for cell in row] for row in rows])
    waiting.replace(path)


def plain(cell: str) -> str:
    """Keep a spreadsheet from taking a text for a formula."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def as_given(cell: str) -> str:
    """Undo `plain`."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell
