"""CSV tables: for a person with a spreadsheet, and for a program.

Names and answers in them come from students, so no cell may begin as a spreadsheet's formula does.
A table for a person begins with a byte order mark, by which Excel knows UTF-8, and takes the
separator of the course: where Excel parts columns by `;` it writes numbers with a comma. A table
for a program has neither. Whatever is read may be as a spreadsheet saved it.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from labkit.reader.lab import LabError

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for a formula's beginning
HARMLESS = re.compile(r"[-+]|[-+]?\d+([.,]\d+)?")
SEPARATORS = (",", ";", "\t")

Row = dict[str, str]


def write_table(path: Path, rows: Iterable[Sequence[object]], *, quote_all: bool = False) -> None:
    """Write a table for a program, so that an interrupt leaves the old one or the new one.

    `quote_all` puts quotes around every cell, not only where they are needed.
    """
    _write(path, rows, ",", "utf8", csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL)


def write_for_people(path: Path, rows: Iterable[Sequence[object]], separator: str) -> None:
    """Write a table for a person's spreadsheet; floats get the decimal mark that goes with it."""
    _write(path, rows, separator, "utf-8-sig", csv.QUOTE_MINIMAL)


def _write(
    path: Path,
    rows: Iterable[Sequence[object]],
    separator: str,
    encoding: str,
    quoting: Literal[0, 1],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(path.name + ".part")
    with waiting.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=separator, quoting=quoting)
        writer.writerows([[_cell(cell, separator) for cell in row] for row in rows])
    waiting.replace(path)


def _cell(cell: object, separator: str) -> str:
    if isinstance(cell, float):
        number = f"{cell:g}"
        return number.replace(".", ",") if separator == ";" else number
    return plain(str(cell))


def plain(cell: str) -> str:
    """Keep a spreadsheet from taking a text for a formula; a number and a dash are none."""
    return f"'{cell}" if cell.startswith(FORMULA) and not HARMLESS.fullmatch(cell) else cell


def as_given(cell: str) -> str:
    """Undo `plain`."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def read_table(path: Path, wanted: Sequence[str] = ()) -> tuple[list[str], list[Row]]:
    """Read a table with a header: its columns, and its rows by column.

    It may be parted by commas, semicolons or tabs, in UTF-8 or, as Blackboard writes it, UTF-16.

    Raises:
        LabError: no such file, another encoding, or a wanted column is not there.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}") from None
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise LabError(f"{path} is not in UTF-8: save it as CSV UTF-8") from None
    first = text.partition("\n")[0]
    separator = max(SEPARATORS, key=lambda s: len(next(csv.reader([first], delimiter=s), [])))
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        header = list(reader.fieldnames or [])
        rows = [{k: v or "" for k, v in row.items() if type(k) is str} for row in reader]
    except csv.Error as error:  # a cell of more than 128 KiB, as an open quote makes one
        raise LabError(f"{path}, line {reader.line_num}: {error}") from None
    missing = [name for name in wanted if name not in header]
    if missing:
        raise LabError(f"{path} has no column {' and no column '.join(missing)}")
    return header, rows
