"""What a class solved, as tables: each student's points, each task, each test.

points.csv   a row a student, a column a task and a written answer, then what the course added
tasks.csv    a row a task: the mean, and how many have all points or none
tests.csv    a row a hidden test, with the sentence that it judges
The solve rate of a task is the share of the class that has all its points; of a test, the share
that passed it. Who handed in nothing for a task solved nothing of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from labkit.course.gradebook import Result
from labkit.course.tables import write_for_people
from labkit.reader.lab import Lab

Rows = list[Sequence[object]]


def write_solve_rates(out: Path, lab: Lab, results: Sequence[Result], separator: str) -> None:
    """Write the three tables."""
    for name, rows in (
        ("points", points(lab, results)),
        ("tasks", tasks(lab, results)),
        ("tests", tests(lab, results)),
    ):
        write_for_people(out / f"{name}.csv", rows, separator)


def points(lab: Lab, results: Sequence[Result]) -> Rows:
    """A row for each student."""
    header = ["student", *(task.name for task in lab.tasks), *(q.name for q in lab.written)]
    rows: Rows = [[*header, "late factor", "bonus", "set to", "total", "of"]]
    for result in results:
        marks = [result.marks.get(question.name) for question in lab.written]
        rows.append(
            [
                result.student,
                *(float(result.record.task_points(task.name)) for task in lab.tasks),
                *("" if m is None or m.points is None else float(m.points) for m in marks),
                float(result.late.factor),
                float(result.own.bonus),
                "" if result.own.points is None else float(result.own.points),
                float(result.total),
                float(result.possible),
            ]
        )
    return rows


def tasks(lab: Lab, results: Sequence[Result]) -> Rows:
    """A row for each task."""
    rows: Rows = [["task", "title", "tier", "of", "mean", "students", "all", "none", "solve rate"]]
    for task in lab.tasks:
        got = [result.record.task_points(task.name) for result in results]
        full = sum(earned == task.points for earned in got)
        rows.append(
            [
                task.name,
                task.title,
                task.tier,
                float(task.points),
                float(round(statistics.mean(got), 2)),
                len(got),
                full,
                sum(earned == 0 for earned in got),
                round(full / len(got), 3),
            ]
        )
    return rows


def tests(lab: Lab, results: Sequence[Result]) -> Rows:
    """A row for each hidden test."""
    rows: Rows = [["task", "test", "what the task says", "of", "students", "passed", "solve rate"]]
    for task in lab.tasks:
        for test in task.tests:
            passed = 0
            title = test.name
            for result in results:
                for verdict in result.record.verdicts:
                    if (verdict.task, verdict.test) == (task.name, test.name):
                        title = verdict.title
                        passed += verdict.reason is None
            rows.append(
                [
                    task.name,
                    title,
                    test.spec,
                    float(test.points),
                    len(results),
                    passed,
                    round(passed / len(results), 3),
                ]
            )
    return rows
