"""Judge the frontier task: a reader's policy on traffic of a seed of the course.

    python labs/batching/frontier.py NOTEBOOK [--course-key-file FILE]

The cell with the line `# frontier: policy` answers from the sandbox that grading uses, one step
at a time, so it sees neither the traces nor this process. Traffic, machine and bonus are those of
the notebook's own cells.

A policy that knew a trace's seed could rebuild the trace and see its future. `due` tells it when a
request arrived, to the last bit, so it could test a seed; seeds are too many to try. The same key
gives the same traces again, hence the same bonus.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.gpu.frontier import refusal, run, trace_seeds
from labkit.grading.cells import read_cells
from labkit.reader.lab import load_lab
from labkit.reader.subject import Subject, Wrong, answer_of, in_child
from labkit.sandbox.process import Child, Limits, Surroundings

LAB = load_lab(Path(__file__).parent)
TRACES = 120
LIMITS = Limits(call_seconds=10.0, wall_seconds=900.0, cpu_seconds=600)
SALT = 0x5B3E_D914_7C60_2FA8


class Driven:
    """A reader's `policy` in its child. What is wrong with it is said with trace and step."""

    def __init__(self, student: Subject, fault_of: Any) -> None:
        """Ask `student`; `fault_of` is the notebook's own, and says what an answer lacks."""
        self._student, self._fault_of = student, fault_of
        self._trace = self._step = 0

    def counted(self, seeds: list[int]) -> Iterator[int]:
        """Give the traces' seeds one by one, and know by that which trace is played."""
        for self._trace, seed in enumerate(seeds, 1):
            self._step = 0
            yield seed

    def policy(
        self, budget: int, block: int, wishes: list[dict[str, Any]], now: float
    ) -> list[int]:
        """Ask it how many tokens each wish gets."""
        self._step += 1
        try:
            answer = self._student.call("policy", budget, block, wishes, now)
        except Wrong as wrong:  # its words show the wishes
            raise self._refusal(now, f"policy: {answer_of(wrong)}") from None
        fault = self._fault_of(answer, budget, [wish["count"] for wish in wishes])
        if fault:
            raise self._refusal(now, fault)
        return list(answer)

    def _refusal(self, now: float, cause: str) -> Wrong:
        place = f"trace {self._trace} of {TRACES}, step {self._step} at {now:.3f} s"
        return refusal(f"{place}: {cause}")


def seeds_of(seed: int) -> list[int]:
    """Return the traces' seeds of a seed of the course."""
    return trace_seeds(SALT, seed, TRACES)


def judge(source: str, seed: int) -> float:
    """Return the bonus of a policy's cell on the traffic of a seed.

    Raises:
        Wrong: the code raised, gave no list of counts within the budget, or its child was lost.
    """
    cells = read_cells(LAB.folder / "master.py", LAB)
    given = next(cell.source for cell in cells if "def traffic" in cell.source)
    machine: dict[str, Any] = {}
    exec(compile(given, "<given>", "exec", dont_inherit=True), machine)
    with Child(Surroundings(LAB.packages, LAB.withheld), LIMITS) as child:
        loaded = child.request({"op": "load", "cells": [("given", given), ("policy", source)]})
        if "error" in loaded:
            raise refusal(f"running the cell: {loaded['error']}")
        driven = Driven(Subject(in_child(child)), machine["fault_of"])
        return float(machine["report"](driven.policy, driven.counted(seeds_of(seed))))


if __name__ == "__main__":
    run(LAB, __doc__.partition("\n")[0], judge)
