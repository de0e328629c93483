"""Taking the task cells out of whatever a reader hands in.

Only task cells count. A cell is found by its `# task: name` line, or failing that by the
metadata it was released with, so that a notebook that went through another tool still
counts. What cannot be used gets a reason, and the rest is graded.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.lab import Lab

TASK_LINE = re.compile(r"^\s*#\s*task:\s*([\w-]+)\s*$", re.MULTILINE)
WRITTEN_LINE = re.compile(r"<!--\s*written:\s*([\w-]+)\s*-->")
MAGIC = re.compile(r"^(\s*)[%!]", re.MULTILINE)
MAX_BYTES = 512 << 20
MAX_SOURCE = 200_000  # characters of one task cell


@dataclass
class Submission:
    """The task cells and written answers of one notebook.

    `problems` holds, by task, why its cell cannot be graded; `notes` what the reader
    should know though nothing is lost by it.
    """

    cells: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    variant: str | None = None  # as the notebook names it


def read_submission(path: Path, lab: Lab) -> Submission:
    """Read a notebook; never raises for what a reader may have done to it."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return _unreadable(lab, f"the file is larger than {MAX_BYTES >> 20} MiB")
        notebook = json.loads(path.read_bytes())
        cells = notebook["cells"]
        if type(cells) is not list:
            raise TypeError
    except OSError as error:
        return _unreadable(lab, f"the file cannot be read: {error.strerror}")
    except (ValueError, RecursionError):
        return _unreadable(lab, "the file is not a notebook: it is not valid JSON")
    except (KeyError, TypeError):
        return _unreadable(lab, "the file is not a notebook: it holds no list of cells")
    return collect(lab, notebook, cells)


def _unreadable(lab: Lab, reason: str) -> Submission:
    return Submission(problems={task.name: reason for task in lab.tasks})


def collect(lab: Lab, notebook: dict[str, Any], cells: list[Any]) -> Submission:
    """Take what is to be graded out of a notebook's JSON."""
    submission = Submission(variant=_dig(notebook, "metadata", "labkit", "variant"))
    names = {task.name for task in lab.tasks}
    by_metadata: dict[str, str] = {}
    for cell in cells:
        source = _source(cell)
        if source is None:
            continue
        tagged = _dig(cell, "metadata", "labkit", "task")
        if cell.get("cell_type") != "code":
            _collect_written(lab, submission, cell, source)
            continue
        line = TASK_LINE.search(source)
        name = line.group(1) if line else tagged
        if name not in names:
            if line:
                submission.notes.append(f"a cell says `# task: {name}`, which is no task here")
            continue
        if line is None:
            by_metadata.setdefault(name, source)
        elif name in submission.cells:
            submission.notes.append(f"several cells say `# task: {name}`: the last one counts")
            submission.cells[name] = source
        else:
            submission.cells[name] = source
    for name, source in by_metadata.items():
        submission.cells.setdefault(name, source)
    for task in lab.tasks:
        if task.name not in submission.cells:
            submission.problems[task.name] = (
                f"no cell with the line `# task: {task.name}` in the notebook"
            )
        else:
            _prepare(submission, task.name)
    return submission


def _prepare(submission: Submission, name: str) -> None:
    """Set notebook magics aside and find what cannot be compiled."""
    source, count = MAGIC.subn(r"\1pass  # ", submission.cells[name])
    if count:
        submission.notes.append(f"{name}: {count} line(s) starting with % or ! are left out")
    submission.cells[name] = source
    reason = None
    if len(source) > MAX_SOURCE:
        reason = f"the cell has {len(source)} characters; {MAX_SOURCE} are allowed"
    else:
        try:
            compile(source, f"<cell {name}>", "exec", dont_inherit=True)
        except SyntaxError as error:
            reason = f"syntax error in line {error.lineno}: {error.msg}"
        except (ValueError, RecursionError, MemoryError) as error:
            reason = f"the cell cannot be compiled: {error}"
    if reason is not None:
        del submission.cells[name]
        submission.problems[name] = reason


def _collect_written(lab: Lab, submission: Submission, cell: Any, source: str) -> None:
    line = WRITTEN_LINE.search(source)
    name = line.group(1) if line else _dig(cell, "metadata", "labkit", "written")
    if any(question.name == name for question in lab.written):
        submission.written[str(name)] = WRITTEN_LINE.sub("", source).strip()


def _source(cell: Any) -> str | None:
    """A cell's text; notebooks store it as one string or as a list of lines."""
    source = cell.get("source") if type(cell) is dict else None
    if type(source) is list and all(type(line) is str for line in source):
        return "".join(source)
    return source if type(source) is str else None


def _dig(value: Any, *keys: str) -> str | None:
    for key in keys:
        value = value.get(key) if type(value) is dict else None
    return value if type(value) is str else None
