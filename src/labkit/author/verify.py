"""Testing the tests: what a lab's author runs before the lab goes out.

The reference and an independent second solution must earn every point in every variant,
the starter none, and each mutant (a wrong solution) must lose points in the task it
targets. A mutant is a TOML file with the bug in words and either edits of the reference,
`old` for `new`, or the name of a percent file whose cells replace the reference's. One that
says `at_most` is graded in every variant. A lab that withholds modules of quire asks for what
quire has, so one of its mutants must be quire's own code, earning at most 40.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from labkit.author.build import build_notebook, drift, notebook_text
from labkit.grading.cells import read_cells, reference_cells
from labkit.grading.grade import Grader, hidden_test_names
from labkit.grading.report import Report, table
from labkit.grading.rubric import rubric_rows
from labkit.reader.lab import Lab, LabError, Task, labs_folder
from labkit.reader.notebook import Submission, collect

OWN_AT_MOST = 40  # points of 100 that quire's own code may earn
CHAPTER_ANCHOR = re.compile(r"chapters/([\w/-]+\.md)#([\w-]+)")


class Options(TypedDict, total=False):
    """Of the `Grader`."""

    unsafe_local: bool
    until_lost: bool


@dataclass(frozen=True)
class Mutant:
    """A wrong solution: the tasks whose cells it replaces, and the most it may earn."""

    name: str
    bug: str
    variant: str
    cells: dict[str, str]
    at_most: float | None


@dataclass(frozen=True)
class Row:
    """One graded solution: its score in each task, None where it is the reference's own."""

    name: str
    scores: dict[str, float | None]
    total: float
    problem: str | None


def load_mutants(lab: Lab) -> list[Mutant]:
    """Read every mutant.

    Raises:
        LabError: an edit whose `old` does not occur exactly once, or an empty mutant.
    """
    mutants = []
    for path in sorted((lab.folder / "mutants").glob("*.toml")):
        raw = tomllib.loads(path.read_text("utf8"))
        everywhere = "at_most" in raw and "variant" not in raw
        for variant in lab.variants if everywhere else [lab.variant(raw.get("variant"))]:
            name = f"{path.stem}, {variant}" if everywhere else path.stem
            mutants.append(_load_mutant(lab, path, raw, name, variant))
    return mutants


def _load_mutant(lab: Lab, path: Path, raw: dict[str, Any], name: str, variant: str) -> Mutant:
    if "cells" in raw:
        found = read_cells(path.with_name(raw["cells"]), lab, variant)
        cells = {cell.name: cell.reference for cell in found if cell.kind == "task"}
    else:
        reference = reference_cells(lab, variant)
        cells = {raw["task"]: reference[raw["task"]]}
        for edit in raw["edits"]:
            source = cells[raw["task"]]
            if source.count(edit["old"]) != 1:
                raise LabError(
                    f"{path.name}: {edit['old']!r} occurs {source.count(edit['old'])} times in "
                    f"the reference of {raw['task']}, not once"
                )
            cells[raw["task"]] = source.replace(edit["old"], edit["new"])
    if not cells:
        raise LabError(f"{path.name} changes no task")
    return Mutant(name, raw["bug"], variant, cells, raw.get("at_most"))


def own_problems(lab: Lab, mutants: Iterable[Mutant]) -> list[str]:
    """Say what is missing of quire's own code among the mutants of a lab that asks for it."""
    if not lab.withheld:
        return []
    tasks = {task.name for task in lab.tasks}
    complete = {
        mutant.variant
        for mutant in mutants
        if mutant.at_most is not None
        and mutant.at_most <= OWN_AT_MOST
        and set(mutant.cells) == tasks
    }
    return [
        f"variant {variant}: no mutant hands in quire's own code for every task with `at_most` of "
        f"{OWN_AT_MOST} or less"
        for variant in lab.variants
        if variant not in complete
    ]


def map_problems(lab: Lab) -> list[str]:
    """Hidden tests without an entry in `lab.toml`, entries without a test or a true sentence."""
    problems = []
    texts = [_words(build_notebook(lab, variant)) for variant in lab.variants]
    for task in lab.tasks:
        listed, written = {test.name for test in task.tests}, hidden_test_names(lab, task)
        problems += [f"{task.name}: {name} is not in lab.toml" for name in written - listed]
        problems += [f"{task.name}: {name} is in lab.toml only" for name in listed - written]
        for test in task.tests:
            sentence = " ".join(test.spec.split())
            cited = bool(sentence) and any(sentence in text for text in texts)
            if not cited and not _is_in_a_chapter(sentence):
                problems.append(
                    f"{task.name}: {test.name} cites no sentence of the lab and no anchor of a "
                    f"chapter: {test.spec}"
                )
    return problems


def _is_in_a_chapter(spec: str) -> bool:
    """Whether `chapters/page.md#anchor` is there: a MyST label, `(anchor)=`, on that page."""
    found = CHAPTER_ANCHOR.fullmatch(spec)
    if found is None:
        return False
    page = labs_folder().parent / "chapters" / found.group(1)
    return page.is_file() and f"\n({found.group(2)})=" in "\n" + page.read_text("utf8")


def _words(notebook: object) -> str:
    sources = [cell["source"] for cell in notebook.cells]  # type: ignore[attr-defined]
    return " ".join(" ".join(sources).split())


def submission_of(lab: Lab, notebook: object) -> Submission:
    """Read a notebook that is in memory the way one on disk is read."""
    content = json.loads(notebook_text(notebook))
    return collect(lab, content, content["cells"])


def verify_solution(lab: Lab, file: str, grader_options: Options) -> list[Row]:
    """Grade a solution in every variant; beyond the first, only the cells that differ."""
    rows = []
    first = reference_cells(lab, None, file)
    for variant in sorted(lab.variants, key=lambda name: name != lab.default_variant):
        cells = reference_cells(lab, variant, file)
        tasks = [
            t for t in lab.tasks if variant == lab.default_variant or cells[t.name] != first[t.name]
        ]
        report = _grade(lab, variant, Submission(cells=cells), tasks, grader_options)
        problem = None if report.score == report.best else _first_reason(report)
        rows.append(_row(f"{file}, {variant}", report, tasks, problem))
    return rows


def verify_starter(lab: Lab, grader_options: Options) -> Row:
    """Grade the untouched starter: it must earn nothing."""
    submission = submission_of(lab, build_notebook(lab))
    report = _grade(lab, None, submission, lab.tasks, grader_options)
    problem = None if report.score == 0 else f"the starter earns {report.score:g}"
    return _row("starter", report, lab.tasks, problem)


def verify_mutant(lab: Lab, mutant: Mutant, grader_options: Options) -> Row:
    """Grade a mutant in the tasks it changes: it must lose points in each.

    With the option `until_lost` a row's scores are bounds: tests after the first that fails
    count as failed.
    """
    tasks = [lab.task(name) for name in mutant.cells]
    cells = {**reference_cells(lab, mutant.variant), **mutant.cells}
    report = _grade(lab, mutant.variant, Submission(cells=cells), tasks, grader_options)
    problem = None
    for task in tasks:
        if report.task_score(task.name) == task.points:
            problem = f"it lives: full points in {task.name}"
    earned = report.score + lab.written_points
    if mutant.at_most is not None and earned > mutant.at_most:
        problem = f"it earns {earned:g} with the written answer, more than {mutant.at_most:g}"
    return _row(f"mutant {mutant.name}", report, tasks, problem)


def _grade(
    lab: Lab,
    variant: str | None,
    submission: Submission,
    tasks: Iterable[Task],
    options: Options,
) -> Report:
    # A row holds scores and, where a solution fails, a reason as good as any.
    return Grader(lab, variant, smaller=0, **options).grade(submission, tasks)


def _row(name: str, report: Report, tasks: Iterable[Task], problem: str | None) -> Row:
    graded = {task.name for task in tasks}
    scores = {
        task.name: report.task_score(task.name) if task.name in graded else None
        for task in report.lab.tasks
    }
    if report.broken:
        problem = report.broken[0]
    lost = sum(task.points - report.task_score(task.name) for task in tasks)
    return Row(name, scores, report.lab.automatic_points - lost, problem)


def _first_reason(report: Report) -> str:
    failed = next(outcome for outcome in report.outcomes if outcome.reason is not None)
    return f"{failed.test.name}: {failed.reason}"


def file_problems(lab: Lab) -> list[str]:
    """What is wrong with a lab's files, before anything is graded."""
    drifted = drift(lab)
    found = map_problems(lab) + own_problems(lab, load_mutants(lab)) + rubric_problems(lab)
    return found + ([drifted] if drifted else [])


def rubric_problems(lab: Lab) -> list[str]:
    """What keeps a marker from getting a column for each row of the rubric."""
    path = lab.folder / "rubric.md"
    if not lab.written:
        return []
    if not path.is_file():
        return ["there is no rubric.md for the written answers"]
    try:
        rows = rubric_rows(path.read_text("utf8"), lab)
    except LabError as error:
        return [str(error)]
    bare = [name for name, found in rows.items() if not found]
    return [f"rubric.md has no table of points for: {', '.join(bare)}"] if bare else []


def verify_rows(lab: Lab, *, unsafe_local: bool = False) -> Iterator[Row]:
    """Grade every solution there is, right ones first; a row is yielded once it is known."""
    options: Options = {"unsafe_local": unsafe_local}
    yield from verify_solution(lab, "master.py", options)
    yield from verify_solution(lab, "second.py", options)
    yield verify_starter(lab, options)
    for mutant in load_mutants(lab):
        yield verify_mutant(lab, mutant, options)


def verify(lab: Lab, *, unsafe_local: bool = False) -> tuple[str, list[str]]:
    """Run everything; return the table of scores and the problems found."""
    problems = file_problems(lab)
    rows = list(verify_rows(lab, unsafe_local=unsafe_local))
    problems += [f"{row.name}: {row.problem}" for row in rows if row.problem]
    return score_table(lab, rows), problems


def score_table(lab: Lab, rows: list[Row]) -> str:
    """Scores a solution and task; `=` where the cell is the reference's own."""
    header = ["", *(f"{task.name} /{task.points:g}" for task in lab.tasks), "all"]
    body = [
        [row.name, *("=" if s is None else f"{s:g}" for s in row.scores.values()), f"{row.total:g}"]
        for row in rows
    ]
    return table(header, body)
