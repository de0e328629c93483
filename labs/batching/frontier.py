"""Judge the frontier task: a reader's policy on traffic of a seed of the course.

    python labs/batching/frontier.py NOTEBOOK [--course-key-file FILE]

The cell with the line `# frontier: policy` answers from the sandbox that grading uses, one step
at a time. Traffic, machine and bonus are those of the notebook's own cells.
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
        student = Subject(in_child(child))
        loaded = child.request({"op": "load", "cells": [("given", given), ("policy", source)]})
        if "error" in loaded:
            raise Wrong(f"running the cell: {loaded['error']}")

        def policy(budget: int, block: int, wishes: list[dict[str, Any]], now: float) -> list[int]:
            answer = student.call("policy", budget, block, wishes, now)
            counts = [wish["count"] for wish in wishes]
            whole = type(answer) is list and all(type(n) is int and n >= 0 for n in answer)
            asked = f"called policy for {len(counts)} wishes at {now:.3f} s, counts {counts}"
            if not whole or len(answer) != len(counts) or not 0 < sum(answer) <= budget:
                expected = f"{len(counts)} whole numbers, in all 1 to {budget}"
                student.fail(f"{asked}\nexpected {expected}\ngot {answer!r:.300}")
            if any(n > count for n, count in zip(answer, counts, strict=True)):
                student.fail(f"{asked}\nexpected at most these\ngot {answer!r:.300}")
            return list(answer)

        return float(machine["report"](policy, range(seed * TRACES, (seed + 1) * TRACES)))


if __name__ == "__main__":
    run(LAB, __doc__.partition("\n")[0], judge)
