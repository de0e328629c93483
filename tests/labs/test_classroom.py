"""Grading many hand-ins: resumable, marked, late, again, and nobody's failure another's."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labkit.author.build import build_notebook, notebook_text
from labkit.cli import main
from labkit.course import classroom, run
from labkit.course.classroom import Settings, grade_class, plan, plan_again, records_in
from labkit.course.intake import find_handins
from labkit.course.marks import coder, fingerprint
from labkit.grading.report import BROKEN
from labkit.grading.variants import choose, read_key
from labkit.reader.lab import Lab, LabError
from labkit.sandbox.process import NoSandbox


def _totals(out: Path) -> dict[str, float]:
    with (out / "grades.csv").open(newline="") as file:
        return {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}


def _results(out: Path, student: str) -> dict[str, Any]:
    text = (out / "students" / student / "results.json").read_text("utf8")
    made: dict[str, Any] = json.loads(text)
    return made


@pytest.fixture(autouse=True)
def _no_stale_grader() -> None:
    classroom._grader.cache_clear()


def _hand_in(lab: Lab, folder: Path) -> Path:
    """Three hand-ins: solved, starter, and one with a wrong second task."""
    folder.mkdir()
    solved = notebook_text(build_notebook(lab, solution=True))
    (folder / "ada.ipynb").write_text(solved, "utf8")
    (folder / "bob.ipynb").write_text(notebook_text(build_notebook(lab)), "utf8")
    (folder / "eve.ipynb").write_text(solved.replace("range(len(lengths))", "range(1)"), "utf8")
    return folder


@pytest.fixture
def handed_in(small_lab: Lab, tmp_path: Path) -> Path:
    return _hand_in(small_lab, tmp_path / "in")


@pytest.fixture
def grade(small_lab: Lab, handed_in: Path, tmp_path: Path) -> Any:
    def run(*more: str, command: str = "grade") -> int:
        given = [str(handed_in)] if command == "grade" else []
        fixed = [command, str(small_lab.folder), *given, "--out", str(tmp_path / "out")]
        return main([*fixed, "--jobs", "1", *more])

    return run


@pytest.fixture(scope="module")
def records(small_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What grading the three hand-ins has written, without tables and pages."""
    folder = tmp_path_factory.mktemp("records")
    settings = Settings(small_lab.folder, choose(small_lab, None))
    handins, _ = find_handins([_hand_in(small_lab, folder / "in")], small_lab)
    assert len(list(grade_class(plan(handins, settings, folder / "out"), settings, 1))) == 3
    return folder / "out"


@pytest.fixture
def graded(grade: Any, records: Path, tmp_path: Path) -> Any:
    """`grade`, which finds the hand-ins graded: for what comes after that."""
    shutil.copytree(records, tmp_path / "out")
    return grade


def test_an_interrupted_run_goes_on_where_it_was(
    grade: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    real, graded = classroom.grade_one, []

    def interrupted(*given: Any) -> Any:
        if len(graded) == 2:
            raise KeyboardInterrupt
        graded.append(given[0].handin.student)
        return real(*given)

    monkeypatch.setattr(classroom, "grade_one", interrupted)
    assert grade() == run.INTERRUPTED
    assert "stopped with 2 of 3 graded; the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "out" / "index.html").exists()
    graded.clear()
    assert grade() == 0
    assert graded == ["eve"]
    assert _totals(tmp_path / "out") == {"ada": 90, "bob": 0, "eve": 60}


def test_results_inside_the_folder_of_hand_ins_are_no_hand_ins(
    small_lab: Lab, handed_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`labkit grade LAB . --out graded` twice, where the class lies."""
    monkeypatch.chdir(handed_in)
    for _ in range(2):
        assert main(["grade", str(small_lab.folder), ".", "--out", "graded", "--jobs", "1"]) == 0
        assert _totals(handed_in / "graded") == {"ada": 90, "bob": 0, "eve": 60}


def test_half_a_record_is_made_again(graded: Any, tmp_path: Path) -> None:
    assert graded() == 0
    path = tmp_path / "out" / "students" / "ada" / "attempt-1.json"
    path.write_text(path.read_text("utf8")[:100], "utf8")
    assert graded() == 0
    assert _totals(tmp_path / "out")["ada"] == 90


def test_a_process_that_dies_takes_no_other_hand_in_with_it(
    small_lab: Lab, handed_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import labkit.course.classroom as c, os\n"
        "read = c.read_handin\n"
        "c.read_handin = lambda h, lab: os._exit(1) if h.student == 'bob' else read(h, lab)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    settings = Settings(small_lab.folder, choose(small_lab, None))
    handins, _ = find_handins([handed_in], small_lab)
    jobs = plan(handins, settings, tmp_path / "out")
    records = {record.student: record for record in grade_class(jobs, settings, 2)}
    assert {s: record.automatic for s, record in records.items()} == {
        "ada": 90,
        "bob": 0,
        "eve": 60,
    }
    assert records["bob"].broken == [classroom.DIED]
    assert len(records_in(tmp_path / "out")) == 3
    # There is nothing of his to grade again; the others are.
    again = plan_again(tmp_path / "out", settings)
    assert {job.handin.student for job in again} == {"ada", "eve"}


def test_another_file_is_another_attempt_and_the_same_one_is_not(
    graded: Any, handed_in: Path, tmp_path: Path
) -> None:
    assert graded() == 0
    (handed_in / "bob.ipynb").write_bytes((handed_in / "ada.ipynb").read_bytes())
    assert graded() == 0
    assert graded() == 0
    out = tmp_path / "out"
    assert len(list((out / "students" / "bob").glob("attempt-*.json"))) == 2
    assert _totals(out)["bob"] == 90
    assert "attempt 2 of 2 counts" in _results(out, "bob")["output"]
    (tmp_path / "course.toml").write_text("[resubmission]\nat_most = 1\n")
    assert graded("--course", str(tmp_path / "course.toml"), "--change") == 0
    assert _totals(out)["bob"] == 0


def test_late_points_are_taken_off_and_said(
    graded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "times.csv").write_text("student,submitted\nada,2026-10-13T10:00:00\n")
    course = tmp_path / "course.toml"
    course.write_text(
        '[late]\ntimes = "times.csv"\npercent_per_day = 10\n'
        "[labs.step-filling]\ndue = 2026-10-12T23:59:00\n"
    )
    assert graded("--course", str(course)) == 0
    assert _totals(tmp_path / "out") == {"ada": 81, "bob": 0, "eve": 60}
    assert _results(tmp_path / "out", "ada")["score"] == 81
    assert "10 % taken off" in _results(tmp_path / "out", "ada")["output"]
    page = (tmp_path / "out" / "students" / "ada" / "feedback.html").read_text("utf8")
    assert "handed in 10.0 hours after the deadline" in page
    assert "-10 %" in capsys.readouterr().out


def test_marks_are_merged_and_kept(
    graded: Any, handed_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert graded() == 0
    table = tmp_path / "out" / "written" / "explain.csv"
    text = table.read_text("utf8")
    assert text.split("\n")[0] == (
        "\ufeffanswer,student,Who starves /5,A change that works /5,points,of,comment,version"
    )
    assert "bob" not in text  # handed in no answer
    rows = list(csv.DictReader(text.removeprefix("\ufeff").split("\n")))
    for row in rows:
        row["points"] = {"ada": "7,5", "eve": ""}[row["student"]]
        row["comment"] = "Says who, not why" if row["student"] == "ada" else ""
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert graded() == 0
    assert _totals(tmp_path / "out") == {"ada": 97.5, "bob": 0, "eve": 60}
    (test,) = [t for t in _results(tmp_path / "out", "ada")["tests"] if t["max_score"] == 10]
    assert (test["score"], test["output"]) == (7.5, "Says who, not why")
    page = (tmp_path / "out" / "students" / "ada" / "feedback.html").read_text("utf8")
    assert "Says who, not why" in page
    other = (handed_in / "ada.ipynb").read_text("utf8").replace("Any request that", "Each that")
    (handed_in / "ada.ipynb").write_text(other, "utf8")
    capsys.readouterr()
    assert graded() == 0
    assert "ada changed the answer after it was marked" in capsys.readouterr().err
    assert _totals(tmp_path / "out")["ada"] == 97.5
    path, rows = _marks(tmp_path)
    gone = {**rows[0], "student": "zoe", "points": "", "comment": "ask her"}
    _fill(path, [*rows, gone])
    assert graded() == 0
    assert "explain: marks of zoe, who has no answer here" in capsys.readouterr().err
    assert _marks(tmp_path)[1][-1]["comment"] == "ask her"


@pytest.mark.parametrize(
    ("points", "words"),
    [("ten", "'ten' is no number of points"), ("11", "11 is not between 0 and 10"),
     ("-1", "-1 is not between 0 and 10"), ("nan", "nan is not between 0 and 10")],
)  # fmt: skip
def test_marks_that_are_none_are_named(
    graded: Any, tmp_path: Path, points: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert graded() == 0
    table = tmp_path / "out" / "written" / "explain.csv"
    table.write_text(f"student,points\nada,{points}\n")
    assert graded() == 2
    assert f"explain.csv, line 2 (ada): {words}" in capsys.readouterr().err
    assert table.read_text() == f"student,points\nada,{points}\n"


def test_regrade_says_what_changed(
    graded: Any, small_lab: Lab, handed_in: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert graded() == 0
    for path in handed_in.iterdir():
        path.unlink()  # what was read from the files is enough
    lab = small_lab.folder / "lab.toml"
    before = lab.read_text("utf8")
    harder = before.replace('{points = 20, spec = "returns', '{points = 30, spec = "returns')
    harder = harder.replace('{points = 40, spec = "It stops', '{points = 30, spec = "It stops')
    test = small_lab.folder / "hidden" / "test_fit.py"
    judged = test.read_text("utf8")
    test.write_text(judged.replace("want=[0], because", "want=[0, 2], because"), "utf8")
    lab.write_text(harder, "utf8")
    _forget_the_lab()
    try:
        assert graded("--student", "ada", command="regrade") == 0
        printed = capsys.readouterr()
        assert "ada, attempt 1: 90 -> 60 points" in printed.out
        assert "1 of 3 hand-ins have other points than before" in printed.out
        assert "2 hand-ins were graded by other tests or another key" in printed.err
        assert graded("--student", "zoe", command="regrade") == 2
        assert "holds no grades of zoe" in capsys.readouterr().err
    finally:
        lab.write_text(before, "utf8")
        test.write_text(judged, "utf8")
        _forget_the_lab()


def _forget_the_lab() -> None:
    """Have its hidden tests read from disk again, as a new process does."""
    classroom._grader.cache_clear()
    for name in [name for name in sys.modules if "step_filling" in name]:
        del sys.modules[name]


def test_grades_of_another_lab_are_not_mixed_in(graded: Any, lab: Lab, tmp_path: Path) -> None:
    assert graded() == 0
    settings = Settings(lab.folder, choose(lab, None))
    with pytest.raises(LabError, match="holds grades of step-filling: give each lab its own"):
        plan([], settings, tmp_path / "out")


def test_two_names_that_a_folder_cannot_tell_apart(
    small_lab: Lab, handed_in: Path, tmp_path: Path
) -> None:
    data = (handed_in / "bob.ipynb").read_bytes()
    with zipfile.ZipFile(tmp_path / "class.zip", "w") as archive:
        archive.writestr("a b.ipynb", data)
        archive.writestr("a-b.ipynb", data)
    settings = Settings(small_lab.folder, choose(small_lab, None))
    handins, _ = find_handins([tmp_path / "class.zip"], small_lab)
    jobs = plan(handins, settings, tmp_path / "out")
    assert [job.path.parent.name for job in jobs] == ["a-b", "a-b+"]
    list(grade_class(jobs, settings, 1))
    again = plan(reversed(handins), settings, tmp_path / "out")
    assert {j.handin.student: j.path for j in again} == {j.handin.student: j.path for j in jobs}


def test_a_class_graded_with_another_key_says_so(
    small_lab: Lab,
    handed_in: Path,
    grade: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a lost or mixed-up key looks like: said to the instructor and to each student."""
    other = next(name for name in small_lab.variants if name != small_lab.default_variant)
    solved = notebook_text(build_notebook(small_lab, other, solution=True))
    for name in ("ada", "bob"):
        (handed_in / f"{name}.ipynb").write_text(solved, "utf8")
    words = (
        f"2 of 3 hand-ins are of another variant than the one they were graded as ({other}, not "
        f"{small_lab.default_variant}): is this the course key that the lab was released with? "
        "(ada, bob)"
    )
    for command in ("grade", "regrade"):
        grade(command=command)
        assert words in capsys.readouterr().err
        assert words in (tmp_path / "out" / "index.html").read_text("utf8")
        note = f"the notebook is of variant {other}, graded as {small_lab.default_variant}"
        assert note in _results(tmp_path / "out", "ada")["output"]
        assert note not in _results(tmp_path / "out", "eve")["output"]


# ---- what the results were made with


def test_a_run_that_would_change_the_settings_stops_and_says_so(
    grade: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    course, key = tmp_path / "course.toml", tmp_path / "course.key"
    rules = "[late]\npercent_per_day = 10\n[labs.step-filling]\ndue = 2026-10-12T23:59:00\n"
    course.write_text(rules)
    assert main(["key", str(key)]) == 0
    given = ["--course", str(course), "--course-key-file", str(key)]
    assert grade(*given) == 0
    kept = json.loads((tmp_path / "out" / "settings.json").read_text("utf8"))
    assert kept["key"] == read_key(key).fingerprint
    assert read_key(key).secret.hex() not in json.dumps(kept)
    before = (tmp_path / "out" / "points.csv").read_bytes()
    capsys.readouterr()

    for command in ("grade", "regrade"):
        assert grade(command=command) == 2
        said = capsys.readouterr().err
        assert "was made with other settings, and this run would change" in said
        assert f"  key: {read_key(key).fingerprint} -> none (the public variant)" in said
        assert "  --course: course.toml -> none" in said
        assert "  deadline: 2026-10-12 23:59:00 -> none" in said
        assert "  late: 10 % a day -> nothing" in said
        assert "give the options that were given then, or --change" in said
    course.write_text(rules.replace("10\n", "20\n"))
    assert grade(*given) == 2
    assert capsys.readouterr().err.count("->") == 1
    assert grade(*given, "--unsafe-local", "--tiers", "core", "--blind") == 2
    said = capsys.readouterr().err
    for words in ("tiers: all -> core", "sandbox: yes -> none", "marking: with names -> without"):
        assert words in said
    assert (tmp_path / "out" / "points.csv").read_bytes() == before

    assert grade(*given, "--change") == 0
    assert grade(*given) == 0  # these are the settings now


def test_settings_of_a_run_that_graded_nothing_hold_nobody_up(
    grade: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the sandbox could not start, and `--unsafe-local` is tried next."""

    def refused(*given: Any) -> Any:
        raise NoSandbox("no namespaces here")

    monkeypatch.setattr(classroom, "grade_one", refused)
    assert grade() == 2
    monkeypatch.undo()
    assert grade("--unsafe-local") == 0


def test_a_name_that_matches_nobody_stops_before_anything_is_graded(
    grade: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    course = tmp_path / "course.toml"
    course.write_text("[labs.step-filling.students.Eva]\nbonus = 5\n")
    assert grade("--course", str(course)) == 2
    assert "no hand-in is called 'Eva'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    course.write_text("[labs.step-filling.students.eve]\nbonus = 5\nwhy = 'the kernel'\n")
    assert grade("--course", str(course)) == 0
    assert _totals(tmp_path / "out") == {"ada": 90, "bob": 0, "eve": 65}
    page = (tmp_path / "out" / "students" / "eve" / "feedback.html").read_text("utf8")
    assert "a bonus of 5 points: the kernel" in page


# ---- a part of the lab


def test_the_core_alone(
    small_lab: Lab, grade: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tasks of other tiers are neither run nor counted nor shown."""
    tiers = {task.name: task.tier for task in small_lab.tasks}
    assert set(tiers.values()) == {"core", "depth"}
    assert grade("--tiers", "core") == 0
    printed = capsys.readouterr().out
    assert "fit /60" in printed
    assert "admit" not in printed
    assert _totals(tmp_path / "out") == {"ada": 60, "bob": 0, "eve": 60}
    results = _results(tmp_path / "out", "ada")
    assert sum(test["max_score"] for test in results["tests"]) == 60
    page = (tmp_path / "out" / "students" / "ada" / "feedback.html").read_text("utf8")
    assert '60</span> <span class="soft">of 70 points' in page
    assert small_lab.task("admit").title not in page
    assert grade("--tiers", "frontier") == 2
    assert "no tier 'frontier' in the lab step-filling; there are: core, depth" in (
        capsys.readouterr().err
    )
    assert grade("--tiers", "depth,core", "--change") == 0  # everything
    assert _totals(tmp_path / "out")["ada"] == 90


# ---- marking


def _marks(tmp_path: Path) -> tuple[Path, list[dict[str, str]]]:
    path = tmp_path / "out" / "written" / "explain.csv"
    return path, list(csv.DictReader(path.read_text("utf-8-sig").splitlines()))


def _fill(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def test_each_row_of_the_rubric_has_a_column(
    graded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert graded() == 0
    path, rows = _marks(tmp_path)
    ada, eve = sorted(rows, key=lambda row: row["student"])
    ada["Who starves /5"], ada["A change that works /5"] = "2,5", "4"
    eve["Who starves /5"] = "5"
    _fill(path, rows, ";")  # as a spreadsheet of some countries saves it
    capsys.readouterr()
    assert graded() == 0
    said = capsys.readouterr().err
    assert "explain: eve: 1 of 2 rows are marked, the answer counts as unmarked" in said
    assert _totals(tmp_path / "out") == {"ada": 96.5, "bob": 0, "eve": 60}
    (test,) = [t for t in _results(tmp_path / "out", "ada")["tests"] if t["max_score"] == 10]
    assert test["output"] == "Who starves: 2.5; A change that works: 4"
    page = (tmp_path / "out" / "students" / "ada" / "feedback.html").read_text("utf8")
    assert "Who starves: 2.5; A change that works: 4" in page
    path, rows = _marks(tmp_path)
    ada, eve = sorted(rows, key=lambda row: row["student"])
    assert (ada["points"], eve["Who starves /5"], eve["points"]) == ("6.5", "5", "")
    ada["points"] = "9"
    _fill(path, rows)
    assert graded() == 0
    assert "explain: ada: the rows add up to 6.5, not to the 9" in capsys.readouterr().err
    assert _totals(tmp_path / "out")["ada"] == 96.5
    ada["A change that works /5"] = ""  # what a person wrote is kept
    _fill(path, rows)
    assert graded() == 0
    assert "explain: ada: 1 of 2 rows are marked, 9 points count" in capsys.readouterr().err
    assert _totals(tmp_path / "out")["ada"] == 99
    _fill(path, [*rows, ada])
    assert graded() == 2
    assert "explain.csv, line 4: ada is there twice" in capsys.readouterr().err
    ada["A change that works /5"] = "6"
    _fill(path, rows)
    assert graded() == 2
    assert "(ada), A change that works: 6 is not between 0 and 5" in capsys.readouterr().err


def test_a_blind_table_names_nobody_and_its_marks_come_back(
    small_lab: Lab, graded: Any, handed_in: Path, tmp_path: Path
) -> None:
    for name in ("knuth", "liskov", "perlman"):
        (handed_in / f"{name}.ipynb").write_bytes((handed_in / "ada.ipynb").read_bytes())
    assert graded("--blind") == 0
    path, rows = _marks(tmp_path)
    assert all(row["student"].startswith("code-") for row in rows)
    written = "".join(p.read_text("utf8") for p in path.parent.iterdir())
    assert not [name for name in ("ada", "eve", "knuth", "liskov", "perlman") if name in written]
    # Whoever has the list of names must not be able to compute the codes, nor the order.
    public = sorted(
        ("ada", "eve", "knuth", "liskov", "perlman"), key=lambda s: fingerprint(s + "explain")
    )
    code = coder(tmp_path / "out", blind=True)
    assert code is not None
    orders = {tuple(code(s + "explain") for s in public)}
    assert [row["student"] for row in rows] == [code(s) for s in sorted(
        public, key=lambda s: code(s + "explain"))]  # fmt: skip
    (tmp_path / "other").mkdir()
    other = coder(tmp_path / "other", blind=True)
    assert other is not None
    assert tuple(other(s + "explain") for s in public) not in orders
    for row in rows:
        row["points"] = "7" if row["student"] == code("ada") else "3"
    _fill(path, rows)
    assert graded("--blind") == 0
    assert _totals(tmp_path / "out") == {
        "ada": 97, "bob": 0, "eve": 63, "knuth": 93, "liskov": 93, "perlman": 93,
    }  # fmt: skip
    assert graded("--change") == 0  # with names again: nothing is lost
    assert {row["student"]: row["points"] for row in _marks(tmp_path)[1]}["ada"] == "7"


def test_the_courses_separator_is_that_of_tables_for_people(graded: Any, tmp_path: Path) -> None:
    course = tmp_path / "course.toml"
    course.write_text('[course]\nseparator = ";"\n')
    assert graded("--course", str(course)) == 0
    out = tmp_path / "out"
    for name in ("points", "tasks", "tests", "similarity", "written/explain"):
        text = (out / f"{name}.csv").read_bytes()
        assert text.startswith(b"\xef\xbb\xbf")
        assert b";" in text.splitlines()[0]
    for name in ("canvas", "grades", "students", "blackboard"):
        assert (out / f"{name}.csv").read_bytes()[:3].isascii()  # no mark: a program reads it
        assert b";" not in (out / f"{name}.csv").read_bytes()
    assert graded("--course", str(course)) == 0  # reads what it wrote


def test_what_earns_nothing_for_what_it_is_is_said(
    lab: Lab, handed_in: Path, grade: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong file, another lab's: to the instructor by name, to the student in words."""
    (handed_in / "bob.ipynb").write_text(notebook_text(build_notebook(lab)), "utf8")
    for name in ("lab.ipynb", "old.ipynb"):
        (handed_in / "lea").mkdir(exist_ok=True)
        (handed_in / "lea" / name).write_bytes((handed_in / "ada.ipynb").read_bytes())
    os.utime(handed_in / "lea" / "old.ipynb", (0, 0))
    (handed_in / "zoe").mkdir()
    (handed_in / "zoe" / "notes.json").write_text("{}")
    (handed_in / "zoe" / "scratch.ipynb").write_text(json.dumps({"cells": []}))
    for command in ("grade", "regrade"):
        assert grade(command=command) == 0
        said = capsys.readouterr().err
        found = "no task of this lab found in these files"
        assert f"zoe, attempt 1: {found}: scratch.ipynb, notes.json" in said
        assert f"bob, attempt 1: {found}: bob.ipynb" in said
        assert f"of another lab than step-filling, {lab.slug}: bob\n" in said
        assert "another variant" not in said
        assert "lea, attempt 1: lab.ipynb is graded, not: old.ipynb" in said
    assert f"{found}: scratch.ipynb, notes.json" in _results(tmp_path / "out", "zoe")["output"]
    assert f"the file is of the lab '{lab.slug}'" in _results(tmp_path / "out", "bob")["output"]
    assert found not in _results(tmp_path / "out", "ada")["output"]


def test_a_slip_of_the_grader_costs_one_hand_in(
    grade: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    read = classroom.read_handin

    def slips(handin: Any, lab: Lab) -> Any:
        if handin.student == "bob":
            raise RecursionError("too deep")
        return read(handin, lab)

    monkeypatch.setattr(classroom, "read_handin", slips)
    assert grade() == 1
    assert f"bob: {BROKEN}: RecursionError: too deep" in capsys.readouterr().err
    assert _totals(tmp_path / "out") == {"ada": 90, "bob": 0, "eve": 60}
    monkeypatch.setattr(classroom, "read_handin", read)
    assert grade(command="regrade") == 1  # nothing of his was kept
    assert grade() == 0


def test_a_name_in_a_table_is_no_formula(graded: Any, handed_in: Path, tmp_path: Path) -> None:
    for name in ("=HYPERLINK(1)", "@SUM(1)"):
        (handed_in / f"{name}.ipynb").write_bytes((handed_in / "ada.ipynb").read_bytes())
    assert graded() == 0
    out = tmp_path / "out"
    marks = out / "written" / "explain.csv"
    rows = list(csv.DictReader(marks.read_text("utf-8-sig").splitlines()))
    for row in rows:
        row["points"], row["comment"] = "5", "-1 for the unit"
    with marks.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert graded() == 0  # reads the marks, and writes them anew
    assert graded() == 0
    tables = [*out.glob("*.csv"), *out.glob("written/*.csv")]
    assert {path.stem for path in tables} == {
        "canvas", "blackboard", "brightspace", "grades", "students", "points", "tasks", "tests",
        "similarity", "explain",
    }  # fmt: skip
    for path in tables:
        with path.open(newline="", encoding="utf-8-sig") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))], path
    page = out / "students" / "HYPERLINK-1" / "feedback.html"
    results = json.loads(page.with_name("results.json").read_text("utf8"))
    assert results["score"] == 95
    assert results["tests"][-1]["output"] == "-1 for the unit"


def test_a_table_of_marks_that_a_spreadsheet_saved_its_way(
    graded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert graded() == 0
    table = tmp_path / "out" / "written" / "explain.csv"
    table.write_text("answer,student,points\n1.0,ada,5\n")
    assert graded() == 0
    assert _totals(tmp_path / "out")["ada"] == 95
    table.write_bytes("student,points,comment\nada,5,\u00fc\n".encode("latin1"))
    assert graded() == 2
    assert "explain.csv is not in UTF-8: save it as CSV UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", ["0", "-1", "two", "\u00b2"])
def test_a_number_of_jobs_that_is_none(
    grade: Any, jobs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        grade(f"--jobs={jobs}")
    assert f"a whole number of at least 1, not {jobs!r}" in capsys.readouterr().err


def test_an_out_that_is_a_file_is_named(
    grade: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("")
    assert grade() == 2
    said = capsys.readouterr().err
    assert said.startswith("labkit: [Errno ")
    assert str(tmp_path / "out") in said


def test_the_key_that_released_a_lab_grades_it(
    small_lab: Lab, handed_in: Path, grade: Any, tmp_path: Path
) -> None:
    key = tmp_path / "course.key"
    default = small_lab.default_variant
    while not key.exists() or read_key(key).choose(small_lab).variant == default:
        key.unlink(missing_ok=True)
        assert main(["key", str(key)]) == 0
    chosen = read_key(key).choose(small_lab)
    solved = notebook_text(build_notebook(small_lab, chosen.variant, solution=True))
    (handed_in / "ada.ipynb").write_text(solved, "utf8")
    assert grade("--course-key-file", str(key)) == 0
    assert _totals(tmp_path / "out")["ada"] == 90
    assert chosen.variant in (tmp_path / "out" / "index.html").read_text("utf8")
    # Without the key everything is graded again, as another variant: not by mistake.
    assert grade() == 2
    assert grade("--change") == 0
    assert _totals(tmp_path / "out")["ada"] < 90


def test_a_bar_shows_how_far_it_is(
    grade: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert grade() == 0
    assert "hand-ins" not in capsys.readouterr().err  # nobody watches
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert grade() == 0
    assert "grading step-filling: 100%" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_end_with_a_command_that_was_killed(
    small_lab: Lab, handed_in: Path, tmp_path: Path
) -> None:
    """And the same command, started again, finishes."""
    out = tmp_path / "out"
    solved = (handed_in / "ada.ipynb").read_bytes()
    for number in range(8):
        (handed_in / f"more{number}.ipynb").write_bytes(solved)
    given = [str(small_lab.folder), str(handed_in), "--out", str(out), "--jobs", "2"]
    command = [sys.executable, "-m", "labkit.cli", "grade", *given]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as running:
        _wait_until(lambda: len(list(out.glob("students/*/attempt-1.json"))) >= 2)
        running.kill()
    _wait_until(lambda: not _session(running.pid))
    assert 2 <= len(records_in(out)) < 11
    assert main(["grade", *given]) == 0
    assert len(_totals(out)) == 11


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _session(leader: int) -> list[str]:
    """The processes that live in a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(path.parent.name)
    return found
