"""From a lab's master to the notebook that a reader gets, with labkit's and nbgrader's metadata."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from labkit.grading.cells import Cell, read_cells
from labkit.reader.cells import digest_of, frontier_of
from labkit.reader.lab import Lab

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
# "Run all" goes on behind a cell with this tag when it raises, as a check does that does not pass
# and a measurement of what is not written yet. The exception stays: nbgrader grades by it.
MAY_RAISE = "raises-exception"


def build_notebook(lab: Lab, variant: str | None = None, *, solution: bool = False) -> Any:
    """Build the starter, or with `solution` the solved notebook, in memory.

    Cells carry labkit's metadata and nbgrader's (schema 3): a task cell is a solution cell,
    its check a graded test cell with the task's points, a written answer is graded by hand.
    Code cells carry the tag `raises-exception` besides, so that "Run all" reaches the last one,
    which hands in, whatever fails before it.
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
    if not cell.markdown and frontier_of(cell.source) is not None:
        nbgrader.update(locked=False)  # nbgrader would put the starter's cell back
    if not cell.markdown and identifier != "submit":
        metadata["tags"] = [MAY_RAISE]
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
    for variant in lab.variants if lab.frontier else ():
        found = frontier_digests(lab, variant)
        for name, digest in lab.frontier.items():
            said = (
                f"[frontier] of lab.toml has {name} = {digest!r}, and the starter of the variant "
            )
            if name not in found:
                return f"{said}{variant} gives no frontier cell of that name: take the line out"
            if found[name] != digest:
                return f"{said}{variant} gives {found[name]!r}: write that"
    return None


def frontier_digests(lab: Lab, variant: str | None = None) -> dict[str, str]:
    """What `[frontier]` of `lab.toml` has to say of a variant's starter: cell's name to digest."""
    cells = read_cells(lab.folder / "master.py", lab, variant)
    named = [(frontier_of(cell.starter), cell.starter) for cell in cells if not cell.markdown]
    return {name: digest_of(source) for name, source in named if name is not None}
