"""How much of a lab a file holds, without reading it as JSON.

A student may send scratch notebooks beside the one that counts, and a name says little about
which that is. So the bytes are searched for the lines that begin the lab's task cells; a notebook
spells them as they stand, since JSON leaves ASCII alone. What counts is decided here; what is
graded is read with care by `labkit.reader.notebook`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from labkit.course.archives import UNREADABLE, opened
from labkit.reader.lab import Lab

CHUNK = 1 << 20
OVERLAP = 200  # bytes that two chunks share, more than a task line has
TASK_LINE = re.compile(rb"#[ \t]{0,9}task[ \t]{0,9}:[ \t]{0,9}([\w-]{1,80})", re.IGNORECASE)
TASK_METADATA = re.compile(rb'"task"[ \t]{0,9}:[ \t]{0,9}"([\w-]{1,80})"')
CELL_ID = re.compile(rb'id"[ \t]{0,9}:[ \t]{0,9}"task-([\w-]{1,80})"')
LAB = re.compile(rb'"lab"[ \t]{0,9}:[ \t]{0,9}"([\w-]{1,80})"')
MAX_SEARCHED = 256 << 20  # bytes of one student's files that are searched


@dataclass
class Budget:
    """Bytes that may still be searched for one student: a small zip may unpack to a huge file."""

    left: int = MAX_SEARCHED


def tasks_in(path: Path, members: tuple[str, ...], lab: Lab, budget: Budget) -> int:
    """How many of the lab's tasks occur in a file; 0 where it names another lab or is unreadable.

    Args:
        path, members: where it lies (`labkit.course.archives.opened`).
        lab: the lab.
        budget: shared by the files of one student; what lies beyond it is not searched.
    """
    names = {task.name.encode() for task in lab.tasks}
    found: set[bytes] = set()
    labs: set[bytes] = set()
    rest = b""
    try:
        with opened(path, members) as stream:
            while budget.left > 0 and (chunk := stream.read(min(CHUNK, budget.left))):
                budget.left -= len(chunk)
                searched = rest + chunk
                for pattern in (TASK_LINE, TASK_METADATA, CELL_ID):
                    found |= names.intersection(pattern.findall(searched))
                labs |= set(LAB.findall(searched))
                rest = searched[-OVERLAP:]
    except UNREADABLE:
        return 0
    return 0 if labs and lab.slug.encode() not in labs else len(found)
