"""From a lab's master to the notebook that a reader gets.

`master.py` is a jupytext percent file. A cell's role is in its header line:
`task="name"` (the reader writes it), `check="name"`, `given="name"` (help that the task
cells may call, also in grading), `written="name"` (an answer in words); the rest is text.
Inside cells two pairs of lines are understood:

    ### BEGIN SOLUTION … ### END SOLUTION      becomes a `raise NotImplementedError`
    ### BEGIN VARIANT a b … ### END VARIANT    stays in the variants a and b only
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.lab import Lab, LabError

BEGIN_SOLUTION, END_SOLUTION = "### BEGIN SOLUTION", "### END SOLUTION"
SETS_LAB = re.compile(r"^LAB = ", re.M)
KEEP_TEXT = """\
## Keep your work

A runtime in Colab can vanish, and this notebook with it. `labkit.save()` writes your task cells and
answers to one small file: to Drive where it is mounted, else your browser downloads it or it lies
beside the notebook. `labkit.restore()` puts them back into a fresh copy. Every check saves what
you have run so far, too."""
KEEP_CODE = """\
# labkit.save()
# labkit.restore()"""
SUBMIT_TEXT = """\
## Hand in

The cell below writes one small file, says what is missing, and in Colab downloads it."""
SUBMIT_CODE = "labkit.submit()"
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
        LabError: a block without an end, or one that names an unknown variant.
    """
    chosen = lab.variant(variant)
    text = path.read_text("utf8").replace("{{repository}}", repository_url())
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
    path = Path(__file__).resolve().parents[2] / "pyproject.toml"
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


def build_notebook(lab: Lab, variant: str | None = None, *, solution: bool = False) -> Any:
    """Build the starter, or with `solution` the solved notebook, in memory.

    Cells carry labkit's metadata and nbgrader's (schema 3): a task cell is a solution cell,
    its check a graded test cell with the task's points, a written answer is graded by hand.
    """
    return _notebook(lab, variant, lambda cell: cell.reference if solution else cell.starter)


def nbgrader_source(lab: Lab, variant: str | None = None) -> Any:
    """Build what nbgrader takes as an assignment's source: solutions between their markers.

    From the starter `nbgrader generate_assignment` would make cells without their signatures,
    since it empties a solution cell in which it finds no marker.
    """
    return _notebook(lab, variant, lambda cell: cell.source)


def _notebook(lab: Lab, variant: str | None, source_of: Callable[[Cell], str]) -> Any:
    from nbformat import v4

    chosen = lab.variant(variant)
    notebook = v4.new_notebook()  # type: ignore[no-untyped-call]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "labkit": {"lab": lab.slug, "variant": chosen},
    }
    for identifier, cell in _numbered(read_cells(lab.folder / "master.py", lab, chosen)):
        make: Any = v4.new_markdown_cell if cell.markdown else v4.new_code_cell
        made = make(source_of(cell), id=identifier)
        made.metadata = _metadata(lab, cell, identifier)
        notebook.cells.append(made)
    return notebook


def _numbered(cells: list[Cell]) -> Iterator[tuple[str, Cell]]:
    """Give each cell its id, and add those that every lab has: to keep the work, to hand it in."""
    for number, cell in enumerate(cells):
        yield f"{cell.kind}-{cell.name}" if cell.name else f"text-{number:02d}", cell
        if cell.kind == "text" and not cell.markdown and SETS_LAB.search(cell.source):
            yield "keep-text", Cell("text", "", KEEP_TEXT, True)
            yield "keep", Cell("text", "", KEEP_CODE, False)
    yield "submit-text", Cell("text", "", SUBMIT_TEXT, True)
    yield "submit", Cell("text", "", SUBMIT_CODE, False)


def _metadata(lab: Lab, cell: Cell, identifier: str) -> dict[str, Any]:
    nbgrader: dict[str, Any] = {
        "grade": False,
        "grade_id": identifier,
        "locked": True,
        "schema_version": 3,
        "solution": False,
        "task": False,
    }
    metadata: dict[str, Any] = {"nbgrader": nbgrader}
    if cell.kind == "task":
        nbgrader.update(solution=True, locked=False)
        metadata["labkit"] = {"task": lab.task(cell.name).name}
    elif cell.kind == "check":
        nbgrader.update(grade=True, points=lab.task(cell.name).points)
    elif cell.kind == "written":
        points = {question.name: question.points for question in lab.written}[cell.name]
        nbgrader.update(grade=True, solution=True, locked=False, points=points)
        metadata["labkit"] = {"written": cell.name}
    return metadata


def notebook_text(notebook: Any) -> str:
    """Return a notebook as its file holds it."""
    import nbformat

    return str(nbformat.writes(notebook)).rstrip("\n") + "\n"  # type: ignore[no-untyped-call]


def starter_path(lab: Lab) -> Path:
    """Where a lab's starter lies."""
    return lab.folder / f"{lab.slug}.ipynb"


def drift(lab: Lab) -> str | None:
    """Say how the starter on disk differs from what the master gives, or return None."""
    path = starter_path(lab)
    if not path.is_file():
        return f"{path.name} does not exist: run `labkit build {lab.slug}`"
    if path.read_text("utf8") != notebook_text(build_notebook(lab)):
        return f"{path.name} is not what master.py gives: run `labkit build {lab.slug}`"
    return None
