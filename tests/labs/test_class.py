"""A class of 26 graded end to end by the command: what each gets, and the tables."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from synthetic_class import HOSTILE, NAMES, class_of

from labkit.cli import main
from labkit.course import classroom
from labkit.reader.lab import Lab

SLOW = ("endless loop", "fork bomb", "huge list", "floods stdout")  # seconds until they are ended


@pytest.fixture(scope="module")
def graded(small_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class of 26, graded by the command in two processes."""
    folder = tmp_path_factory.mktemp("class")
    with zipfile.ZipFile(folder / "class.zip", "w") as archive:
        for name, data in class_of(small_lab, without=SLOW).items():
            archive.writestr(name, data)
    out = folder / "out"
    command = ["grade", str(small_lab.folder), str(folder / "class.zip"), "--out", str(out)]
    assert main([*command, "--jobs", "2"]) == 0
    return out


def _totals(out: Path) -> dict[str, float]:
    with (out / "grades.csv").open(newline="") as file:
        return {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}


def _results(out: Path, student: str) -> dict[str, Any]:
    text = (out / "students" / student / "results.json").read_text("utf8")
    made: dict[str, Any] = json.loads(text)
    return made


def test_everybody_gets_what_the_work_is_worth(graded: Path) -> None:
    totals = _totals(graded)
    count = 30 - len(SLOW)
    assert len(totals) == count
    scores = [totals[str(4000 + index)] for index in range(count)]
    assert scores[:6] == [90] * 6  # reference, second solution, without metadata, renamed
    assert all(0 < score < 90 for score in scores[6:14])  # two mutants each
    # The last task missing; all but the first; a syntax error; the text cells gone.
    assert scores[14:18] == [60, 60, 25, 90]
    assert scores[18:22] == [0, 0, 0, 60]  # starter, empty, a PDF, cut off after the first task
    # Hostile in the first task: nothing for it; the second was graded with the reference's.
    assert scores[22:] == [25] * (len(HOSTILE) - len(SLOW))


def test_gradescopes_results_hold_what_its_format_asks(graded: Path) -> None:
    for path in sorted((graded / "students").glob("*/results.json")):
        content = json.loads(path.read_text("utf8"))
        assert type(content["score"]) in (int, float)
        assert content["output_format"] == "text"  # its default would render a student's HTML
        assert content["visibility"] in ("visible", "hidden", "after_due_date", "after_published")
        for test in content["tests"]:
            assert {"name", "score", "max_score", "status", "output"} <= set(test)
            assert test["status"] in ("passed", "failed")
            assert 0 <= test["score"] <= test["max_score"]
            assert (test["status"] == "failed") == bool(test["output"])
    reasons = json.dumps(_results(graded, f"{NAMES[16]}_4016"))
    assert "syntax error in line 2: invalid syntax" in reasons


def test_canvas_gets_the_columns_it_imports(graded: Path, small_lab: Lab) -> None:
    """As `gradebook_importer.rb` of canvas-lms reads them: five columns, then the assignment."""
    with (graded / "canvas.csv").open(newline="") as file:
        header, possible, *rows = list(csv.reader(file))
    assert header == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", small_lab.title]
    assert "Points Possible" in possible[0]
    assert possible[5] == "100"
    assert [len(row) for row in rows] == [6] * 21
    assert {row[1]: row[0] for row in rows}["4000"] == NAMES[0]
    assert all(0 <= float(row[5]) <= 100 for row in rows)
    with (graded / "moodle.csv").open(newline="") as file:  # as the other five are named
        found = {row["Identifier"]: row for row in csv.DictReader(file)}
    assert found["Participant 4004"]["Full name"] == NAMES[4]
    assert found["Participant 4004"]["Grade"] == "90"
    assert len(found) == 5
    assert not (graded / "blackboard.csv").exists()


def test_a_second_run_grades_nothing_again(
    graded: Path, small_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.stat().st_mtime_ns for p in graded.glob("students/*/attempt-1.json")}
    monkeypatch.setattr(classroom, "grade_one", _unexpected)
    archive = graded.parent / "class.zip"
    command = ["grade", str(small_lab.folder), str(archive), "--out", str(graded), "--jobs", "1"]
    assert main(command) == 0
    assert {p: p.stat().st_mtime_ns for p in graded.glob("students/*/attempt-1.json")} == before


def _unexpected(*given: object) -> None:
    raise AssertionError("graded again")
