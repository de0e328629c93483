"""Grading: the hidden tests run here, the reader's code runs in a child.

Each task is judged with the reference's code for the tasks it needs, so that an early slip
does not sink the rest; a test marked `whole` runs on the reader's own cells throughout.
Tests are functions `test_*(student, variant)`, Hypothesis or plain; each starts from freshly
loaded cells.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from labkit.build import given_cells, reference_cells
from labkit.lab import HiddenTest, Lab, Task, import_hidden
from labkit.notebook import Submission
from labkit.report import BROKEN, Outcome, Report
from labkit.sandbox import Child, ChildLost, Limits
from labkit.subject import Subject, in_child

EXAMPLES = 25  # random inputs that a property is tried on
MAX_LOST = 3  # children that may be lost in one task before its other tests are given up


@dataclass
class Grader:
    """Grades submissions of one variant of a lab.

    Args:
        lab: the lab.
        variant: which variant; None for the public default.
        seed: of the random inputs.
        unsafe_local: run without bubblewrap.
    """

    lab: Lab
    variant: str | None = None
    seed: int = 0
    unsafe_local: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.variant = self.lab.variant(self.variant)
        self._given = given_cells(self.lab, self.variant)
        self._reference = reference_cells(self.lab, self.variant)

    def grade(self, submission: Submission, tasks: Iterable[Task] | None = None) -> Report:
        """Judge the tasks of a submission (all of them, or those named)."""
        report = Report(self.lab, str(self.variant), notes=list(submission.notes))
        report.unsafe = self.unsafe_local
        report.written = dict(submission.written)
        for task in self.lab.tasks if tasks is None else tasks:
            report.outcomes += self._grade_task(task, submission)
        return report

    def _grade_task(self, task: Task, submission: Submission) -> list[Outcome]:
        if task.name in submission.problems:
            reason = submission.problems[task.name]
            return [Outcome(task, test, "", 0.0, reason) for test in task.tests]
        functions = _functions(self.lab, task)
        outcomes: list[Outcome] = []
        child: Child | None = None
        lost = 0
        try:
            for test in task.tests:
                function = functions[test.name]
                title = " ".join((function.__doc__ or test.name).split())
                if lost >= MAX_LOST:
                    reason = f"not run: {lost} tests of this task before it ended the process"
                    outcomes.append(Outcome(task, test, title, 0.0, reason))
                    continue
                if child is None:
                    child = Child(self.lab.packages, self.limits, unsafe_local=self.unsafe_local)
                complaint = self._run(child, task, test, submission, function)
                points = test.points if complaint is None else 0.0
                outcomes.append(Outcome(task, test, title, points, complaint))
                if child.is_lost:
                    child.close()
                    child, lost = None, lost + 1
        finally:
            if child is not None:
                child.close()
        return outcomes

    def _cells(
        self, task: Task, test: HiddenTest, submission: Submission
    ) -> list[tuple[str, str]] | str:
        """The cells a test runs on, or why there are none."""
        cells = list(self._given)
        for needed in task.needs:
            if not test.whole:
                cells.append((needed, self._reference[needed]))
            elif needed in submission.problems:
                return f"your {needed} is needed here: {submission.problems[needed]}"
            else:
                cells.append((needed, submission.cells[needed]))
        return [*cells, (task.name, submission.cells[task.name])]

    def _run(
        self,
        child: Child,
        task: Task,
        test: HiddenTest,
        submission: Submission,
        function: Callable[..., None],
    ) -> str | None:
        """Run one test; return None if it passes, else the reason in words."""
        cells = self._cells(task, test, submission)
        if isinstance(cells, str):
            return cells
        try:
            reply = child.request({"op": "load", "cells": cells})
        except ChildLost as lost:
            return f"running the cell: {lost}"
        if "error" in reply:
            return f"running the cell: {reply['error']}"
        subject = Subject(in_child(child))
        try:
            _seeded(function, self.seed)(student=subject, variant=str(self.variant))
        except Exception as error:
            # Hypothesis may wrap the complaint (a flaky answer, several failures).
            return subject.last_complaint or f"{BROKEN}: {type(error).__name__}: {error}"
        return None


def _functions(lab: Lab, task: Task) -> dict[str, Callable[..., None]]:
    module = import_hidden(lab, task)
    return {
        name: value
        for name, value in vars(module).items()
        if name.startswith("test_") and inspect.isfunction(value)
    }


def hidden_test_names(lab: Lab, task: Task) -> set[str]:
    """Names of the test functions in a task's hidden file."""
    return set(_functions(lab, task))


@functools.cache  # Hypothesis lets a test have its settings once
def _with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Fix how a Hypothesis test is tried; a plain test is returned as it is."""
    if not hasattr(function, "hypothesis"):
        return function
    import hypothesis

    chosen = hypothesis.settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=False,
    )
    return chosen(function)


def _seeded(function: Callable[..., None], seed: int) -> Callable[..., None]:
    """Fix a test's random inputs."""
    prepared = _with_settings(function)
    if prepared is function and not hasattr(function, "hypothesis"):
        return function
    import hypothesis

    return hypothesis.seed(seed)(prepared)
