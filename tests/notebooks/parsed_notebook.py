"""`Notebook`: a committed notebook, and what its tests ask about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode

IGNORES_OUTPUT = "nbval-ignore-output"


@dataclass(frozen=True)
class Notebook:
    """A committed notebook with its slug."""

    slug: str
    path: Path
    cells: list[NotebookNode]

    @property
    def code(self) -> list[NotebookNode]:
        """Code cells, in order."""
        return [cell for cell in self.cells if cell.cell_type == "code"]

    @property
    def experiments(self) -> list[list[NotebookNode]]:
        """Cells from each heading `## Experiment N.` up to the next one."""
        groups: list[list[NotebookNode]] = []
        for cell in self.cells:
            if re.match(r"## Experiment \d", cell.source):
                groups.append([])
            if groups:
                groups[-1].append(cell)
        return groups

    @property
    def setup(self) -> list[NotebookNode]:
        """Code cells before the first experiment."""
        first = self.experiments[0][0]
        return [cell for cell in self.cells[: self.cells.index(first)] if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return list(cell.metadata.get("tags", []))


def is_strict(cell: NotebookNode) -> bool:
    """Whether nbval compares this cell's outputs with the committed ones."""
    return IGNORES_OUTPUT not in tags(cell)


def printed(cell: NotebookNode, stream: str = "stdout") -> str:
    """Return what a cell's committed outputs hold of a stream."""
    return "".join(
        output.text
        for output in cell.outputs
        if output.output_type == "stream" and output.name == stream
    )
