"""Which variant of a lab a course gets, and the seeds of its hidden tests.

Everything in this repository is known to the student, the hidden tests included. What a course
keeps secret is a key: a variant and a seed follow from it for every lab, so that expected
answers cannot be written into a cell and last year's notebook solves another task. Releasing
and grading a lab need the same key; without one both use the public default.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from labkit.reader.lab import Lab, LabError

HEADER = "labkit course key 1"
SECRET_BYTES = 32
SEED_BYTES = 6  # of the seed of a lab's hidden tests
PUBLIC_SEED = 0


@dataclass(frozen=True)
class Choice:
    """The variant of a lab and the seed of its hidden tests."""

    variant: str
    seed: int


@dataclass(frozen=True)
class CourseKey:
    """A course's secret; its text never shows in a message or a traceback."""

    secret: bytes = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Eight characters that tell two keys apart and give neither away."""
        return self._derive("fingerprint")[:4].hex()

    def choose(self, lab: Lab) -> Choice:
        """Return the variant and seed of a lab; the same on every machine, in any order."""
        names = sorted(lab.variants)
        number = int.from_bytes(self._derive(f"{lab.slug} variant"), "big")
        seed = self._derive(f"{lab.slug} seed")[:SEED_BYTES]
        return Choice(names[number % len(names)], int.from_bytes(seed, "big"))

    def _derive(self, purpose: str) -> bytes:
        return hmac.digest(self.secret, purpose.encode(), hashlib.sha256)


def choose(lab: Lab, key: CourseKey | None) -> Choice:
    """Return what `key` chooses for a lab; without a key the public default."""
    return Choice(lab.variant(None), PUBLIC_SEED) if key is None else key.choose(lab)


def new_key(path: Path) -> CourseKey:
    """Make a key and write its file, readable by its owner alone.

    Raises:
        LabError: there is a file already; a lost key cannot be made again.
    """
    key = CourseKey(secrets.token_bytes(SECRET_BYTES))
    try:
        path.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        raise LabError(f"{path} exists: a key that is overwritten cannot be made again") from None
    path.write_text(f"{HEADER}\n{key.secret.hex()}\n", "ascii")
    return key


def read_key(path: Path) -> CourseKey:
    """Read a key's file.

    Raises:
        LabError: there is none, or it is not what `new_key` wrote. No message quotes the file.
    """
    try:
        lines = path.read_text("ascii").split()
    except OSError as error:
        raise LabError(f"the course key {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        lines = []
    *header, secret = lines or [""]
    try:
        found = bytes.fromhex(secret)
    except ValueError:
        found = b""
    if " ".join(header) != HEADER or len(found) != SECRET_BYTES:
        raise LabError(
            f"{path} is no course key: one holds the line {HEADER!r} and {2 * SECRET_BYTES} "
            "hexadecimal digits; without a key the lab's public variant is used"
        )
    return CourseKey(found)
