"""Judge the frontier task: a reader's eviction policy on traces of a seed of the course.

    python labs/paged-kv-cache/frontier.py NOTEBOOK [--course-key-file FILE]

The cell with the line `# frontier: policy` runs in the sandbox that grading uses, and is driven
from here request by request, so it sees neither the traces nor this process. Traces, baselines
and the bonus are those of the notebook's own cells.

A policy that knew a trace's seed could rebuild the trace and see its future. So the blocks' numbers
come from the system's randomness (`make_trace`), and seeds are too many to try. The same key gives
the same kinds and lengths of requests again, hence the same bonus, with other numbers.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from labkit.gpu.frontier import refusal, run, trace_seeds
from labkit.grading.cells import read_cells
from labkit.reader.lab import load_lab
from labkit.reader.subject import Subject, Wrong, answer_of, in_child
from labkit.reader.values import describe
from labkit.sandbox.process import Child, Limits, Surroundings

LAB = load_lab(Path(__file__).parent)
TRACES = 120
LIMITS = Limits(call_seconds=10.0, wall_seconds=900.0, cpu_seconds=600)
SALT = 0xC1F7_52DB_0E96_A43D
MOST_SHOWN = 60  # characters of an answer that is refused


class Driven:
    """A reader's `Policy` in its child. What is wrong with it is said with trace and request."""

    def __init__(self, student: Subject, trace: int) -> None:
        """Make the policy for a trace, of which 1 is the first."""
        self._trace, self._request = trace, 1
        try:
            self._policy = student.new("Policy")
        except Wrong as wrong:
            raise self._refusal(f"Policy(): {answer_of(wrong)}") from None

    def served(self, client: str, blocks: list[int], found: int) -> None:
        """Tell it of a request."""
        self._ask("served", client, blocks, found)
        self._request += 1

    def victim(self, blocks: list[int]) -> int:
        """Ask it for a block."""
        block = self._ask("victim", blocks)
        if type(block) is not int or block not in blocks:
            among = f"which is not one of the {len(blocks)} blocks it was given"
            raise self._refusal(f"victim returned {describe(block, MOST_SHOWN)}, {among}")
        return int(block)

    def _ask(self, name: str, *args: Any) -> Any:
        try:
            return self._policy.call(name, *args)
        except Wrong as wrong:  # its words show every block of the latest calls
            raise self._refusal(f"{name}: {answer_of(wrong)}") from None

    def _refusal(self, cause: str) -> Wrong:
        return refusal(f"trace {self._trace} of {TRACES}, request {self._request}: {cause}")


def seeds_of(seed: int) -> list[int]:
    """Return the traces' seeds of a seed of the course."""
    return trace_seeds(SALT, seed, TRACES)


def judge(source: str, seed: int) -> float:
    """Return the bonus of a policy's cell on the traces of a seed.

    Raises:
        Wrong: the code raised, gave no candidate, or its child was lost.
    """
    namespace: dict[str, Any] = {}
    cells = [cell.source for cell in read_cells(LAB.folder / "master.py", LAB)]
    given = next(cell for cell in cells if "def make_trace" in cell)
    report = next(cell for cell in cells if "def report" in cell)
    for cell in (given, report.partition("\nbonus = ")[0]):
        exec(compile(cell, "<given>", "exec", dont_inherit=True), namespace)
    with Child(Surroundings(LAB.packages, LAB.withheld), LIMITS) as child:
        loaded = child.request({"op": "load", "cells": [("given", given), ("policy", source)]})
        if "error" in loaded:
            raise refusal(f"running the cell: {loaded['error']}")
        student, traces = Subject(in_child(child)), itertools.count(1)
        return float(namespace["report"](lambda: Driven(student, next(traces)), seeds_of(seed)))


if __name__ == "__main__":
    run(LAB, __doc__.partition("\n")[0], judge)
