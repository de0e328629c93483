"""Judge the frontier task: a reader's eviction policy on traces of a seed of the course.

    python labs/paged-kv-cache/frontier.py NOTEBOOK [--course-key-file FILE]

The cell with the line `# frontier: policy` runs in the sandbox that grading uses, and is driven
from here request by request, so it sees neither the traces nor this process. Traces, baselines
and the bonus are those of the notebook's own cells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labkit.gpu.frontier import run
from labkit.grading.cells import read_cells
from labkit.reader.lab import load_lab
from labkit.reader.subject import Subject, Wrong, in_child
from labkit.sandbox.process import Child, Limits, Surroundings

LAB = load_lab(Path(__file__).parent)
TRACES = 30
LIMITS = Limits(wall_seconds=900.0, cpu_seconds=600)


class Driven:
    """A reader's `Policy` in its child; an answer that is no candidate is a complaint."""

    def __init__(self, student: Subject) -> None:
        """Make the policy."""
        self._student = student
        self._policy = student.new("Policy")

    def served(self, client: str, blocks: list[int], found: int) -> None:
        """Tell it of a request."""
        self._policy.call("served", client, blocks, found)

    def victim(self, blocks: list[int]) -> int:
        """Ask it for a block."""
        block = self._policy.call("victim", blocks)
        if type(block) is not int or block not in blocks:
            self._student.fail(f"called .victim({blocks})\nexpected one of them\ngot {block!r}")
        return int(block)


def judge(source: str, seed: int) -> float:
    """Return the bonus of a policy's cell on the traces of a seed.

    Raises:
        Wrong: the code raised, gave no candidate, or its child was lost.
    """
    namespace: dict[str, Any] = {}
    given = next(
        cell.source
        for cell in read_cells(LAB.folder / "master.py", LAB)
        if "def make_trace" in cell.source
    )
    report = next(
        cell.source
        for cell in read_cells(LAB.folder / "master.py", LAB)
        if "def report" in cell.source
    )
    for cell in (given, report.partition("\nbonus = ")[0]):
        exec(compile(cell, "<given>", "exec", dont_inherit=True), namespace)
    with Child(Surroundings(LAB.packages, LAB.withheld), LIMITS) as child:
        loaded = child.request({"op": "load", "cells": [("given", given), ("policy", source)]})
        if "error" in loaded:
            raise Wrong(f"running the cell: {loaded['error']}")
        seeds = [seed * TRACES + number for number in range(TRACES)]
        return float(namespace["report"](lambda: Driven(Subject(in_child(child))), seeds))


if __name__ == "__main__":
    run(LAB, __doc__.partition("\n")[0], judge)
