"""What a solution earns that was made for something else: another variant, or quire itself.

Every variant's solution lies in the repository, and quire's own code does, too. This measures what
either is worth where the course's key chose a variant; the instructor's page shows the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from labkit.author.verify import load_mutants
from labkit.grading.cells import reference_cells
from labkit.grading.grade import Grader
from labkit.grading.report import table
from labkit.reader.lab import Lab, Task
from labkit.reader.notebook import Submission

OWN = "quire's own"


@dataclass(frozen=True)
class Earned:
    """Points of the tests that a solution earns, graded as a variant."""

    solution: str  # the variant that it is of, or OWN
    graded_as: str
    points: float


def across(lab: Lab, *, unsafe_local: bool = False) -> Iterator[Earned]:
    """Grade the master of each variant as each other one, and quire's own code as each."""
    masters = {variant: reference_cells(lab, variant) for variant in lab.variants}
    own = {m.variant: m.cells for m in load_mutants(lab) if m.at_most is not None}
    for graded_as, right in masters.items():
        grader = Grader(lab, graded_as, unsafe_local=unsafe_local, smaller=0)
        solutions = {name: cells for name, cells in masters.items() if name != graded_as}
        if graded_as in own:
            solutions[OWN] = right | own[graded_as]
        for name, cells in solutions.items():
            tasks = [task for task in lab.tasks if _differs(lab, task, cells, right)]
            report = grader.grade(Submission(cells=dict(cells)), tasks)
            lost = sum(task.points - report.task_score(task.name) for task in tasks)
            yield Earned(name, graded_as, lab.automatic_points - lost)


def _differs(lab: Lab, task: Task, cells: dict[str, str], right: dict[str, str]) -> bool:
    """Whether a task's own cell, or one that it needs, is another than the right one."""
    needed = (_differs(lab, lab.task(name), cells, right) for name in task.needs)
    return cells[task.name] != right[task.name] or any(needed)


def across_table(lab: Lab, found: list[Earned]) -> str:
    """A row a solution, a column a variant that it is graded as; `=` where it is the right one."""
    points = {(earned.solution, earned.graded_as): earned.points for earned in found}
    of = f"/{lab.automatic_points:g}"
    names = [*lab.variants, *([OWN] if any(earned.solution == OWN for earned in found) else [])]
    rows = [
        [
            name if name == OWN else f"master.py, {name}",
            *("=" if name == to else f"{points[name, to]:g}" for to in lab.variants),
        ]
        for name in names
    ]
    return table(["", *(f"as {variant} {of}" for variant in lab.variants)], rows)
