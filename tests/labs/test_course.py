"""The rules of a course: late, again, who is who; and mistakes in its file."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from labkit.course.course import Course, Own
from labkit.course.course_file import load_course, read_times
from labkit.course.roster import read_roster
from labkit.reader.lab import LabError

DUE = datetime(2026, 10, 12, 23, 59)
RULES = Course(
    due=DUE, grace=timedelta(minutes=30), percent_per_day=10, closed_after_days=5, counts="last"
)


@pytest.mark.parametrize(
    ("minutes", "factor"),
    [
        (-600, 1.0),
        (0, 1.0),
        (30, 1.0),
        (31, 0.9),
        (24 * 60, 0.9),
        (24 * 60 + 1, 0.8),
        (5 * 24 * 60, 0.5),
        (5 * 24 * 60 + 1, 0.0),
    ],
)
def test_what_a_late_hand_in_keeps(minutes: int, factor: float) -> None:
    late = RULES.late(DUE + timedelta(minutes=minutes))
    assert late.factor == pytest.approx(factor)
    assert bool(late.words) == (factor < 1)


def test_the_words_say_how_late_and_what_is_lost() -> None:
    words = RULES.late(DUE + timedelta(hours=30)).words
    assert words == ("handed in 30.0 hours after the deadline of 12 Oct 2026 23:59: 20 % taken off")
    assert "after it was closed: no points" in RULES.late(DUE + timedelta(days=9)).words


def test_without_a_time_nothing_is_taken_off() -> None:
    assert RULES.late(None).factor == 1
    assert RULES.late(None, marked_late=True).factor == 1
    assert "no time known" in RULES.late(None, marked_late=True).words
    assert Course().late(datetime(2030, 1, 1), marked_late=True).words == ""


def test_dates_of_files_count_only_where_the_course_says_so() -> None:
    then = datetime(2026, 10, 13)
    assert Course().time_of("ada", then) is None
    assert Course(use_file_times=True).time_of("ada", then) == then
    assert Course(times={"ada": DUE}, use_file_times=True).time_of("ada", then) == DUE


@pytest.mark.parametrize(
    ("counts", "at_most", "index"),
    [("last", None, 3), ("best", None, 1), ("last", 3, 2), ("best", 1, 0)],
)
def test_which_attempt_counts(counts: str, at_most: int | None, index: int) -> None:
    course = Course(counts=counts, at_most=at_most)
    assert course.counted([10, 90, 40, 50]) == index


def test_the_latest_of_equals_is_best() -> None:
    assert Course(counts="best").counted([50, 50, 20]) == 1


FILE = """
[course]
roster = "roster.csv"
[late]
times = "times.csv"
grace_minutes = 15
percent_per_day = 2.5
[resubmission]
counts = "best"
at_most = 2
[labs.paged-kv-cache]
due = 2026-10-12T23:59:00
column = "Lab 1 (77)"
"""


def test_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "course.toml").write_text(FILE)
    (tmp_path / "times.csv").write_text("student,submitted\nada,2026-10-12T20:00:00\n")
    (tmp_path / "roster.csv").write_text(
        "\ufeffStudent,ID,SIS User ID,SIS Login ID,Section,Lab 1 (77)\n"
        "    Points Possible,,,,,100\n"
        '"Lovelace, Ada",4000,S1,ada,A,\n"Hopper, Grace",4001,S2,grace@x.org,A,\n',
        "utf8",
    )
    course = load_course(tmp_path / "course.toml", "paged-kv-cache")
    assert (course.due, course.column) == (DUE, "Lab 1 (77)")
    assert (course.counts, course.at_most) == ("best", 2)
    assert course.times == {"ada": datetime(2026, 10, 12, 20)}
    people = {student: course.roster.person(student) for student in STUDENTS}
    assert [(p.login if p else None) for p in people.values()] == [
        "ada",
        "ada",
        *3 * ["grace@x.org"],
        None,
    ]
    assert course.time_of("lovelaceada_4000", None) == datetime(2026, 10, 12, 20)  # by the roster
    assert load_course(tmp_path / "course.toml", "batching").due is None


STUDENTS = ("lovelaceada_4000", "ADA", "grace@x.org", "Hopper, Grace", "Grace Hopper", "eve_1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[lates]\n", r"\[lates\] is not one of: course, late"),
        ("[labs.x]\ndeu = 2026-01-01T00:00:00\n", r"\[labs\.x\] deu is not .*; perhaps due\?"),
        ("[labs.batchin]\ndue = 2026-01-01T00:00:00\n", r"\[labs\] batchin is .*perhaps batching"),
        ("[labs.x.students.ada]\nbonsu = 5\n", r"\[labs.x.students.ada\] bonsu is .*perhaps bonus"),
        ("[labs.x.students]\nada = 5\n", "labs.x.students.ada is a table, not 5"),
        ("[labs.x.students.ada]\npoints = -5\n", "points is a number of at least 0, not -5"),
        ('[course]\nseparator = "|"\n', "separator is .* not '|'"),
        ('[late]\ntimes = "twice.csv"\n', "twice.csv, line 3: ada is there twice"),
        ("labs = 3\n", "labs is a table, not 3"),
        ("late = 3\n", r"late is a table, not 3: write \[late\]"),
        ("[late]\ntimes = 3\n", "times is a str, not 3"),
        ("[late]\npercent_per_day = nan\n", "percent_per_day is a number of at least 0, not nan"),
        ("[late]\npercent = 3\n", r"\[late\] percent is not one of"),
        ("[late]\npercent_per_day = -1\n", "percent_per_day is a number of at least 0, not -1"),
        ('[late]\ngrace_minutes = "5"\n', "grace_minutes is a number of at least 0, not '5'"),
        ('[resubmission]\ncounts = "first"\n', "counts is .* not 'first'"),
        ("[resubmission]\nat_most = 0\n", "at_most is at least 1, not 0"),
        ('[labs.x]\ndue = "monday"\n', "due is a datetime, not 'monday'"),
        ("[labs.x]\ndue = 2026-01-01T00:00:00Z\n", "due is local time, without an offset"),
        ("[late\n", "course.toml: "),
        ('[late]\ntimes = "none.csv"\n', "none.csv cannot be read: No such file"),
        ('[late]\ntimes = "bad.csv"\n', "bad.csv, line 2: 'noon' is no time"),
        ('[course]\nroster = "bad.csv"\n', "bad.csv is no gradebook that is known by its columns"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "bad.csv").write_text("student,submitted\nada,noon\n")
    twice = "student,submitted\nada,2026-10-12\nada,2026-10-13\n"
    (tmp_path / "twice.csv").write_text(twice)
    path = tmp_path / "course.toml"
    path.write_text(text)
    with pytest.raises(LabError, match=words):
        load_course(path, "x")


def test_no_file_means_no_rules_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    assert load_course(None, "x") == Course()
    with pytest.raises(LabError, match="cannot be read"):
        load_course(tmp_path / "none.toml", "x")


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "course.toml"
    path.write_bytes("# Fr\u00fchling\n".encode("latin1"))
    with pytest.raises(LabError, match=r"course\.toml: 'utf-8' codec can't decode"):
        load_course(path, "x")


def test_a_lab_of_ones_own_is_known_where_it_lies(tmp_path: Path) -> None:
    """Beside the course's file, or as the lab that is graded."""
    path = tmp_path / "course.toml"
    path.write_text("[labs.mine]\ndue = 2026-10-12T23:59:00\n")
    assert load_course(path, "mine").due == DUE
    with pytest.raises(LabError, match=r"\[labs\] mine is not one of"):
        load_course(path, "batching")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "lab.toml").write_text('slug = "mine"\n')
    assert load_course(path, "batching").due is None


# ---- what holds for one student


OWN = """
[labs.x]
due = 2026-10-12T23:59:00
[labs.x.students.ada]
due = 2026-10-15T23:59:00
why = "ill for three days"
[labs.x.students."Zoë Müller"]
bonus = 4.5
[labs.x.students.4000]
points = 61
"""


@pytest.fixture
def own(tmp_path: Path) -> Course:
    path = tmp_path / "own.toml"
    path.write_text(OWN, "utf8")
    return load_course(path, "x")


def test_an_extension_moves_one_students_deadline(own: Course) -> None:
    course = replace(own, percent_per_day=10)
    late = DUE + timedelta(days=2)
    assert course.late(late, own=course.own_of("ada")).factor == 1
    assert course.late(late, own=course.own_of("bob")).factor == pytest.approx(0.8)
    assert (
        "deadline of 15 Oct"
        in course.late(late + timedelta(days=2), own=course.own_of("ada")).words
    )
    assert course.own_of("Ada").words() == ["extended to 15 Oct 2026 23:59: ill for three days"]


def test_names_are_found_whatever_their_case_accents_and_numbers(own: Course) -> None:
    assert own.own_of("zoë müller").bonus == 4.5  # taken apart, as macOS writes them
    assert own.own_of("lovelaceada_4000").points == 61
    assert own.own_of("eve") == Own()


def test_a_name_that_matches_nobody_stops(own: Course, tmp_path: Path) -> None:
    students = ["ada", "Zoë Müller", "lovelaceada_4000", "bob"]
    own.check_names(students)
    with pytest.raises(LabError, match="students: no hand-in is called 'Zoë Müller'; perhaps"):
        own.check_names(["ada", "Zoë Muller", "x_4000"])
    (tmp_path / "times.csv").write_text("student,submitted\nbbo,2026-10-12\n")
    course = Course(times=read_times(tmp_path / "times.csv"))
    with pytest.raises(LabError, match="times: no hand-in is called 'bbo'; perhaps 'bob'"):
        course.check_names(students)
    (tmp_path / "roster.csv").write_text("Last Name,First Name,Username\nNguyen,Bao,bbo\n")
    replace(course, roster=read_roster(tmp_path / "roster.csv")).check_names(students)
    with pytest.raises(LabError, match="students: ada and ADA are both ada: keep one"):
        Course(own={"ada": Own(bonus=1), "ADA": Own(bonus=2)}).check_names(students)


def test_an_open_quote_is_named(tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    path.write_text('student,submitted\nada,"2026-10-12' + "\nx,y" * 40_000)
    with pytest.raises(LabError, match=r"times\.csv, line \d+: field larger than field limit"):
        read_times(path)


def test_a_spreadsheets_own_ways_of_csv_are_read(tmp_path: Path) -> None:
    text = "student;submitted\r\nZoë;2026-10-12T20:00:00\r\n"
    expected = {"Zoë": datetime(2026, 10, 12, 20)}
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "times.csv").write_bytes(text.encode(encoding))
        assert read_times(tmp_path / "times.csv") == expected
    (tmp_path / "times.csv").write_text(text.replace(";", "\t"), "utf8")
    assert read_times(tmp_path / "times.csv") == expected
