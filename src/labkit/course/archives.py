"""Reading files of a zip, and of a zip in it, without trusting either.

A class comes as one zip, and many students hand in a zip of their own. The second is read into
memory, so it has a limit; a third one inside is not opened. Whatever cannot be read is said by
name and costs nobody else anything.
"""

from __future__ import annotations

import io
import lzma
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

MAX_FILES = 5000  # in one zip
MAX_TOTAL = 8 << 30  # bytes that one zip may unpack to
MAX_INNER = 64 << 20  # bytes of a zip in a zip, which is held in memory
MAX_READ = 2 << 20  # bytes of a zip's list of contents: 5,000 names and some
MAX_NAME = 6000  # characters of a name: Unicode is brought into order in the square of its length
PIECE = 1 << 20  # bytes that are read at a time
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack without a limit on memory
# What reading a file, or a file of a zip, may raise; an encrypted one a RuntimeError.
UNREADABLE = (OSError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


class Refused(zipfile.BadZipFile):
    """A zip that is not opened; the message says why and what to do."""


@dataclass(frozen=True)
class Entry:
    """A file in a zip: its name there, its time as the zip says it, its bytes unpacked."""

    name: str
    time: datetime | None
    size: int


@contextmanager
def opened(path: Path, members: tuple[str, ...]) -> Iterator[IO[bytes]]:
    """Open a file, or the file of a zip that `members` lead to, for reading.

    Raises:
        UNREADABLE: it cannot be read, is damaged, encrypted or refused.
    """
    with ExitStack() as stack:
        if not members:
            yield stack.enter_context(path.open("rb"))
            return
        archive = stack.enter_context(_zip(stack.enter_context(path.open("rb"))))
        for member in members[:-1]:
            archive = stack.enter_context(_inner(archive, member))
        yield stack.enter_context(_member(archive, members[-1]))


def entries(path: Path, members: tuple[str, ...] = ()) -> tuple[list[Entry], list[str]]:
    """List the files of the zip at `path`, or of the zip in it that `members` lead to.

    Links are left out. Of two files of one name the last counts, as where a zip is unpacked;
    the second list says so.

    Raises:
        UNREADABLE, UnicodeDecodeError: it cannot be read, or is refused.
    """
    with ExitStack() as stack:
        archive = stack.enter_context(_zip(stack.enter_context(path.open("rb"))))
        for member in members:
            archive = stack.enter_context(_inner(archive, member))
        found = [e for e in archive.infolist() if not e.is_dir()]
    total = sum(entry.file_size for entry in found)
    if len(found) > MAX_FILES or total > MAX_TOTAL:
        raise Refused(
            f"it holds {len(found)} files of {total:,} bytes; {MAX_FILES} files and "
            f"{MAX_TOTAL:,} bytes are allowed: unpack it by hand"
        )
    counts = Counter(entry.filename for entry in found)
    odd = [
        f"{n} files of the name {name[:MAX_NAME]}: the last one counts"
        for name, n in counts.items()
        if n > 1
    ]
    named = {entry.filename: entry for entry in found if len(entry.filename) <= MAX_NAME}
    nameless = sum(len(entry.filename) > MAX_NAME for entry in found)
    if nameless:
        odd.append(f"{nameless} files whose names have more than {MAX_NAME} characters: left out")
    kept = [e for _, e in sorted(named.items()) if not stat.S_ISLNK(e.external_attr >> 16)]
    return [Entry(e.filename, _entry_time(e), e.file_size) for e in kept], odd


def _zip(file: IO[bytes]) -> zipfile.ZipFile:
    """A zip with its names as UTF-8, which many programs write without saying so."""
    bounded = _Bounded(file)
    try:
        return zipfile.ZipFile(bounded, metadata_encoding="utf-8")
    except UnicodeDecodeError:  # as the format's first version has it: code page 437
        return zipfile.ZipFile(bounded)


def _inner(archive: zipfile.ZipFile, member: str) -> zipfile.ZipFile:
    data = io.BytesIO()
    with _member(archive, member) as file:
        for piece in pieces(file):
            if data.tell() + len(piece) > MAX_INNER:
                raise Refused(f"it has more than {MAX_INNER >> 20} MiB: unpack it by hand")
            data.write(piece)
    return _zip(data)


def pieces(stream: IO[bytes]) -> Iterator[bytes]:
    """What is left of a stream, a little at a time."""
    while piece := stream.read(PIECE):
        yield piece


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a file of a zip, if what its packing may take in memory is bounded."""
    entry = archive.getinfo(name)
    if entry.compress_type not in PACKED:
        raise Refused(
            f"{entry.filename[:MAX_NAME]} is packed by method {entry.compress_type}, which few "
            "programs read: pack it as a usual zip"
        )
    try:
        return archive.open(entry)
    except ValueError as error:  # its name beside the data is not even text
        raise Refused(f"its two names differ: {error}") from None


class _Bounded:
    """A zip's bytes, of which no reader takes more than MAX_READ at a time.

    What takes more is the list of contents: a million names would fill the grader's memory before
    one could be counted. Where that list is and how long, zipfile alone decides.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_READ:
            raise Refused(f"its list of contents has {size:,} bytes: unpack it by hand")
        return self._file.read(MAX_READ if size is None or size < 0 else size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


def _entry_time(entry: zipfile.ZipInfo) -> datetime | None:
    try:
        return datetime(*entry.date_time)
    except ValueError:  # a zip can spell the 0th of month 0
        return None
