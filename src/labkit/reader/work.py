"""A reader's work in one lab, and the small file that holds it.

The file is JSON: the task cells, the written answers and which public checks passed. It
survives what a notebook does not: a Colab runtime that is gone, a closed browser, 200 MB of
output. `labkit.save` and `labkit.submit` write it, graders read it (`labkit.reader.notebook`).
Only the standard library is used.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.reader.lab import Lab, LabError, load_lab
from labkit.reader.notebook import (
    SUBMIT_FORMAT,
    TASK_LINE,
    WRITTEN_LINE,
    cell_source,
    collect,
    parse,
)


class SaveError(LabError):
    """The work cannot be found, read or written; the message says what to do."""


@dataclass
class Work:
    """What a reader has done in one lab."""

    lab: Lab
    variant: str
    cells: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    progress: dict[str, list[int]] = field(default_factory=dict)  # task: checks passed, checks

    def content(self) -> dict[str, Any]:
        """What the file holds."""
        return {
            "labkit": SUBMIT_FORMAT,
            "lab": self.lab.slug,
            "variant": self.variant,
            "cells": self.cells,
            "written": self.written,
            "progress": self.progress,
        }

    def write(self, path: Path) -> None:
        """Write the file so that a crash leaves the old one or the new one.

        Raises:
            SaveError: the folder cannot be written to.
        """
        text = json.dumps(self.content(), indent=1, ensure_ascii=False) + "\n"
        waiting = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            waiting.write_text(text, "utf8")
            waiting.replace(path)
        except OSError as error:
            raise SaveError(f"{path} cannot be written: {error.strerror}") from None

    def missing(self) -> list[str]:
        """Sentences about what a hand-in of this work lacks."""
        found = []
        # Read as the grader will read it.
        submission = parse(json.dumps(self.content()).encode(), self.lab)
        for task in self.lab.tasks:
            name = task.name
            if name not in self.cells:
                found.append(f"{name}: no cell says `# task: {name}` ({task.points:g} points)")
            elif untouched(name, self.cells[name]):
                found.append(f"{name}: not written yet ({task.points:g} points)")
            elif name in submission.problems:
                found.append(f"{name}: {submission.problems[name]}")
            elif name not in self.progress:
                found.append(f'{name}: its public check has not run: labkit.check("{name}")')
            elif self.progress[name][0] < self.progress[name][1]:
                passed, total = self.progress[name]
                found.append(f"{name}: {passed} of {total} public checks passed when last run")
        found += [
            f"{question.name}: no written answer ({question.points:g} points)"
            for question in self.lab.written
            if question.name not in self.written
        ]
        return found


def untouched(task: str, source: str) -> bool:
    """Whether a task cell still holds what the starter, ours or nbgrader's, put there."""
    stubs = (f'raise NotImplementedError("write {task}")', "# YOUR CODE HERE")
    return any(stub in source for stub in stubs)


def work_of(lab: Lab, notebook: dict[str, Any], ran: list[str] | None = None) -> Work:
    """Take the work out of a notebook; of a task cell in `ran`, the version run last counts."""
    submission = collect(lab, notebook, notebook["cells"])
    work = Work(lab, submission.variant or lab.default_variant, written=submission.written)
    for cell in [*notebook["cells"], *({"source": source} for source in ran or [])]:
        source = cell_source(cell) or ""
        line = TASK_LINE.search(source)
        if line and line.group(1) in {task.name for task in lab.tasks}:
            work.cells[line.group(1)] = source
    for name, source in submission.cells.items():  # found by metadata alone
        work.cells.setdefault(name, source)
    return work


def read_work(path: Path) -> Work:
    """Read a file that `save` or `submit` wrote.

    Raises:
        SaveError: there is none, or it is something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise SaveError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise SaveError(f"{path} is damaged: it is not valid JSON") from None
    if type(content) is not dict or "labkit" not in content or type(content.get("lab")) is not str:
        raise SaveError(f"{path} is not a file of `labkit save`")
    lab = load_lab(content["lab"], path.parent)

    def texts(key: str) -> dict[str, str]:
        found = content.get(key)
        entries = found.items() if type(found) is dict else ()
        return {name: text for name, text in entries if type(text) is str}

    raw = content.get("progress")
    counts = raw.items() if type(raw) is dict else ()
    progress = {name: pair for name, pair in counts if type(pair) is list and len(pair) == 2}
    variant = content.get("variant")
    chosen = variant if variant in lab.variants else lab.default_variant
    return Work(lab, chosen, texts("cells"), texts("written"), progress)


def keep_what_was_saved(work: Work, saved: Work) -> list[str]:
    """Bring over what `saved` has and `work` does not; say what that was.

    A starter opened anew must not wipe out an evening's save.
    """
    said = []
    for name, source in saved.cells.items():
        if name not in work.cells or untouched(name, work.cells[name]):
            if not untouched(name, source):
                said.append(f"{name}: not written here, so the saved version stays")
            work.cells[name] = source
    for name, answer in saved.written.items():
        if name not in work.written:
            work.written[name] = answer
            said.append(f"{name}: no answer here, so the saved one stays")
    work.progress = saved.progress | work.progress
    return said


def put_back(notebook: dict[str, Any], work: Work) -> tuple[dict[str, Any], list[str]]:
    """Return a copy of a notebook with the work in it, and the names that were put back."""
    made = copy.deepcopy(notebook)
    names: list[str] = []
    for role, texts in (("task", work.cells), ("written", work.written)):
        for name, text in texts.items():
            if role == "task" and untouched(name, text):
                continue
            cell = _find_cell(made, role, name)
            if cell is None:
                kind = "code" if role == "task" else "markdown"
                cell = {"cell_type": kind, "metadata": {"labkit": {role: name}}}
                if kind == "code":
                    cell |= {"execution_count": None, "outputs": []}
                if made.get("nbformat_minor", 4) >= 5:
                    cell["id"] = f"{role}-{name}"
                made["cells"].append(cell)
            cell["source"] = text if role == "task" else f"<!-- written: {name} -->\n{text}"
            names.append(name)
    return made, names


def _find_cell(notebook: dict[str, Any], role: str, name: str) -> dict[str, Any] | None:
    line = TASK_LINE if role == "task" else WRITTEN_LINE
    tagged = None
    for cell in notebook["cells"]:
        found = line.search(cell_source(cell) or "")
        if found and found.group(1) == name:
            matched: dict[str, Any] = cell
            return matched
        metadata = cell.get("metadata", {}).get("labkit", {}) if type(cell) is dict else {}
        if metadata.get(role) == name and tagged is None:
            tagged = cell
    return tagged


def unsaved_cells(on_disk: Work, work: Work) -> list[str]:
    """Say where the notebook's file holds another version than the one run last."""
    return [
        f"{name}: the version you ran last is kept, the notebook's file holds another"
        for name, source in work.cells.items()
        if on_disk.cells.get(name, source).strip() != source.strip()
    ]


def summary(work: Work, target: Path, kind: str) -> list[str]:
    """What to tell the reader about a file just written."""
    done = sum(not untouched(name, source) for name, source in work.cells.items())
    lines = [
        f"wrote {target} ({target.stat().st_size:,} bytes): {done} of {len(work.lab.tasks)} tasks, "
        f"{len(work.written)} of {len(work.lab.written)} written answers"
    ]
    if kind == "submit":
        missing = work.missing()
        lines += ["still missing or doubtful:", *(f"  - {words}" for words in missing)]
        if not missing:
            lines[-1] = "nothing is missing: hand in this file"
    return lines


def load_notebook(path: Path) -> dict[str, Any]:
    """Read a notebook's JSON.

    Raises:
        SaveError: no such file, or not a notebook.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise SaveError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise SaveError(f"{path} is not a notebook: it is not valid JSON") from None
    if type(content) is not dict or type(content.get("cells")) is not list:
        raise SaveError(f"{path} is not a notebook: it holds no list of cells")
    return content
