"""Grading: the hidden tests run here, the reader's code runs in a child.

Each task is judged with the reference answering for the tasks it needs, so that an early slip
does not sink the rest; a test marked `whole` runs on the reader's own cells throughout, in a
child that has met nothing else. Tests are functions `test_*(student, variant)`, Hypothesis or
plain, which may also ask for `seed`; each starts from freshly loaded cells. Nothing that a
student wrote makes grading raise.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from labkit.grading.cells import given_cells, read_cells, reference_cells
from labkit.grading.predecessors import Relay, interface_of
from labkit.grading.report import BROKEN, Outcome, Report
from labkit.grading.tiers import of_tiers
from labkit.grading.variants import PUBLIC_SEED, CourseKey, choose
from labkit.reader.kernel_child import harness
from labkit.reader.lab import Lab, Task, import_hidden
from labkit.reader.notebook import Submission
from labkit.reader.subject import Subject, Transport, Wrong, in_child
from labkit.sandbox.process import Child, ChildLost, Limits, StartTooSlow, Surroundings

EXAMPLES = 25  # random inputs that a property is tried on
SMALLER = 100  # inputs tried after one that fails, for the smallest that does
MAX_LOST = 3  # children that may be lost in one task before its other tests are given up

Cells = list[tuple[str, str]]


@dataclass
class Grader:
    """Grades submissions of one variant of a lab.

    Args:
        lab: the lab.
        variant: which variant; None for the public default.
        seed: of all random inputs; a course key gives one (`labkit.grading.variants.choose`).
        unsafe_local: run without bubblewrap; every report then says so.
        limits: what a child may use.
        smaller: inputs tried for a smaller one where a property fails; none are needed where
            nobody reads the complaint.
        until_lost: end a task with the first test that fails; enough to know that one does.
        tiers: grade the tasks of these alone; () means all.
    """

    lab: Lab
    variant: str | None = None
    seed: int = PUBLIC_SEED
    unsafe_local: bool = False
    limits: Limits = field(default_factory=Limits)
    smaller: int = SMALLER
    until_lost: bool = False
    tiers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.variant = self.lab.variant(self.variant)
        self._surroundings = Surroundings(self.lab.packages, self.lab.withheld)
        self._given = given_cells(self.lab, self.variant)
        if self.lab.interpreted:
            self._given.insert(0, ("interpreter", harness()))
        self._reference = reference_cells(self.lab, self.variant)
        found = read_cells(self.lab.folder / "master.py", self.lab, self.variant)
        self._starters = {cell.name: cell.starter for cell in found if cell.kind == "task"}

    def grade(self, submission: Submission, tasks: Iterable[Task] | None = None) -> Report:
        """Judge the tasks of a submission (all of them, or those named)."""
        counted = of_tiers(self.lab, self.tiers)
        report = Report(counted, str(self.variant), notes=list(submission.notes))
        if submission.variant not in (None, self.variant):
            words = f"the notebook is of variant {submission.variant}, graded as {self.variant}"
            report.notes.append(words)
        report.unsafe = self.unsafe_local
        report.written = dict(submission.written)
        # A cell that ends its process is found out once, not again in the whole notebook.
        submission = replace(submission, problems=dict(submission.problems))
        clock = _Clock(self.limits.handin_seconds)
        for task in counted.tasks if tasks is None else tasks:
            report.outcomes += self._grade_task(task, submission, clock)
        return report

    def _grade_task(self, task: Task, submission: Submission, clock: _Clock) -> list[Outcome]:
        functions = _functions(self.lab, task)
        titles = {t.name: _title(functions[t.name]) for t in task.tests}
        if task.name in submission.problems:
            reason = submission.problems[task.name]
            return [Outcome(task, test, titles[test.name], 0.0, reason) for test in task.tests]
        found: dict[str, Outcome] = {}
        for whole in (False, True):
            tests = [test for test in task.tests if test.whole is whole]
            with _Bench(self, task, submission, whole, clock) as bench:
                for test in tests:
                    start = time.perf_counter()
                    complaint = bench.run(functions[test.name])
                    points = test.points if complaint is None else 0.0
                    seconds = time.perf_counter() - start
                    clock.left -= seconds
                    found[test.name] = Outcome(
                        task, test, titles[test.name], points, complaint, seconds
                    )
            if bench.fatal is not None:
                submission.problems[task.name] = bench.fatal
        return [found[test.name] for test in task.tests]

    def _start(self, clock: _Clock, helper: Relay | None = None) -> Child:
        wall = min(self.limits.wall_seconds, max(0.1, round(clock.left, 1)))
        limits = replace(self.limits, wall_seconds=wall)
        return Child(self._surroundings, limits, unsafe_local=self.unsafe_local, helper=helper)

    def _needed(self, task: Task) -> list[str]:
        """The tasks that a task's predecessors are made of, in the lab's order."""
        names = set(task.needs)
        for earlier in reversed(self.lab.tasks):
            if earlier.name in names:
                names |= set(earlier.needs)
        return [earlier.name for earlier in self.lab.tasks if earlier.name in names]


@dataclass
class _Clock:
    """The seconds that a hand-in may still hold its place in the class."""

    left: float


class _Enough(BaseException):
    """Ends a property's tries: Hypothesis lets through what is no `Exception`."""


class _Student(Subject):
    """The reader's code in a property: what was complained of last, and the tries left."""

    def __init__(self, transport: Transport, smaller: int) -> None:
        super().__init__(transport)
        self.complaint: str | None = None
        self._left = smaller

    def attempt(self, property_: Callable[[], None]) -> None:
        """Try the property on one input."""
        if self.complaint is not None:
            self._left -= 1
        try:
            property_()
        except Wrong as wrong:
            self.complaint = str(wrong)
            if self._left > 0:
                raise
        if self.complaint is not None and self._left <= 0:
            raise _Enough


class _Bench:
    """Runs the tests of one task: its children, and what was lost so far."""

    def __init__(
        self, grader: Grader, task: Task, submission: Submission, whole: bool, clock: _Clock
    ) -> None:
        self._grader, self._task, self._clock = grader, task, clock
        self._stack = ExitStack()
        self._child: Child | None = None
        self._relay: Relay | None = None
        self._lost = 0
        self._failed = False
        self._given_up = submission.problems.get(task.name)
        self.fatal: str | None = None  # why the reader's cell cannot even be loaded
        self._message: dict[str, Any] = {"op": "load", "readable": grader.lab.interpreted}
        cells: Cells = list(grader._given)
        if whole:
            for name in grader._needed(task):
                if name in submission.problems:
                    words = f"your {name} is needed here: {submission.problems[name]}"
                    self._given_up = self._given_up or words
                else:
                    cells.append((name, submission.cells[name]))
        elif task.needs:
            interface = interface_of({name: grader._starters[name] for name in task.needs})
            self._message["stand_ins"] = interface.stand_ins
            cells += interface.open
            reference = [(name, grader._reference[name]) for name in grader._needed(task)]
            self._interface, self._behind = interface, [*grader._given, *reference]
        self._has_stand_ins = bool(task.needs) and not whole
        own = cells[len(grader._given) :] if whole else []
        own.append((task.name, submission.cells[task.name]))
        self._source = "\n\n\n".join(source for _, source in own)
        self._message["cells"] = [*cells, own[-1]]

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def run(self, function: Callable[..., None]) -> str | None:
        """Run one test; return None if it passes, else the reason in words."""
        if self._given_up is None and self._grader.until_lost and self._failed:
            self._given_up = "not run: a test before it failed"
        if self._clock.left <= 0:
            seconds = self._grader.limits.handin_seconds
            self._given_up = f"not run: the {seconds:g} s of the whole hand-in are used up"
        if self._given_up is not None:
            return self._given_up
        complaint = self._run(function)
        self._failed |= complaint is not None
        return complaint

    def _run(self, function: Callable[..., None]) -> str | None:
        try:
            child = self._child or self._new_child()
        except StartTooSlow as slow:
            self._end()
            return f"{BROKEN}: {slow}"
        if self._relay is not None:
            try:
                self._relay.reset()
            except ChildLost as lost:  # no cell of the reader's has run yet
                self._end()
                return f"{BROKEN}: loading the reference: {lost}"
        try:
            reply = child.request(self._message)
        except ChildLost as lost:
            self._give_up(child, f"running the cell: {lost}", cell_is_at_fault=True)
            return f"running the cell: {lost}"
        if "error" in reply:
            return f"running the cell: {reply['error']}"
        student = _Student(in_child(child), self._grader.smaller)
        student.source, student.unsafe_local = self._source, self._grader.unsafe_local
        complaint = self._judge(function, student)
        if child.is_lost or (self._relay is not None and self._relay.is_lost):
            self._give_up(child, complaint or "", cell_is_at_fault=False)
        return complaint

    def _new_child(self) -> Child:
        if self._has_stand_ins:
            reference = self._stack.enter_context(self._grader._start(self._clock))
            self._relay = Relay(reference, self._interface, self._behind)
        self._child = self._stack.enter_context(self._grader._start(self._clock, self._relay))
        return self._child

    def _judge(self, function: Callable[..., None], student: _Student) -> str | None:
        arguments = {"student": student, "variant": str(self._grader.variant)}
        given = {"seed": self._grader.seed} if "seed" in _parameters(function) else {}
        try:
            _seeded(function, self._grader.seed)(**arguments, **given)
        except Wrong as wrong:
            return str(wrong)
        except (Exception, _Enough) as error:
            # Hypothesis may wrap the complaint (a flaky answer, several failures).
            return student.complaint or f"{BROKEN}: {type(error).__name__}: {error}"
        return None

    def _end(self) -> None:
        """End both children; the next test starts others."""
        self._stack.close()
        self._child = self._relay = None

    def _give_up(self, child: Child, words: str, *, cell_is_at_fault: bool) -> None:
        """Count a lost child; decide whether the task's other tests are worth another."""
        self._end()
        self._lost += 1
        if cell_is_at_fault:
            self._given_up = self.fatal = words
        elif child.is_out_of_time:
            self._given_up = "not run: a test of this task before it used up the task's time"
        elif self._lost >= MAX_LOST:
            self._given_up = f"not run: {MAX_LOST} tests of this task before it ended the process"


def grade_submission(
    lab: Lab,
    submission: Submission,
    key: CourseKey | None = None,
    *,
    unsafe_local: bool = False,
    limits: Limits | None = None,
) -> Report:
    """Grade one submission with the variant and seed that `key` chooses for the lab.

    Raises:
        NoSandbox: bubblewrap is missing or refused; nothing that a student wrote raises.
    """
    chosen = choose(lab, key)
    grader = Grader(lab, chosen.variant, chosen.seed, unsafe_local, limits or Limits())
    return grader.grade(submission)


def _title(function: Callable[..., None]) -> str:
    return " ".join((function.__doc__ or function.__name__).split())


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


def _parameters(function: Callable[..., None]) -> set[str]:
    return set(inspect.signature(function).parameters)


@functools.cache  # Hypothesis lets a test have its settings once
def _with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Fix how often a Hypothesis test is tried; a plain test is returned as it is."""
    if not hasattr(function, "hypothesis"):
        return function
    import hypothesis

    inner = function.hypothesis.inner_test

    def attempt(*args: Any, student: _Student, **named: Any) -> None:
        student.attempt(lambda: inner(*args, student=student, **named))

    function.hypothesis.inner_test = attempt
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
