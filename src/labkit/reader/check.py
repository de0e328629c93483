"""`labkit.check`: the public checks that a reader runs in the notebook.

A check calls the reader's function on a few fixed inputs and says in words what was
called, what was expected and what came back. It judges returned values, so nothing that
is printed counts. In a notebook the task's cell runs alone, as grading runs it
(`labkit.reader.alone`), so what only the notebook remembers is missed here and not weeks later;
and the outcome and the cells run so far are kept (`labkit.reader.save`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from labkit.reader.alone import built_on, namespace_of, where
from labkit.reader.cells import task_of
from labkit.reader.lab import Lab, Task, import_checks, load_lab
from labkit.reader.save import keep_progress
from labkit.reader.session import cells_run
from labkit.reader.subject import Subject, Wrong, in_notebook
from labkit.reader.time_limit import SECONDS, TooSlow, time_limit, too_slow
from labkit.reader.titles import title_of
from labkit.reader.work import Work, untouched, work_of

Checks = list[Callable[[Subject, str], None]]
Code = dict[str, Any] | Subject  # a notebook's names, or code that runs elsewhere


class CheckFailed(AssertionError):
    """A public check does not pass. Notebooks show the words alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def check(task: str, namespace: dict[str, Any] | None = None) -> None:
    """Run the public checks of a task and print the outcome.

    Args:
        task: the task's name, as in its `# task:` line.
        namespace: where the reader's functions are; by default where `check` is called. That of a
            notebook knows which cells were run: the task's own is run again, alone.

    Raises:
        CheckFailed: a check does not pass, or grading could not take the cell as it is; the
            message says which and why, in words.
        LabError: no such task.
    """
    if namespace is None:
        namespace = sys._getframe(1).f_globals
    declared = namespace.get("LAB")
    if not isinstance(declared, str):
        raise CheckFailed("run the notebook's first cell: it sets LAB, the name of this lab")
    slug, _, variant = declared.partition("/")
    lab = load_lab(slug)
    wanted = lab.task(task)
    bench = _Bench(lab, lab.variant(variant or None))
    ran = cells_run(namespace)
    if ran is None:
        faults: list[str] = []
        compiled = False
        passed, lines = bench.run(wanted, namespace)
    else:
        work = work_of(lab, {"cells": []}, ran)
        faults, code = _alone(work, wanted)
        compiled = lab.interpreted and "@triton.jit" in work.cells.get(wanted.name, "")
        passed, lines = bench.run(wanted, code) if code is not None else (0, [])
        if faults or passed < bench.count(wanted):
            lines += _earlier(bench, work, wanted)
    total = bench.count(wanted)
    kept = keep_progress(namespace, wanted.name, 0 if faults else passed, total)
    lines = [*(f"✗ {words}" for words in faults), *lines, *([kept] if kept else [])]
    head = f"{task}: {passed} of {total} public checks pass"
    if faults:
        raise CheckFailed("\n".join([f"{head}; grading would not take the cell as it is", *lines]))
    if passed < total:
        raise CheckFailed("\n".join([head, *lines]))
    more = " and compiles the kernels, as a cell at the notebook's end does" if compiled else ""
    print("\n".join([f"{head}; grading tries other inputs{more}", *lines]))


class _Bench:
    """Runs the public checks of a lab's tasks."""

    def __init__(self, lab: Lab, variant: str) -> None:
        self._variant = variant
        self._checks: dict[str, Checks] = import_checks(lab).CHECKS

    def count(self, task: Task) -> int:
        """How many public checks a task has."""
        return len(self._checks[task.name])

    def run(self, task: Task, code: Code) -> tuple[int, list[str]]:
        """Check what a namespace holds; return how many checks pass, and a line or more each."""
        lines: list[str] = []
        passed = 0
        deadline = time.monotonic() + SECONDS
        for function in self._checks[task.name]:
            subject = code if isinstance(code, Subject) else _here(code)
            title = title_of(function, self._variant)
            try:
                with time_limit(deadline - time.monotonic()):
                    function(subject, self._variant)
                passed += 1
                lines.append(f"✓ {title}")
            except Wrong as wrong:
                lines += [f"✗ {title}", *(f"    {line}" for line in str(wrong).split("\n"))]
            except TooSlow:
                lines += [f"✗ {title}", f"    {too_slow()}"]
                break
        return passed, lines


def _alone(work: Work, task: Task) -> tuple[list[str], Code | None]:
    """What is wrong with a task's cell, and its names after it has run alone, if it does."""
    name = task.name
    if name not in work.cells:
        words = (
            f"no cell with the line `# task: {name}` has been run: grading finds it by that line"
        )
        names = [one.name for one in work.lab.tasks]
        said = dict.fromkeys(filter(None, (task_of(source, work.lab) for source in work.ran)))
        slips = [
            f"a cell says `# task: {n}`, which is no task here" for n in said if n not in names
        ]
        return [words, *slips], None
    faults = work.faults(name)
    cells = work.as_graded().cells
    if name not in cells:  # it does not compile
        return faults, None
    try:
        if work.lab.interpreted:
            return faults, _elsewhere(work.lab, task, cells)
        with time_limit():
            return faults, namespace_of(work.lab, task, cells)
    except KeyboardInterrupt:
        raise
    except Wrong as wrong:
        return [*faults, f"the cell, run alone: {wrong}"], None
    except TooSlow:
        return [*faults, f"the cell, run alone: {too_slow()}"], None
    except BaseException as error:  # exit included
        return [*faults, f"the cell, run alone: {where(error)}"], None


def _here(namespace: dict[str, Any]) -> Subject:
    """The names of a notebook's own process."""
    return Subject(in_notebook(namespace, (TooSlow,)), in_full=True)


def _elsewhere(lab: Lab, task: Task, cells: Mapping[str, str]) -> Subject:
    """The cells of a lab of kernels, loaded in the process that interprets them."""
    from labkit.reader import kernel_child  # no other lab needs a process here

    names = [name for name in [*built_on(lab, task), task.name] if name in cells]
    return kernel_child.served(lab, {name: cells[name] for name in names})


def _earlier(bench: _Bench, work: Work, task: Task) -> list[str]:
    """Lines about the tasks whose code runs here and that are at fault themselves."""
    lines = []
    for name in built_on(work.lab, task):
        if name not in work.cells:
            words = "has no cell that was run"
        elif untouched(name, work.cells[name]):
            words = "is not written yet"
        else:
            earlier = work.lab.task(name)
            faults, code = _alone(work, earlier)
            passed = bench.run(earlier, code)[0] if code is not None else 0
            if passed == bench.count(earlier) and not faults:
                continue
            words = f"passes {passed} of its {bench.count(earlier)} public checks"
            words += f" ({faults[0]})" if faults else ""
        lines.append(f"→ {name}, whose code runs here, {words}: its fault shows here, too")
    return lines
