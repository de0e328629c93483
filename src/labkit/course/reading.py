"""Reading a hand-in: its bytes are opened, unpacked and parsed in a process under limits.

What comes back is the cells and answers that count, each of bounded length. A file that cannot be
read within the limits is a hand-in with nothing in it, and a sentence that says why and what to do.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from labkit.course.archives import UNREADABLE, opened
from labkit.reader.lab import Lab, load_lab
from labkit.reader.notebook import Submission, read, unreadable
from labkit.sandbox.bounded import Bounds, Exceeded, ask, serve

REMEDY = "clear the notebook's outputs, or hand in the small file that labkit.submit() writes"


def read_bounded(
    path: Path, members: tuple[str, ...], lab: Lab, bounds: Bounds | None = None
) -> Submission:
    """Read a file, or the file of a zip that `members` lead to; never raises for what is in it."""
    request = {"path": str(path), "members": members, "lab": str(lab.folder)}
    try:
        return Submission(**ask(__name__, request, bounds or Bounds()))
    except Exceeded as exceeded:
        return unreadable(lab, f"the file cannot be read: {exceeded}; {REMEDY}")


def _read(request: dict[str, Any]) -> dict[str, Any]:
    lab = load_lab(Path(request["lab"]))
    try:
        with opened(Path(request["path"]), tuple(request["members"])) as stream:
            return asdict(read(stream, lab))
    except UNREADABLE as error:
        return asdict(unreadable(lab, f"the file cannot be read: {error}"))


if __name__ == "__main__":
    serve(_read)
