"""Finding cells by the line that names them.

Reader and grader find cells by the functions here and by nothing else, so a cell that `check` has
found is the one that grading takes.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from labkit.reader.lab import Lab

# Blank space within one line: one that runs over lines takes hours for a million empty ones.
# Behind the name a remark may stand: `# task: pool  # my second try`, `# Task : pool (done)`.
LINE = r"^[ \t]*#+[ \t]*{role}[ \t]*:[ \t]*([\w-]{{1,80}})[ \t\r]*(?:[#(–—-].*)?$"
TASK_LINE = re.compile(LINE.format(role="task"), re.MULTILINE | re.IGNORECASE)
FRONTIER_LINE = re.compile(LINE.format(role="frontier"), re.MULTILINE | re.IGNORECASE)
WRITTEN_LINE = re.compile(r"<!--\s*written:\s*([\w-]+)\s*-->")
MAX_SOURCE = 200_000  # characters of one cell or answer


def task_of(source: str, lab: Lab) -> str | None:
    """The task that a cell says it is, by its `# task: name` line; None where it says none.

    Capitals, blank space and a remark behind the name do not matter. A name that is no task of the
    lab comes back as it stands.
    """
    line = TASK_LINE.search(source)
    if line is None:
        return None
    names = {task.name.lower(): task.name for task in lab.tasks}
    return names.get(line.group(1).lower(), line.group(1))


def written_of(source: str) -> str | None:
    """The question that a cell answers, by its `<!-- written: name -->`."""
    line = WRITTEN_LINE.search(source)
    return line.group(1) if line else None


def frontier_of(source: str) -> str | None:
    """The frontier task that a cell says it is, by its `# frontier: name` line."""
    line = FRONTIER_LINE.search(source)
    return line.group(1).lower() if line else None


def frontier_cells(cells: list[Any]) -> dict[str, str]:
    """The code cells of frontier tasks by name; of several with one name the last one counts."""
    found = {}
    for cell in cells:
        source = cell_source(cell)
        if source is None or cell.get("cell_type", "code") != "code":
            continue
        name = frontier_of(source)
        if name is not None and len(source) <= MAX_SOURCE:
            found[name] = source
    return found


def written_frontier(cells: dict[str, str], lab: Lab) -> dict[str, str]:
    """Those of some frontier cells, by name, that are not as the starter has them."""
    return {
        name: source
        for name, source in cells.items()
        if lab.frontier.get(name) != digest_of(source)
    }


def digest_of(source: str) -> str:
    """Sixteen digits that stand for a cell's text; blank space around it does not count."""
    return hashlib.sha256(encodable(source.strip()).encode()).hexdigest()[:16]


def cell_source(cell: Any) -> str | None:
    """A cell's text; notebooks store it as one string or as a list of lines."""
    source = cell.get("source") if type(cell) is dict else None
    if type(source) is list and all(type(line) is str for line in source):
        source = "".join(source)
    return encodable(source) if type(source) is str else None


def encodable(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON can spell and no file can hold."""
    return text.encode("utf8", "replace").decode("utf8")
