"""Reading files of a zip, and of a zip in it, without trusting either.

A class comes as one zip, and many students hand in a zip of their own. The second is read into
memory, so it has a limit; a third one inside is not opened. Whatever cannot be read is said by
name and costs nobody else anything.
"""

from __future__ import annotations

import io
import lzma
import re
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
MAX_LIST = 2 << 20  # bytes of the list of contents of a zip in a zip: 5,000 names and some
END = b"PK\5\6"  # begins the record at a zip's end; the list's size is 12 bytes further on
END_OF_LARGE = b"PK\6\7"  # before it, in a zip whose list is elsewhere
LONGEST_END = (1 << 16) + 42  # bytes in which these lie: a comment has 64 KiB at most
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
        archive = stack.enter_context(_zip(path))
        for member in members[:-1]:
            archive = stack.enter_context(_inner(archive, member))
        yield stack.enter_context(archive.open(members[-1]))


def entries(path: Path, members: tuple[str, ...] = ()) -> tuple[list[Entry], list[str]]:
    """List the files of the zip at `path`, or of the zip in it that `members` lead to.

    Links are left out. Of two files of one name the last counts, as where a zip is unpacked;
    the second list says so.

    Raises:
        UNREADABLE, UnicodeDecodeError: it cannot be read, or is refused.
    """
    with ExitStack() as stack:
        archive = stack.enter_context(_zip(path))
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
    odd = [f"{n} files of the name {name}: the last one counts" for name, n in counts.items()
           if n > 1]  # fmt: skip
    named = {entry.filename: entry for entry in found}
    kept = [e for _, e in sorted(named.items()) if not stat.S_ISLNK(e.external_attr >> 16)]
    return [Entry(e.filename, _entry_time(e), e.file_size) for e in kept], odd


def _zip(file: Path | IO[bytes]) -> zipfile.ZipFile:
    """A zip with its names as UTF-8, which many programs write without saying so."""
    try:
        return zipfile.ZipFile(file, metadata_encoding="utf-8")
    except UnicodeDecodeError:  # as the format's first version has it: code page 437
        return zipfile.ZipFile(file)


def _inner(archive: zipfile.ZipFile, member: str) -> zipfile.ZipFile:
    with archive.open(member) as file:
        data = file.read(MAX_INNER + 1)
    if len(data) > MAX_INNER:
        raise Refused(f"it has more than {MAX_INNER >> 20} MiB: unpack it by hand")
    # A list of a million names would fill the grader's memory before one could be counted. Any
    # `END` may be the one that counts, as bytes of a comment or of a field can look like it.
    tail = data[-LONGEST_END:]
    ends = [found.start() for found in re.finditer(re.escape(END), tail)]
    sizes = [int.from_bytes(tail[end + 12 : end + 16], "little") for end in ends]
    if not sizes or max(sizes) > MAX_LIST or END_OF_LARGE in tail:
        raise Refused("its list of contents is damaged or too long: unpack it by hand")
    return _zip(io.BytesIO(data))


def _entry_time(entry: zipfile.ZipInfo) -> datetime | None:
    try:
        return datetime(*entry.date_time)
    except ValueError:  # a zip can spell the 0th of month 0
        return None
