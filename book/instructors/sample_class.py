"""A made-up class for the grading page: sixteen hand-ins of the example lab, the course's rules.

    python book/instructors/sample_class.py FOLDER

writes `FOLDER/handed-in/`, `FOLDER/course.toml` and `FOLDER/times.csv`. Each student's row of
`STUDENTS` says what is in the hand-in: names of mutants, or one of `SPECIAL`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.author.build import build_notebook, notebook_text
from labkit.author.verify import load_mutants
from labkit.grading.cells import reference_cells
from labkit.reader.lab import load_lab

LAB = load_lab(Path(__file__).parent / "example-lab")
Notebook = dict[str, Any]

STUDENTS = {
    "ada": (),
    "alan": ("second",),
    "barbara": ("needs_more_than_it_asks",),
    "donald": ("second", "in_own_words"),
    "edsger": ("one_bucket_for_all",),
    "frances": ("whole_tokens_only", "in_own_words"),
    "grace": ("refund_of_thousandths",),
    "john": ("no_brim",),
    "katherine": ("change_stops_at_zero", "in_own_words"),
    "leslie": ("refill_after_refusal_lost", "refund_of_thousandths"),
    "margaret": ("no_brim", "no_answer"),
    "niklaus": ("new_client_empty", "in_own_words"),
    "radia": ("ends_the_process",),
    "tony": ("untouched",),
    "whitfield": ("syntax_error",),
    "yann": ("cut_off",),
}

COURSE = """\
[late]
times = "times.csv"
grace_minutes = 30
percent_per_day = 10

[labs.rate-limit]
due = 2026-10-12T23:59:00

[labs.rate-limit.students.john]
bonus = 5
why = "the limiter for many machines, shown in class"
"""
LATE = {"grace": "2026-10-13T09:10:00", "whitfield": "2026-10-13T00:20:00"}


def cell_of(notebook: Notebook, task: str) -> Notebook:
    found = [c for c in notebook["cells"] if c["metadata"].get("labkit", {}).get("task") == task]
    return found[0]


def _second(notebook: Notebook) -> None:
    for task, source in reference_cells(LAB, None, "second.py").items():
        cell_of(notebook, task)["source"] = source


def _in_own_words(notebook: Notebook) -> None:
    for cell in notebook["cells"]:
        if cell["metadata"].get("labkit", {}).get("written"):
            cell["source"] = (
                "<!-- written: explain -->\nThe client is limited to rate tokens per second, so in "
                "n seconds it gets n · rate. Sometimes it can get a bit more because of the burst, "
                "but on average the limit holds."
            )


def _no_answer(notebook: Notebook) -> None:
    notebook["cells"] = [
        c for c in notebook["cells"] if not c["metadata"].get("labkit", {}).get("written")
    ]


def _ends_the_process(notebook: Notebook) -> None:
    cell = cell_of(notebook, "admission")
    cell["source"] = "".join(cell["source"]) + "\n\n\nimport os\n\nos._exit(0)\n"


def _untouched(notebook: Notebook) -> None:
    notebook["cells"] = json.loads(notebook_text(build_notebook(LAB)))["cells"]


def _syntax_error(notebook: Notebook) -> None:
    cell = cell_of(notebook, "bucket")
    cell["source"] = "".join(cell["source"]).replace("-> None:", "-> None", 1)


SPECIAL: dict[str, Callable[[Notebook], None]] = {
    "second": _second,
    "in_own_words": _in_own_words,
    "no_answer": _no_answer,
    "ends_the_process": _ends_the_process,
    "untouched": _untouched,
    "syntax_error": _syntax_error,
}


def hand_in(student: str) -> str:
    """What a student handed in, as the text of a file."""
    notebook = json.loads(notebook_text(build_notebook(LAB, solution=True)))
    mutants = {mutant.name: mutant for mutant in load_mutants(LAB)}
    for part in STUDENTS[student]:
        if part in mutants:
            for task, source in mutants[part].cells.items():
                cell_of(notebook, task)["source"] = source
        elif part != "cut_off":
            SPECIAL[part](notebook)
    text = json.dumps(notebook, indent=1)
    return text[: len(text) * 3 // 5] if "cut_off" in STUDENTS[student] else text


def write(folder: Path) -> None:
    """Write the hand-ins and the course's files."""
    (folder / "handed-in").mkdir(parents=True)
    for student in STUDENTS:
        (folder / "handed-in" / f"{student}.ipynb").write_text(hand_in(student), "utf8")
    (folder / "course.toml").write_text(COURSE, "utf8")
    times = {student: LATE.get(student, "2026-10-12T18:00:00") for student in STUDENTS}
    rows = [f"{student},{time}\n" for student, time in times.items()]
    (folder / "times.csv").write_text("student,submitted\n" + "".join(rows), "utf8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
