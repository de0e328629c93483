"""The pages of a graded class: feedback for each student, a summary, and answers to mark.

Each page is one HTML file without scripts or outside requests, readable in light and dark, on a
phone and on paper. What a student wrote is escaped. No page holds a hidden test's source: a
verdict says what was called, what was expected and what came back.
"""

from __future__ import annotations

import functools
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labkit.course.gradebook import Result
from labkit.course.marks import Mark
from labkit.course.similarity import SHOWN, Pair
from labkit.grading.report import UNSAFE
from labkit.reader.lab import Lab, Written

TOLD = re.compile(r"^(called|expected|got) (.*)$")
BINS = 10


@functools.cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: f"{value:g}"
    environment.filters["code"] = _code
    return environment


def _code(text: str) -> Any:
    """A sentence with what stands in backticks set as code; everything in it is escaped."""
    import markupsafe

    parts = text.split("`")
    made = markupsafe.Markup()
    for index, part in enumerate(parts):
        inside = index % 2 == 1 and index < len(parts) - 1
        made += markupsafe.Markup("<code>{}</code>").format(part) if inside else part
    return made


def _page(template: str, **values: Any) -> str:
    return str(_environment().get_template(template).render(**values))


def told(reason: str) -> list[tuple[str, str]]:
    """Cut a reason into what was called, expected and got; other lines stand under "why"."""
    parts: list[tuple[str, str]] = []
    for line in reason.split("\n"):
        found = TOLD.match(line)
        if found:
            parts.append((found[1], found[2]))
        elif parts and parts[-1][0] == "why":
            parts[-1] = ("why", f"{parts[-1][1]}\n{line}")
        else:
            parts.append(("why", line))
    return parts


def feedback_page(result: Result) -> str:
    """The page of one student."""
    record = result.record
    tasks = []
    for task in result.lab.tasks:
        tests = [
            {
                "title": v.title.rstrip("."),
                "spec": v.spec.rstrip("."),
                "points": v.points,
                "possible": v.possible,
                "reason": v.reason,
                "told": told(v.reason) if v.reason else [],
            }
            for v in record.verdicts
            if v.task == task.name
        ]
        problem = record.problems.get(task.name)
        tasks.append(
            {
                "title": task.title,
                "tier": task.tier,
                "points": task.points,
                "got": record.task_points(task.name),
                "tests": tests,
                "problem": problem.rstrip(".") if problem else None,
            }
        )
    questions = []
    for question in result.lab.written:
        mark = result.marks.get(question.name)
        questions.append(
            {
                "title": question.title,
                "points": question.points,
                "answer": record.written.get(question.name),
                "mark": mark if mark is not None and mark.points is not None else None,
            }
        )
    return _page("feedback.html", lab=result.lab, result=result, tasks=tasks, questions=questions)


def marking_page(question: Written, rubric: str, marks: Iterable[tuple[Mark, str]]) -> str:
    """The page to mark one question from: rubric, then the answers under their numbers."""
    import markdown_it

    # The rubric is the lab author's; raw HTML in it stays text all the same. Its headings go one
    # down, below the page's own.
    lower = re.sub(r"^(?=#)", "#", rubric, flags=re.M)
    text = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table").render(lower)
    answers = sorted((mark.number, answer) for mark, answer in marks)
    return _page("marking.html", question=question, rubric=text, answers=answers)


def summary_page(
    lab: Lab,
    results: Sequence[Result],
    *,
    attempts: int,
    links: Mapping[str, str],
    pairs: Sequence[Pair],
    problems: Sequence[str],
) -> str:
    """The page of the class.

    Args:
        lab: the lab.
        results: one of each student.
        attempts: hand-ins in all.
        links: each student's page.
        pairs: cells that look alike.
        problems: sentences for the instructor.
    """
    totals = [result.total for result in results]
    seconds = statistics.mean(result.record.seconds for result in results)
    return _page(
        "summary.html",
        lab=lab,
        results=results,
        attempts=attempts,
        variant=", ".join(sorted({result.record.variant for result in results})),
        seconds=f"{seconds:.1f} s of grading a hand-in",
        unsafe=UNSAFE if any(result.record.unsafe for result in results) else "",
        problems=[*problems, *_broken(results)],
        figures=[
            ("Mean", f"{statistics.mean(totals):.1f}"),
            ("Median", f"{statistics.median(totals):.1f}"),
            ("Lowest", f"{min(totals):g}"),
            ("Highest", f"{max(totals):g}"),
            ("Late", sum(bool(result.late.words) for result in results)),
        ],
        bins=histogram(totals, results[0].possible),
        possible=results[0].possible,
        unmarked=any(result.unmarked for result in results),
        tasks=_tasks(lab, results),
        missed=_missed(lab, results),
        rows=[_row(result, links[result.student]) for result in results],
        questions=[_question(question, results) for question in lab.written],
        groups=groups(pairs),
        shown=SHOWN,
    )


def histogram(totals: Sequence[float], possible: float) -> list[dict[str, Any]]:
    """Ten bins of equal width as bars of a drawing of 640 by 200."""
    counts = [0] * BINS
    for total in totals:
        counts[min(BINS - 1, int(total * BINS / possible))] += 1
    width, high = 600 / BINS, max(counts)
    edges = [round(possible * i / BINS) for i in range(BINS + 1)]
    return [
        {
            "count": count,
            "label": f"{edges[i]}–{edges[i + 1] - (i < BINS - 1)}",
            "x": round(20 + i * width + 3, 1),
            "width": width - 6,
            "middle": round(20 + (i + 0.5) * width, 1),
            "height": round(140 * count / high, 1),
            "y": round(170 - 140 * count / high, 1),
        }
        for i, count in enumerate(counts)
    ]


def _broken(results: Sequence[Result]) -> list[str]:
    return [f"{r.student}: {words}" for r in results for words in r.record.broken]


def _tasks(lab: Lab, results: Sequence[Result]) -> list[dict[str, Any]]:
    rows = []
    for task in lab.tasks:
        got = [result.record.task_points(task.name) for result in results]
        mean = statistics.mean(got)
        rows.append(
            {
                "title": task.title,
                "points": task.points,
                "mean": mean,
                "share": mean / task.points,
                "full": sum(points == task.points for points in got),
                "none": sum(points == 0 for points in got),
                "lacking": sum(task.name in result.record.problems for result in results),
            }
        )
    return sorted(rows, key=lambda row: row["share"])


def _missed(lab: Lab, results: Sequence[Result]) -> list[dict[str, Any]]:
    """The ten tests missed most, by those who handed in a cell that could be graded."""
    counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for result in results:
        for verdict in result.record.verdicts:
            if verdict.task not in result.record.problems:
                count = counts[verdict.task, verdict.title, verdict.spec]
                count[0] += verdict.reason is not None
                count[1] += 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1][0] / item[1][1], item[0]))
    return [
        {"task": task, "title": title, "spec": spec, "missed": missed, "tried": tried}
        for (task, title, spec), (missed, tried) in ordered[:10]
        if missed
    ]


def _row(result: Result, link: str) -> dict[str, Any]:
    problems = list(dict.fromkeys(result.record.problems.values()))
    return {
        "student": result.student,
        "link": link,
        "remark": "; ".join([*problems[:1], *result.record.received]),
        "tasks": [result.record.task_points(task.name) for task in result.lab.tasks],
        "written": "to mark" if result.unmarked else f"{result.written:g}",
        "late": f"−{100 * (1 - result.late.factor):g} %" if result.late.factor < 1 else "",
        "total": result.total,
    }


def _question(question: Written, results: Sequence[Result]) -> dict[str, Any]:
    answered = [result for result in results if question.name in result.record.written]
    waiting = sum(question.name in result.unmarked for result in answered)
    return {
        "name": question.name,
        "title": question.title,
        "answered": len(answered),
        "marked": len(answered) - waiting,
    }


def groups(pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    """Join the pairs of a task that share a student; the groups most alike first."""
    joined: list[tuple[str, set[str], list[Pair]]] = []
    for pair in pairs:
        students, members = {pair.first, pair.second}, [pair]
        apart = []
        for task, others, theirs in joined:
            if task == pair.task and others & students:
                students, members = students | others, members + theirs
            else:
                apart.append((task, others, theirs))
        joined = [*apart, (pair.task, students, members)]
    found = [
        {
            "task": task,
            "students": ", ".join(sorted(students, key=str.casefold)),
            "least": min(pair.share for pair in members),
            "most": max(pair.share for pair in members),
            "length": max(pair.length for pair in members),
        }
        for task, students, members in joined
    ]
    return sorted(found, key=lambda g: (-g["most"], -g["length"], g["task"]))
