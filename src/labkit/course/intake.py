"""From what an instructor downloads to one hand-in a student.

Folders, single files and zips are searched for notebooks (`.ipynb`) and submit files (`.json`).
Whose a file is, its name or its folder says, in the ways that course systems name them:

    Canvas      lovelaceada_LATE_1234_56789_lab.ipynb     (an attempt number may end the name)
    Moodle      Ada Lovelace_1234_assignsubmission_file/lab.ipynb
    Gradescope  submission_5678/lab.ipynb
    nbgrader    submitted/ada/<assignment>/lab.ipynb
    by hand     ada.ipynb or ada/lab.ipynb

A folder that a course system made decides over all that lies in it, since what is in there was
named by the student: who calls a file after somebody else hands in for nobody else.
"""

from __future__ import annotations

import lzma
import re
import stat
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from unicodedata import category, normalize

from labkit.reader.lab import Lab, LabError
from labkit.reader.notebook import MAX_BYTES

SUFFIXES = (".ipynb", ".json")
SKIPPED = {"__MACOSX", ".ipynb_checkpoints", ".git"}
MAX_FILES = 5000  # in one zip
MAX_TOTAL = 8 << 30  # bytes that one zip may unpack to
MAX_FOLDER = 100  # bytes of a folder's name; file systems allow 255
# What reading a file, or a file of a zip, may raise; an encrypted one a RuntimeError.
UNREADABLE = (OSError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
CANVAS = re.compile(r"(?P<student>[^_]+)(?P<late>_LATE)?_(?P<user>\d+)_(?P<id>\d+)_(?P<name>.+)")
CANVAS_ATTEMPT = re.compile(r"-(\d{1,4})\.(?:ipynb|json)$")
MOODLE = re.compile(r"(?P<student>.+)_(?P<id>\d+)_assignsubmission_file_?.*")
GRADESCOPE = re.compile(r"submission_(?P<id>\d+)")


@dataclass(frozen=True)
class HandIn:
    """One file of one student. `member` is its name in the zip at `path`, else None."""

    student: str
    path: Path
    member: str | None
    attempt: int
    submitted: datetime | None  # without a time zone, as the archive or the file system says it
    marked_late: bool = False
    from_course_system: bool = False  # its name says whose it is, in a course system's way

    @property
    def fits(self) -> bool:
        """Whether its name ends as that of a notebook or submit file."""
        return PurePosixPath(self.file_name).suffix in SUFFIXES

    @property
    def name(self) -> str:
        """The file as a message should name it."""
        inside = "" if self.member is None else f": {self.member}"
        return readable(f"{self.path.name}{inside}" if inside else str(self.path))

    @property
    def file_name(self) -> str:
        """The name that the student gave the file, as the student may read it."""
        return readable(PurePosixPath((self.member or self.path.name).replace("\\", "/")).name)

    def read(self) -> bytes:
        """The file's bytes; those of a file beyond the limit are not read but cut.

        Raises:
            UNREADABLE: it cannot be read, is damaged or is encrypted.
        """
        if self.member is None:
            with self.path.open("rb") as file:
                return file.read(MAX_BYTES + 1)
        with _opened(self.path) as archive, archive.open(self.member) as file:
            return file.read(MAX_BYTES + 1)


def find_handins(paths: list[Path], lab: Lab) -> tuple[list[HandIn], list[str]]:
    """Find every hand-in under `paths`; return them by student and attempt, and what was odd.

    Raises:
        LabError: a path that is not there, or nothing found.
    """
    problems: list[str] = []
    found: list[HandIn] = []
    for path in paths:
        if not path.exists():
            raise LabError(f"{path} does not exist")
        if path.is_dir():
            found += _in_folder(path, lab)
        elif path.suffix == ".zip":
            found += _in_zip(path, lab, problems)
        else:
            found.append(_named(PurePosixPath(path.name), path, None, _file_time(path), lab))
    found = _without_strays(found, problems)
    if not found:
        listed = ", ".join(map(str, paths))
        raise LabError(f"no notebook (.ipynb) and no submit file (.json) in {listed}")
    return _numbered(found), problems


def _in_folder(folder: Path, lab: Lab) -> Iterator[HandIn]:
    for path in sorted(folder.rglob("*")):
        inside = PurePosixPath(path.relative_to(folder).as_posix())
        if path.is_file() and not path.is_symlink() and not _hidden(inside):
            # A folder named on the command line may itself bear the student's name.
            yield _named(folder.resolve().name / inside, path, None, _file_time(path), lab)


def _in_zip(path: Path, lab: Lab, problems: list[str]) -> Iterator[HandIn]:
    try:
        with _opened(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (*UNREADABLE, UnicodeDecodeError) as error:
        problems.append(f"{path.name} cannot be read as a zip: {error}")
        return
    if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_TOTAL:
        problems.append(
            f"{path.name} holds {len(entries)} files of {sum(e.file_size for e in entries):,} "
            f"bytes; {MAX_FILES} files and {MAX_TOTAL:,} bytes are allowed: unpack it by hand"
        )
        return
    for name, count in Counter(entry.filename for entry in entries).items():
        if count > 1:
            words = f"{path.name} holds {count} files of the name {name}: the last one counts"
            problems.append(readable(words))
    named = {entry.filename: entry for entry in entries}
    for _, entry in sorted(named.items()):
        inside = PurePosixPath(entry.filename.replace("\\", "/"))
        if not _hidden(inside) and not stat.S_ISLNK(entry.external_attr >> 16):
            yield _named(inside, path, entry.filename, _entry_time(entry), lab)


def _opened(path: Path) -> zipfile.ZipFile:
    """A zip with its names as UTF-8, which many programs write without saying so."""
    try:
        return zipfile.ZipFile(path, metadata_encoding="utf-8")
    except UnicodeDecodeError:  # as the format's first version has it: code page 437
        return zipfile.ZipFile(path)


def readable(name: str) -> str:
    """A name with escapes for what no page, table or terminal can show.

    These are control characters, ends of lines, and bytes that are no UTF-8.
    """
    hidden = ("Cc", "Cs", "Zl", "Zp")
    return "".join(
        c.encode("unicode_escape").decode() if category(c) in hidden else c for c in name
    )


def _without_strays(found: list[HandIn], problems: list[str]) -> list[HandIn]:
    """Leave out files of another kind, save where a student handed in nothing else."""
    fit = [handin for handin in found if handin.fits]
    with_one = {handin.student for handin in fit}
    alone = [h for h in found if not h.fits and h.from_course_system and h.student not in with_one]
    strays = [h.name for h in found if not h.fits and h not in alone]
    if strays:
        shown = ", ".join(strays[:5]) + (", …" if len(strays) > 5 else "")
        problems.append(f"left out, neither notebook nor submit file: {shown} ({len(strays)})")
    return fit + alone


def _hidden(inside: PurePosixPath) -> bool:
    return any(part in SKIPPED or part.startswith("._") for part in inside.parts)


def _entry_time(entry: zipfile.ZipInfo) -> datetime | None:
    try:
        return datetime(*entry.date_time)
    except ValueError:  # a zip can spell the 0th of month 0
        return None


def _file_time(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime)


def _named(
    inside: PurePosixPath, path: Path, member: str | None, submitted: datetime | None, lab: Lab
) -> HandIn:
    """Say whose a file is, from its name, else from the folders it lies in."""
    # macOS takes letters and accents apart.
    inside = PurePosixPath(readable(normalize("NFC", str(inside))))
    for index, part in enumerate(inside.parent.parts):  # from the outside in
        below = inside.parts[index + 1 :]
        if part == "submitted" and len(below) >= 3:  # student, assignment, file
            return HandIn(below[0], path, member, 0, submitted)
        moodle = MOODLE.fullmatch(part)
        if moodle or GRADESCOPE.fullmatch(part):
            student = f"{moodle['student']}_{moodle['id']}" if moodle else part
            return HandIn(student, path, member, 0, submitted, from_course_system=True)
    canvas = CANVAS.fullmatch(inside.name)
    if canvas:
        attempt = CANVAS_ATTEMPT.search(inside.name)
        return HandIn(
            f"{canvas['student']}_{canvas['user']}",
            path,
            member,
            int(attempt[1]) if attempt else 0,
            submitted,
            marked_late=canvas["late"] is not None,
            from_course_system=True,
        )
    folders = [part for part in reversed(inside.parent.parts) if part not in (lab.slug, ".", "")]
    stem = inside.name.removesuffix(inside.suffix)
    for ending in (".submit", ".save"):
        stem = stem.removesuffix(ending)
    generic = stem.startswith(lab.slug) or stem.lower() in ("submission", "notebook", "lab", "main")
    student = folders[0] if generic and folders else stem
    return HandIn(student, path, member, 0, submitted)


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
