"""A reader's work in one lab, and the small file that holds it.

The file is JSON: the task cells, the written answers, the frontier cells that differ from the
starter's and which public checks passed. It survives what a notebook does not: a Colab runtime that
is gone, a closed browser, 200 MB of output. `labkit.save` and `labkit.submit` write it, graders
read it (`labkit.reader.notebook`). Only the standard library is used.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.reader.alone import defined_again, faults
from labkit.reader.cells import (
    cell_source,
    frontier_cells,
    frontier_of,
    task_of,
    written_frontier,
    written_of,
)
from labkit.reader.lab import Lab, LabError, load_lab
from labkit.reader.notebook import SUBMIT_FORMAT, Submission, find, parse, why_not_python


class SaveError(LabError):
    """The work cannot be found, read or written; the message says what to do.

    Notebooks show the words alone, without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


@dataclass
class Work:
    """What a reader has done in one lab.

    `cells`, `written` and `frontier` are handed in; `others`, the notebook's other cells, and
    `ran`, what was run in the order of the runs, say only what is wrong with them.
    """

    lab: Lab
    variant: str
    cells: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    frontier: dict[str, str] = field(default_factory=dict)
    progress: dict[str, list[int]] = field(default_factory=dict)  # task: checks passed, checks
    others: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # on how the cells were found

    def content(self) -> dict[str, Any]:
        """What the file holds."""
        return {
            "labkit": SUBMIT_FORMAT,
            "lab": self.lab.slug,
            "variant": self.variant,
            "cells": self.cells,
            "written": self.written,
            "frontier": self.frontier,
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

    def as_graded(self) -> Submission:
        """The task cells as the grader will read them, and why it cannot use the others."""
        return parse(json.dumps(self.content()).encode(), self.lab)

    def faults(self, name: str) -> list[str]:
        """Sentences about what grading would not find as the notebook has it; see `alone`."""
        task, submission = self.lab.task(name), self.as_graded()
        if name in submission.problems:
            return [submission.problems[name]]
        found = faults(self.lab, task, submission.cells, self.others)
        if task_of(self.cells[name], self.lab) == name:
            found += defined_again(self.lab, task, self.ran)
        return found

    def missing(self) -> list[str]:
        """Sentences about what a hand-in of this work lacks."""
        found = list(self.notes)
        for task in self.lab.tasks:
            name = task.name
            if name not in self.cells:
                found.append(f"{name}: no cell says `# task: {name}` ({task.points:g} points)")
                continue
            if untouched(name, self.cells[name]):
                found.append(f"{name}: not written yet ({task.points:g} points)")
                continue
            wrong = self.faults(name)
            found += [f"{name}: {words}" for words in wrong]
            if name not in self.progress and not wrong:
                found.append(
                    f"{name}: its public check has not run since the cell changed: "
                    f'labkit.check("{name}")'
                )
            elif name in self.progress and self.progress[name][0] < self.progress[name][1]:
                passed, total = self.progress[name]
                found.append(f"{name}: {passed} of {total} public checks passed when last run")
        found += [
            f"{question.name}: no written answer ({question.points:g} points)"
            for question in self.lab.written
            if question.name not in self.written
        ]
        found += [
            f"frontier {name}: {reason}"
            for name, source in self.frontier.items()
            if (reason := why_not_python(source, name))
        ]
        if self.frontier:
            noted = {note.split(":")[0] for note in self.notes}
            found += [
                f"frontier {name}: as in the starter"
                for name in self.lab.frontier
                if name not in self.frontier and f"frontier {name}" not in noted
            ]
        return found


def untouched(task: str, source: str) -> bool:
    """Whether a task cell still holds what the starter, ours or nbgrader's, put there."""
    stubs = (f'raise NotImplementedError("write {task}")', "# YOUR CODE HERE")
    return any(stub in source for stub in stubs)


def work_of(lab: Lab, notebook: dict[str, Any], ran: list[str] | None = None) -> Work:
    """Take the work out of a notebook; of a task cell in `ran`, the version run last counts.

    A cell that has lost its task line is known by its metadata or id, in `ran` by being the same.
    """
    ran = ran or []
    submission = find(lab, notebook, notebook["cells"])
    known = {source: name for name, source in submission.cells.items()}
    cells = dict(submission.cells)
    others: dict[str, None] = {}  # in order, each once
    code = [
        source for cell in notebook["cells"] if _is_code(cell) and (source := cell_source(cell))
    ]
    for source in [*code, *ran]:
        name = task_of(source, lab)
        name = name if any(task.name == name for task in lab.tasks) else known.get(source)
        if name is None and source.strip() != lab.given.strip():
            others[source] = None
        elif name is not None and source in ran:
            cells[name] = source
    frontier = frontier_cells([*notebook["cells"], *({"source": source} for source in ran)])
    notes = dict.fromkeys(note for note in submission.notes if "`# task:" in note)
    lost = [name for name in lab.frontier if name not in frontier]
    return Work(
        lab,
        submission.variant or lab.default_variant,
        cells,
        submission.written,
        written_frontier(frontier, lab),
        others=[*others],
        ran=ran,
        notes=[*notes, *(f"frontier {name}: no cell says `# frontier: {name}`" for name in lost)],
    )


def _is_code(cell: Any) -> bool:
    return type(cell) is dict and cell.get("cell_type", "code") == "code"


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
    frontier = written_frontier(texts("frontier"), lab)
    return Work(lab, chosen, texts("cells"), texts("written"), frontier, progress)


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
    said += [
        f"frontier {name}: not written here, so the saved version stays"
        for name in saved.frontier
        if name not in work.frontier
    ]
    work.frontier = saved.frontier | work.frontier
    work.progress = saved.progress | work.progress
    return said


def progress_of(work: Work, saved: Work) -> dict[str, list[int]]:
    """The saved outcomes of checks, of those tasks alone whose cell is as it was then."""
    return {
        name: counts
        for name, counts in saved.progress.items()
        if saved.cells.get(name, "").strip() == work.cells.get(name, "").strip()
    }


def put_back(notebook: dict[str, Any], work: Work) -> tuple[dict[str, Any], list[str]]:
    """Return a copy of a notebook with the work in it, and the names that were put back."""
    made = copy.deepcopy(notebook)
    names: list[str] = []
    roles = {"task": work.cells, "written": work.written, "frontier": work.frontier}
    for role, texts in roles.items():
        for name, text in texts.items():
            if role == "task" and untouched(name, text):
                continue
            cell = _find_cell(work.lab, made, role, name)
            if cell is None:
                kind = "markdown" if role == "written" else "code"
                cell = {"cell_type": kind, "metadata": {"labkit": {role: name}}}
                if kind == "code":
                    cell |= {"execution_count": None, "outputs": []}
                if made.get("nbformat_minor", 4) >= 5:
                    cell["id"] = f"{role}-{name}"
                made["cells"].append(cell)
            cell["source"] = f"<!-- written: {name} -->\n{text}" if role == "written" else text
            names.append(name)
    return made, names


def _find_cell(lab: Lab, notebook: dict[str, Any], role: str, name: str) -> dict[str, Any] | None:
    says = {
        "task": lambda source: task_of(source, lab),
        "written": written_of,
        "frontier": frontier_of,
    }[role]
    tagged = None
    for cell in notebook["cells"]:
        if says(cell_source(cell) or "") == name:
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


def summary(work: Work, target: Path, kind: str, doubts: Sequence[str] = ()) -> list[str]:
    """What to tell the reader about a file just written; `doubts` are more of what is missing."""
    done = sum(not untouched(name, source) for name, source in work.cells.items())
    lines = [
        f"wrote {target} ({target.stat().st_size:,} bytes): {done} of {len(work.lab.tasks)} tasks, "
        f"{len(work.written)} of {len(work.lab.written)} written answers"
        + (f", frontier: {', '.join(work.frontier)}" if work.frontier else "")
    ]
    if kind == "submit":
        missing = [*work.missing(), *doubts]
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
