"""A reader's notebook as JSON: finding a cell of it, and writing it where it is looked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Notebook = dict[str, Any]


def cell(notebook: Notebook, name: str) -> dict[str, Any]:
    """The cell of a task or of a question."""
    (found,) = [c for c in notebook["cells"] if c["id"] in (f"task-{name}", f"written-{name}")]
    made: dict[str, Any] = found
    return made


def source(of: dict[str, Any]) -> str:
    """A cell's text."""
    return "".join(of["source"])


def write(folder: Path, notebook: Notebook, name: str = "mine.ipynb") -> Path:
    """Write a notebook; return where it lies."""
    path = folder / name
    path.write_text(json.dumps(notebook), "utf8")
    return path
