"""Tables out: what each course system imports, and what a person's spreadsheet opens."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from labkit.course.course import Course, Late, Own
from labkit.course.gradebook import Result, write_tables
from labkit.course.marks import Mark
from labkit.course.record import Record, Verdict
from labkit.course.roster import read_roster
from labkit.course.solve_rates import write_solve_rates
from labkit.course.tables import read_table, write_for_people
from labkit.reader.lab import Lab, LabError


def _result(lab: Lab, student: str, share: float = 1.0, system: str = "", **more: Any) -> Result:
    """A student who earned a share of each test's points, and nothing in words."""
    verdicts = [
        Verdict(
            task.name, f"{test.name}!", test.spec, test.points * share, test.points,
            None if share == 1 else "got nothing", test.name,
        )
        for task in lab.tasks
        for test in task.tests
    ]  # fmt: skip
    record = Record(
        lab.slug, student, f"{student}.ipynb", 1, None, False, "", "", "shortest", 0.1, verdicts,
        system=system,
    )  # fmt: skip
    return Result(lab, record, 1, **({"late": Late(), "marks": {}} | more))


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf8") as file:
        return list(csv.reader(file))


def _write(out: Path, lab: Lab, results: list[Result], **course: Any) -> list[str]:
    out.mkdir(exist_ok=True)
    return write_tables(out, results, lab, Course(**course))


def _systems(out: Path) -> set[str]:
    return {path.stem for path in out.glob("*.csv")} - {"grades", "students"}


def _roster(tmp_path: Path, text: str, encoding: str = "utf-8") -> Any:
    path = tmp_path / "roster.csv"
    path.write_bytes(text.encode(encoding))
    return read_roster(path)


def test_each_system_gets_its_own_table_by_the_names_of_the_hand_ins(
    small_lab: Lab, tmp_path: Path
) -> None:
    names = {"canvas": "lovelaceada_40", "moodle": "Zo\u00eb M\u00fcller_41", "blackboard": "bob_s"}
    for system, name in names.items():
        out = tmp_path / system
        assert _write(out, small_lab, [_result(small_lab, name, system=system)]) == []
        assert _systems(out) == {system}
    assert _rows(tmp_path / "moodle" / "moodle.csv") == [
        ["Identifier", "Full name", "Grade", "Maximum Grade", "Last modified (grade)"],
        ["Participant 41", "Zo\u00eb M\u00fcller", "90", "100", ""],
    ]
    assert _rows(tmp_path / "blackboard" / "blackboard.csv") == [
        ["Last Name", "First Name", "Username", small_lab.title],
        ["", "", "bob_s", "90"],
    ]
    assert _rows(tmp_path / "canvas" / "canvas.csv")[2] == ["lovelaceada", "40", "", "", "", "90"]


def test_names_by_hand_are_user_names(small_lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _write(out, small_lab, [_result(small_lab, "ada")]) == []
    assert _systems(out) == {"canvas", "blackboard", "brightspace"}
    assert _rows(out / "brightspace.csv") == [
        ["OrgDefinedId", "Username", f"{small_lab.title} Points Grade", "End-of-Line Indicator"],
        ["", "#ada", "90", "#"],
    ]
    assert _rows(out / "canvas.csv")[2] == ["ada", "", "", "ada", "", "90"]


def test_brightspaces_names_need_its_roster(small_lab: Lab, tmp_path: Path) -> None:
    results = [
        _result(small_lab, "Mary-Ann Smith_12", system="brightspace"),
        _result(small_lab, "N7 Wei Zhang_12", 0.5, system="brightspace"),
    ]
    out = tmp_path / "out"
    (problem,) = _write(out, small_lab, results)
    assert problem.startswith("no table for Brightspace: its names of files hold no user names")
    assert _systems(out) == set()
    roster = _roster(
        tmp_path,
        "OrgDefinedId,Username,Last Name,First Name,"
        "Lab 1 Points Grade <Numeric MaxPoints:100>,End-of-Line Indicator\n"
        "#0042,#msmith,Smith,Mary-Ann,,#\n#N7,#wz1,Zhang,Wei,,#\n#N8,#wz2,Zhang,Wei,,#\n",
    )
    problems = _write(out, small_lab, results, roster=roster, column="Lab 1")
    assert problems == ["1 of 3 on the roster handed in nothing: Wei Zhang"]
    assert _rows(out / "brightspace.csv") == [
        ["OrgDefinedId", "Username", "Lab 1 Points Grade <Numeric MaxPoints:100>",
         "End-of-Line Indicator"],
        ["#0042", "#msmith", "90", "#"],
        ["#N7", "#wz1", "45", "#"],
    ]  # fmt: skip


def test_two_of_one_name_are_nobody_rather_than_the_wrong_one(
    small_lab: Lab, tmp_path: Path
) -> None:
    roster = _roster(
        tmp_path,
        "OrgDefinedId,Username,Last Name,First Name,End-of-Line Indicator\n"
        "#N7,#wz1,Zhang,Wei,#\n#N8,#wz2,Zhang,Wei,#\n",
    )
    results = [_result(small_lab, "Wei Zhang_12", system="brightspace")]
    problems = _write(tmp_path / "out", small_lab, results, roster=roster)
    assert problems == [
        "2 of 2 on the roster handed in nothing: Wei Zhang, Wei Zhang",
        "more than one on the roster is called so: Wei Zhang_12; in no table, enter their points "
        "by hand",
    ]
    stranger = [_result(small_lab, "Eve Ng_12", system="brightspace")]
    problems = _write(tmp_path / "out", small_lab, stranger, roster=roster)
    assert problems[1] == "not on the roster, and in no table for it: Eve Ng_12"
    assert _systems(tmp_path / "out") == set()


def test_a_moodle_worksheet_comes_back_filled_in(small_lab: Lab, tmp_path: Path) -> None:
    """The times by which Moodle sees what changed since stay; nothing is above its maximum."""
    roster = _roster(
        tmp_path,
        "\ufeffIdentifier,Full name,Email address,Status,Grade,Maximum Grade,"
        "Last modified (grade),Feedback comments\n"
        'Participant 41,Ada Lovelace,ada@x.org,Submitted,,100.00,"Monday, 12 October",\n'
        "Participant 42,Bob Stone,bob@x.org,Submitted,,100.00,-,\n"
        "Participant 43,Eve Absent,eve@x.org,No submission,,100.00,-,\n",
    )
    results = [
        _result(small_lab, "Ada Lovelace_41", system="moodle", own=Own(bonus=15)),
        _result(small_lab, "bob@x.org", 0.5),
    ]
    problems = _write(tmp_path / "out", small_lab, results, roster=roster)
    assert problems == [
        "1 of 3 on the roster handed in nothing: Eve Absent",
        "moodle.csv: Ada Lovelace_41 has 105, more than Moodle's maximum of 100, and gets that",
    ]
    header, *rows = _rows(tmp_path / "out" / "moodle.csv")
    assert header[-1] == "Feedback comments"
    assert [row[4] for row in rows] == ["100", "45", ""]
    assert [row[6] for row in rows] == ["Monday, 12 October", "-", "-"]  # no formulas
    assert _systems(tmp_path / "out") == {"moodle"}


def test_another_maximum_in_moodle_is_said(small_lab: Lab, tmp_path: Path) -> None:
    roster = _roster(
        tmp_path,
        "Identifier,Full name,Grade,Maximum Grade,Last modified (grade)\n"
        "Participant 41,Ada Lovelace,,10.00,-\n",
    )
    results = [_result(small_lab, "Ada Lovelace_41", system="moodle")]
    problems = _write(tmp_path / "out", small_lab, results, roster=roster)
    assert problems[-1] == "moodle.csv: the assignment's maximum grade is not the lab's 100"


def test_blackboards_column_keeps_its_number(small_lab: Lab, tmp_path: Path) -> None:
    """It comes as tabs in UTF-16, and makes a new column for a name without its number."""
    column = f"{small_lab.title} [Total Pts: 100 Score] |123456"
    roster = _roster(
        tmp_path,
        f'"Last Name"\t"First Name"\t"Username"\t"Student ID"\t"{column}"\n'
        "M\u00fcller\tZo\u00eb\tzm1\t777\t\n",
        "utf-16",
    )
    _write(tmp_path / "out", small_lab, [_result(small_lab, "777")], roster=roster)
    text = (tmp_path / "out" / "blackboard.csv").read_text("utf8")
    assert text.splitlines()[1] == '"Müller","Zoë","zm1","90"'
    assert _rows(tmp_path / "out" / "blackboard.csv") == [
        ["Last Name", "First Name", "Username", column],
        ["M\u00fcller", "Zo\u00eb", "zm1", "90"],
    ]


def test_canvas_gets_the_absent_too_and_its_columns_number(small_lab: Lab, tmp_path: Path) -> None:
    roster = _roster(
        tmp_path,
        "Student,ID,SIS User ID,SIS Login ID,Section,Lab 1 (7712)\n"
        "    Points Possible,,,,,100\n"
        '"Lovelace, Ada",40,S1,ada,A,\n"Hopper, Grace",41,S2,grace,A,\n',
    )
    results = [_result(small_lab, "lovelaceada_40", system="canvas")]
    _write(tmp_path / "out", small_lab, results, roster=roster, column="Lab 1")
    header, _, *rows = _rows(tmp_path / "out" / "canvas.csv")
    assert header[-1] == "Lab 1 (7712)"
    assert rows == [["Lovelace, Ada", "40", "S1", "ada", "A", "90"],
                    ["Hopper, Grace", "41", "S2", "grace", "A", ""]]  # fmt: skip
    students = _rows(tmp_path / "out" / "students.csv")
    assert students[1] == ["ada", "Lovelace", "Ada", "", "40"]


def test_a_table_of_an_earlier_run_does_not_stay(small_lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _write(out, small_lab, [_result(small_lab, "ada")])
    _write(out, small_lab, [_result(small_lab, "a_1", system="canvas")])
    assert _systems(out) == {"canvas"}


def test_what_no_system_wrote_is_no_roster(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="is no gradebook that is known by its columns"):
        _roster(tmp_path, "name,points\nada,3\n")


# ---- what the course decides for one student


def test_a_bonus_and_an_override_count(small_lab: Lab) -> None:
    late = Late(0.8, "late")
    result = _result(small_lab, "ada", late=late, own=Own(bonus=4.5, why="kernel"))
    assert result.total == 90 * 0.8 + 4.5
    assert result.remarks() == ["late", "a bonus of 4.5 points: kernel"]
    assert result.gradescope()["score"] == 76.5
    assert "a bonus of 4.5 points: kernel" in result.gradescope()["output"]
    fixed = _result(small_lab, "ada", late=late, own=Own(points=61, why="oral exam"))
    assert fixed.total == 61
    assert "your instructor set 61 points: oral exam" in fixed.gradescope()["output"]


# ---- tables for a person


def test_solve_rates_count_the_whole_class(small_lab: Lab, tmp_path: Path) -> None:
    mark = Mark(1, "ada", 7.5, "", "")
    results = [
        _result(small_lab, "ada", marks={"explain": mark}, own=Own(bonus=2)),
        _result(small_lab, "bob"),
        _result(small_lab, "Zo\u00eb", 0.0),
    ]
    write_solve_rates(tmp_path, small_lab, results, ",")
    _, tasks = read_table(tmp_path / "tasks.csv")
    assert tasks[0] == {
        "task": "fit", "title": "What fits into a step", "tier": "core", "of": "60", "mean": "40",
        "students": "3", "all": "2", "none": "1", "solve rate": "0.667",
    }  # fmt: skip
    _, tests = read_table(tmp_path / "tests.csv")
    assert len(tests) == sum(len(task.tests) for task in small_lab.tasks)
    assert {(row["passed"], row["solve rate"]) for row in tests} == {("2", "0.667")}
    assert tests[0]["what the task says"] == small_lab.tasks[0].tests[0].spec
    _, points = read_table(tmp_path / "points.csv")
    assert points[0] == {
        "student": "ada", "fit": "60", "admit": "30", "explain": "7.5", "late factor": "1",
        "bonus": "2", "set to": "", "total": "99.5", "of": "100",
    }  # fmt: skip


def test_a_spreadsheet_that_parts_by_semicolons_gets_its_commas(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_for_people(path, [["student", "points"], ["Zo\u00eb", 7.5], ["=1+1", 3.0]], ";")
    assert path.read_bytes().decode("utf8") == (
        "\ufeffstudent;points\r\nZo\u00eb;7,5\r\n'=1+1;3\r\n"
    )
    assert read_table(path)[1][0] == {"student": "Zo\u00eb", "points": "7,5"}
