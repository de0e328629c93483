"""A notebook's JSON without its outputs, however large they are.

Cells take kilobytes; their outputs, pasted pictures and the state of widgets can take hundreds of
megabytes, and nobody grades them. They are left out as the bytes go by, so a notebook of any size
is read in the memory of its cells. The rest comes out byte for byte, damaged JSON too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

CHUNK = 1 << 20
MAX_BYTES = 512 << 20  # of a file
MAX_KEPT = 16 << 20  # bytes of it without what is left out
# By the brackets that are open around a key: the keys whose list or object is left empty.
LEFT_OUT = {b"{[{": (b"outputs", b"attachments"), b"{{": (b"widgets",)}
LONGEST_KEY = 16
OUTSIDE = re.compile(rb'["\[\]{}:]')  # what counts outside a string
INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)  # a string up to its quote


class TooLarge(ValueError):
    """A file, or what is left of it, is beyond a limit; the message says which."""


def without_outputs(stream: IO[bytes]) -> bytes:
    """Read a notebook to its end, and return its JSON with outputs and attachments empty.

    Raises:
        TooLarge: the file has more than MAX_BYTES, or what is kept more than MAX_KEPT.
    """
    kept, size = bytearray(), 0
    sieve = _Sieve()
    while chunk := stream.read(CHUNK):
        size += len(chunk)
        if size > MAX_BYTES:
            raise TooLarge(f"the file is larger than {MAX_BYTES >> 20} MiB")
        for piece in sieve.feed(chunk):
            kept += piece
        if len(kept) > MAX_KEPT:
            raise TooLarge(
                f"the file holds more than {MAX_KEPT >> 20} MiB beside the outputs of its cells"
            )
    return bytes(kept + sieve.rest)


class _Sieve:
    """Passes JSON on, save what lies between the brackets of a value in LEFT_OUT.

    Between two chunks: `rest` is a backslash at the end, whose letter is to come; `_open` holds
    the brackets that are open outside of what is left out, `_depth` how many are in it (0: not in
    it), `_key` the beginning of the latest string, `_armed` whether it was a key of LEFT_OUT and
    its value comes next.
    """

    def __init__(self) -> None:
        self.rest = b""
        self._open = bytearray()
        self._depth = 0
        self._in_string = False
        self._key = b""
        self._armed = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Take the next bytes and give those that are kept."""
        data = self.rest + chunk
        self.rest = b""
        at = kept_from = 0
        while at < len(data):
            if self._in_string:
                at = self._through_string(data, at)
                continue
            found = OUTSIDE.search(data, at)
            if found is None:
                break
            at = found.end()
            was_in = self._depth > 0
            self._meet(data[at - 1 : at])
            if self._depth and not was_in:  # a value that is left out begins: keep its bracket
                yield data[kept_from:at]
            elif was_in and not self._depth:  # and ends
                kept_from = at - 1
        if not self._depth:
            yield data[kept_from : len(data) - len(self.rest)]

    def _through_string(self, data: bytes, at: int) -> int:
        """Go to behind a string's quote, or to the end of the data."""
        end = INSIDE.match(data, at).end()  # type: ignore[union-attr]  # it matches nothing, too
        self._key += data[at : min(end, at + LONGEST_KEY - len(self._key))]
        if end < len(data) and data[end : end + 1] == b'"':
            self._in_string = False
            return end + 1
        self.rest = data[end:]
        return len(data)

    def _meet(self, mark: bytes) -> None:
        """Take account of one of OUTSIDE."""
        armed, self._armed = self._armed, False
        if mark == b'"':
            self._in_string, self._key = True, b""
        elif mark == b":":
            around = bytes(self._open[:4])
            self._armed = not self._depth and self._key in LEFT_OUT.get(around, ())
        elif mark in b"[{":
            if self._depth or armed:
                self._depth += 1
            else:
                self._open += mark
        elif self._depth:
            self._depth -= 1
        elif self._open:
            self._open.pop()
