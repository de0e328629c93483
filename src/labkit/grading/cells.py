"""A lab's master read cell by cell: the reference, the starter, the help given.

`master.py` is a jupytext percent file. A cell's role is in its header line:
`task="name"` (the reader writes it), `check="name"`, `given="name"` (help that the task
cells may call, also in grading: the line `# {{given}}`, which stands for the lab's `given.py`),
`written="name"` (an answer in words); the rest is text.
Inside cells two pairs of lines are understood:

    ### BEGIN SOLUTION … ### END SOLUTION      becomes a `raise NotImplementedError`
    ### BEGIN VARIANT a b … ### END VARIANT    stays in the variants a and b only
"""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.reader.lab import Lab, LabError

BEGIN_SOLUTION, END_SOLUTION = "### BEGIN SOLUTION", "### END SOLUTION"
VARIANT_BLOCK = re.compile(
    r"^[ \t]*### BEGIN VARIANT ([\w -]+)\n(.*?)^[ \t]*### END VARIANT[ \t]*\n?", re.M | re.S
)


@dataclass(frozen=True)
class Cell:
    """One cell of a master, for one variant. `kind` is "text" or one of the roles."""

    kind: str
    name: str
    source: str
    markdown: bool

    @property
    def reference(self) -> str:
        """The source with the solution in it and the markers gone."""
        markers = (BEGIN_SOLUTION, END_SOLUTION)
        lines = [line for line in self.source.split("\n") if line.strip() not in markers]
        return "\n".join(lines)

    @property
    def starter(self) -> str:
        """The source with every solution taken out."""
        kept: list[str] = []
        inside = False
        for line in self.source.split("\n"):
            if line.strip() == BEGIN_SOLUTION:
                indent = line[: len(line) - len(line.lstrip())]
                empty = (
                    "*Your answer here.*"
                    if self.markdown
                    else (f'{indent}raise NotImplementedError("write {self.name}")')
                )
                kept.append(empty)
                inside = True
            elif line.strip() == END_SOLUTION:
                inside = False
            elif not inside:
                kept.append(line)
        return "\n".join(kept)


def read_cells(path: Path, lab: Lab, variant: str | None = None) -> list[Cell]:
    """Read a percent file (a master, a second solution) for one variant.

    Raises:
        LabError: a block without an end, one that names an unknown variant, or help that is not
            `given.py`.
    """
    chosen = lab.variant(variant)
    text = path.read_text("utf8").replace("{{repository}}", repository_url())
    text = text.replace("# {{given}}", lab.given.rstrip("\n"))
    cells = []
    for raw in _raw_cells(text):
        source = raw.source.replace("{{lab}}", f"{lab.slug}/{chosen}") + "\n"
        source = VARIANT_BLOCK.sub(lambda m: _keep(m, lab, chosen), source).rstrip("\n")
        if "### BEGIN VARIANT" in source or "### END VARIANT" in source:
            raise LabError(f"{path.name}: a variant block has no end or no beginning:\n{source}")
        if source.count(BEGIN_SOLUTION) != source.count(END_SOLUTION):
            raise LabError(f"{path.name}: a solution block has no end or no beginning:\n{source}")
        roles = ("task", "check", "given", "written")
        kind = next((role for role in roles if role in raw.metadata), "text")
        name = str(raw.metadata.get(kind, ""))
        if kind == "given" and source.strip() != lab.given.strip():
            raise LabError(f"{path.name}: help is written in given.py, where labkit.check finds it")
        if source.strip():
            cells.append(Cell(kind, name, source, raw.cell_type == "markdown"))
    return cells


@functools.lru_cache(maxsize=32)  # a file is read for each variant, and for each role of its cells
def _raw_cells(text: str) -> list[Any]:
    """Split a percent file; nobody changes the cells."""
    import jupytext  # an author's tool; a reader's notebook never needs it

    return list(jupytext.reads(text, fmt="py:percent").cells)


def _keep(block: re.Match[str], lab: Lab, variant: str) -> str:
    names = block.group(1).split()
    for name in names:
        lab.variant(name)
    return block.group(2) if variant in names else ""


@functools.cache
def repository_url() -> str:
    """The address of the repository, from `pyproject.toml`, the one place it stands in."""
    path = Path(__file__).resolve().parents[3] / "pyproject.toml"
    return str(tomllib.loads(path.read_text("utf8"))["project"]["urls"]["Repository"])


def reference_cells(
    lab: Lab, variant: str | None = None, file: str = "master.py"
) -> dict[str, str]:
    """Return each task's solution by name, from the master or another percent file.

    Raises:
        LabError: a task of `lab.toml` has no cell there.
    """
    found = {
        cell.name: cell.reference
        for cell in read_cells(lab.folder / file, lab, variant)
        if cell.kind == "task"
    }
    missing = [task.name for task in lab.tasks if task.name not in found]
    if missing:
        raise LabError(f"{file} has no cell for: {', '.join(missing)}")
    return {task.name: found[task.name] for task in lab.tasks}


def given_cells(lab: Lab, variant: str | None = None) -> list[tuple[str, str]]:
    """Return name and source of the help that task cells may call."""
    cells = read_cells(lab.folder / "master.py", lab, variant)
    return [(cell.name, cell.source) for cell in cells if cell.kind == "given"]
