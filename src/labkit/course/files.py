"""What lies where in the folders, zips and single files that an instructor gives.

A zip in a folder, and a zip in a zip, is listed like a folder; what cannot be opened is said by
name and stays as a file, so that its student does not vanish.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from unicodedata import category, normalize

from labkit.course.archives import UNREADABLE, entries
from labkit.reader.lab import LabError

SKIPPED = {"__MACOSX", ".ipynb_checkpoints", ".git"}
EXPORT = re.compile(r"assignment_\d+_export")  # what wraps Gradescope's


@dataclass(frozen=True)
class File:
    """A file that was found: `place` is its name with the folders (and zips) it lies in."""

    place: PurePosixPath
    path: Path
    members: tuple[str, ...]
    time: datetime | None


@dataclass(frozen=True)
class Source:
    """Files that were given together; `name` is that of their folder or zip."""

    name: str
    files: list[File]
    whole: bool  # a folder or zip, not files that were given one by one


def sources_of(
    paths: Iterable[Path], problems: list[str], results: Path | None = None
) -> list[Source]:
    """List what `paths` hold, save the folder of results; say in `problems` what cannot be opened.

    Raises:
        LabError: a path that is not there.
    """
    sources: list[Source] = []
    alone: dict[Path, list[File]] = defaultdict(list)  # by their folder
    for path in paths:
        if not path.exists():
            raise LabError(f"{path} does not exist")
        if path.is_dir():
            files = list(_in_folder(path, problems, results))
            sources.append(Source(path.resolve().name, files, whole=True))
        elif path.suffix.lower() == ".zip":
            files = list(_in_zip(path, (), PurePosixPath(), problems))
            sources.append(Source(path.stem, files, whole=True))
        else:
            file = File(_place(path.name), path, (), _file_time(path))
            alone[path.resolve().parent].append(file)
    sources += [Source(folder.name, files, whole=False) for folder, files in alone.items()]
    return [_class_of(source) for source in sources]


def _class_of(source: Source) -> Source:
    """Go into a folder that wraps the class: one of the same name, as zipping a folder makes it.

    Any other folder may be a student's, who called the files in it at will.
    """
    firsts = {file.place.parts[0] for file in source.files}
    if len(firsts) != 1 or any(len(file.place.parts) == 1 for file in source.files):
        return source
    (first,) = firsts
    if first != source.name and not EXPORT.fullmatch(first):
        return source
    inner = [replace(f, place=PurePosixPath(*f.place.parts[1:])) for f in source.files]
    return Source(first, inner, whole=True)


def _in_folder(folder: Path, problems: list[str], results: Path | None) -> Iterator[File]:
    for path in sorted(folder.rglob("*")):
        place = _place(path.relative_to(folder).as_posix())
        if results is not None and path.resolve().is_relative_to(results.resolve()):
            continue  # of an earlier run, with its records of everybody
        if not path.is_file() or path.is_symlink() or _hidden(place):
            continue
        if path.suffix.lower() == ".zip":
            yield from _in_zip(path, (), place, problems, _file_time(path))
        else:
            yield File(place, path, (), _file_time(path))


def _in_zip(
    path: Path,
    members: tuple[str, ...],
    place: PurePosixPath,
    problems: list[str],
    time: datetime | None = None,
) -> Iterator[File]:
    """The files of a zip, or the zip itself as a file where it cannot be read."""
    named = readable(": ".join((path.name, *members)))
    try:
        found, odd = entries(path, members)
    except (*UNREADABLE, UnicodeDecodeError) as error:
        problems.append(f"{named} cannot be read as a zip: {error}")
        if place.parts:
            yield File(place, path, members, time)
        return
    problems += [readable(f"{named} holds {words}") for words in odd]
    if not found and place.parts:
        problems.append(f"{named} holds no file")
        yield File(place, path, members, time)
    for entry in found:
        inside = place / _place(entry.name)
        chain = (*members, entry.name)
        if _hidden(inside) or not inside.parts:
            continue
        if inside.suffix.lower() != ".zip":
            yield File(inside, path, chain, entry.time)
        elif len(chain) > 1:
            inner = readable(": ".join((path.name, *chain)))
            problems.append(f"{inner} is a zip in a zip in a zip and not opened: unpack it by hand")
            yield File(inside, path, chain, entry.time)
        else:
            yield from _in_zip(path, chain, inside, problems, entry.time)


def _place(name: str) -> PurePosixPath:
    """A name as a place below the folder or zip it lies in: nothing in it leads to the top."""
    # macOS takes letters and accents apart; Windows may write its own separator into a zip.
    plain = readable(normalize("NFC", name.replace("\\", "/")))
    parts = [part for part in PurePosixPath(plain).parts if part.strip("/") not in ("", "..")]
    return PurePosixPath(*parts)


def _hidden(place: PurePosixPath) -> bool:
    return any(part in SKIPPED or part.startswith("._") for part in place.parts)


def _file_time(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime)


def readable(name: str) -> str:
    """A name with escapes for what no page, table or terminal can show.

    These are control characters, ends of lines, and bytes that are no UTF-8.
    """
    hidden = ("Cc", "Cs", "Zl", "Zp")
    return "".join(
        c.encode("unicode_escape").decode() if category(c) in hidden else c for c in name
    )
