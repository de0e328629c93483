"""Everything that an instructor hands out or reads, made from the records of a class.

DIR/index.html                    the class: histogram, tasks most missed, cells alike
DIR/points.csv  tasks.csv  tests.csv  similarity.csv      for a spreadsheet
DIR/canvas.csv, moodle.csv, …     for the course system (`labkit.course.lms`)
DIR/grades.csv  students.csv      for nbgrader
DIR/written/<question>.html .csv  answers to mark, and their marks
DIR/students/<name>/feedback.html results.json attempt-<n>.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from labkit.course.course import Course
from labkit.course.feedback import feedback_page, marking_page, summary_page
from labkit.course.gradebook import (
    Result,
    counted_attempts,
    results_of,
    write_results,
    write_tables,
)
from labkit.course.marks import Mark, Sheet, coder, collect_answers
from labkit.course.record import Record
from labkit.course.similarity import Pair, alike, published
from labkit.course.solve_rates import write_solve_rates
from labkit.course.tables import write_for_people
from labkit.grading.cells import read_cells
from labkit.grading.rubric import rubric_rows
from labkit.reader.lab import Lab, load_lab


def publish(
    lab: Lab,
    records: Mapping[Path, Record],
    course: Course,
    out: Path,
    *,
    problems: Sequence[str] = (),
    blind: bool = False,
) -> tuple[list[Result], list[str]]:
    """Write every page and table of a class; return each student's result, and what was odd.

    Args:
        lab: the lab, with the tasks that count.
        records: every graded hand-in, by its path under `out`.
        course: its rules.
        out: where to.
        problems: sentences for the instructor, shown on the summary.
        blind: written answers are marked without names.

    Raises:
        LabError: a table of marks that was filled in with something else than points, or a rubric
            whose rows do not add up.
    """
    folders = {record.student: path.parent for path, record in records.items()}
    counted = [record for record, _, _ in counted_attempts(records.values(), course)]
    said = list(problems)
    marks: dict[str, dict[str, Mark]] = {}
    rubric = lab.folder / "rubric.md"
    text = rubric.read_text("utf8") if rubric.is_file() else "This lab has no rubric."
    rows, code = rubric_rows(text, load_lab(lab.folder)), coder(out, blind)
    for question in lab.written:
        table = out / "written" / f"{question.name}.csv"
        sheet = Sheet(table, question, rows[question.name], course.separator, code, blind)
        marks[question.name], odd = collect_answers(sheet, counted)
        said += odd
        answers = [
            (marks[question.name][record.student], record.written[question.name])
            for record in counted
            if question.name in record.written
        ]
        table.with_suffix(".html").write_text(marking_page(question, text, answers), "utf8")
    results = results_of(lab, records.values(), course, marks)
    for result in results:
        folder = folders[result.student]
        write_results(folder, result)
        (folder / "feedback.html").write_text(feedback_page(result), "utf8")
    said += write_tables(out, results, lab, course)
    write_solve_rates(out, lab, results, course.separator)
    pairs = alike(counted, given_to_all(lab, counted[0].variant), published(lab))
    _write_pairs(out / "similarity.csv", pairs, course.separator)
    links = {s: f"students/{quote(folder.name)}/feedback.html" for s, folder in folders.items()}
    page = summary_page(
        lab,
        results,
        attempts=len(records),
        links=links,
        pairs=pairs,
        problems=said,
    )
    (out / "index.html").write_text(page, "utf8")
    return results, said


def given_to_all(lab: Lab, variant: str) -> dict[str, str]:
    """By task, what every student was given: the starter's cell and the given ones."""
    cells = read_cells(lab.folder / "master.py", lab, variant)
    shared = "\n".join(cell.source for cell in cells if cell.kind == "given")
    return {c.name: f"{shared}\n{c.starter}" for c in cells if c.kind == "task"}


def _write_pairs(path: Path, pairs: Sequence[Pair], separator: str) -> None:
    header = ["task", "first", "second", "share", "characters in common"]
    rows = [[p.task, p.first, p.second, round(p.share, 3), p.length] for p in pairs]
    write_for_people(path, [header, *rows], separator)
