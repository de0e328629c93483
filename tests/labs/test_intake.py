"""Whose a file is, as course systems name it; archives that are not what they seem."""

from __future__ import annotations

import json
import os
import zipfile
from datetime import datetime
from pathlib import Path

import pytest

from labkit.course.classroom import read_handin
from labkit.course.intake import find_handins, folder_name
from labkit.course.names import common_beginning, names_nobody, of_course_system
from labkit.reader.lab import Lab, LabError

TASK = "# task: sampler\n"


def _zip(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 10, 12, 20, 30, 0)), text)
    return path


@pytest.mark.parametrize(
    ("name", "student"),
    [
        ("lovelaceada_1234_56789_my lab.ipynb", "lovelaceada_1234"),
        ("Ada Lovelace_1234_assignsubmission_file/lab.ipynb", "Ada Lovelace_1234"),
        ("Ada Lovelace_1234_assignsubmission_file_/sub/lab.json", "Ada Lovelace_1234"),
        ("assignment_12_export/submission_5678/lab.ipynb", "submission_5678"),
        ("submitted/ada/autoregressive-decoding/autoregressive-decoding.ipynb", "ada"),
        ("class/submitted/ada/lab 1/autoregressive-decoding.ipynb", "ada"),
        ("Ada Lovelace_1234_assignsubmission_file_lab.ipynb", "Ada Lovelace_1234"),  # flat
        ("Lab 1_alovelace_attempt_2026-10-12-20-30-45_lab.ipynb", "alovelace"),
        ("12-34 - Mary-Ann Smith - Oct 12, 2026 930 PM/lab.ipynb", "Mary-Ann Smith_12"),
        ("12-34 - N0042 - Mary-Ann Smith - Oct 12, 2026 930 PM/x.json", "N0042 Mary-Ann Smith_12"),
        ("12-34 - Wei Zhang - 12 octobre 2026 21 30 - lab.ipynb", "Wei Zhang_12"),
        ("12-34 - Wei Zhang - 2026-10-12 21 30 - lab - 1234.ipynb", "Wei Zhang_12"),
        ("12-34 - Wei Zhang.ipynb", "12-34 - Wei Zhang"),  # by hand
        # What a student named, inside what a course system named, says nothing.
        ("Eve_2_assignsubmission_file/Ada Lovelace_1234_9_lab.ipynb", "Eve_2"),
        ("Eve_2_assignsubmission_file/Ada_1_assignsubmission_file/lab.ipynb", "Eve_2"),
        ("Eve_2_assignsubmission_file/submitted/Ada_1/x/lab.ipynb", "Eve_2"),
        ("assignment_12_export/submission_5678/submission_1/ada_1_2_lab.ipynb", "submission_5678"),
        ("submitted/eve/lab 1/submitted/ada/lab 1/lab.ipynb", "eve"),
        ("submitted/eve/lab 1/ada_1_2_lab.ipynb", "eve"),
        ("eve_1_2_work.zip/ada_3_4_lab.ipynb", "eve_1"),  # a folder of that name, or a zip
        ("eve/ada.ipynb", "eve"),
        ("eve/ada/lab.ipynb", "eve"),
        ("ada.ipynb", "ada"),
        ("ada.submit.json", "ada"),
        ("ada/autoregressive-decoding.ipynb", "ada"),
        ("ada/autoregressive-decoding.submit.json", "ada"),
        ("ada/autoregressive-decoding-restored.ipynb", "ada"),
    ],
)
def test_whose_a_file_is(lab: Lab, tmp_path: Path, name: str, student: str) -> None:
    handins, problems = find_handins([_zip(tmp_path / "class.zip", {name: "{}"})], lab)
    assert [h.student for h in handins] == [student]
    assert problems == []


@pytest.mark.parametrize(
    ("name", "written", "student"),
    [
        ("Élodie Ünal.ipynb", "utf8", "Élodie Ünal"),
        ("E\u0301lodie.ipynb", "utf8", "Élodie"),  # an accent of its own, as macOS writes it
        ("王小明_7_assignsubmission_file_/lab.ipynb", "utf8", "王小明_7"),
        ("Élodie.ipynb", "cp437", "Élodie"),
    ],
)
@pytest.mark.parametrize("says_so", [True, False])
def test_names_in_any_script(
    lab: Lab, tmp_path: Path, name: str, written: str, student: str, says_so: bool
) -> None:
    """Zips hold names in UTF-8, with the bit that says so or without it, or in code page 437."""
    path = tmp_path / "class.zip"
    raw = name.encode(written)
    placeholder = "x" * len(raw)
    _zip(path, {placeholder: "{}"})
    data = path.read_bytes().replace(placeholder.encode(), raw)
    if says_so and written == "utf8":
        at = data.index(b"PK\1\2")  # the flags of the list of contents and of the file itself
        for place in (6, at + 8):
            flags = int.from_bytes(data[place : place + 2], "little") | 0x800
            data = data[:place] + flags.to_bytes(2, "little") + data[place + 2 :]
    path.write_bytes(data)
    (handin,), problems = find_handins([path], lab)
    assert (handin.student, b"".join(handin.read()), problems) == (student, b"{}", [])


def test_canvas_says_late_and_counts_attempts(lab: Lab, tmp_path: Path) -> None:
    path = _zip(
        tmp_path / "class.zip",
        {
            "x_LATE_1_30_lab-2.ipynb": TASK + "b",
            "x_1_20_lab-1.ipynb": TASK + "a",
            "y_2_21_lab.ipynb": "",
        },
    )
    handins, _ = find_handins([path], lab)
    found = [(h.student, h.attempt, h.marked_late, b"".join(h.read())[-1:]) for h in handins]
    assert found == [("x_1", 1, False, b"a"), ("x_1", 2, True, b"b"), ("y_2", 1, False, b"")]
    assert handins[0].submitted == datetime(2026, 10, 12, 20, 30)


def test_folders_files_and_zips_are_one_class(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "bob").mkdir(parents=True)
    (folder / "bob" / "autoregressive-decoding.ipynb").write_text("{}")
    single = tmp_path / "eve.ipynb"
    single.write_text("{}")
    os.utime(single, (0, 0))
    archive = _zip(tmp_path / "rest.zip", {"ada.ipynb": "{}"})
    handins, _ = find_handins([archive, folder, single], lab)
    assert [h.student for h in handins] == ["ada", "bob", "eve"]
    assert handins[2].submitted == datetime.fromtimestamp(0)


def test_what_is_no_hand_in_is_left_out_and_named(lab: Lab, tmp_path: Path) -> None:
    path = _zip(
        tmp_path / "class.zip",
        {
            "ada_1_2_lab.ipynb": "{}",
            "ada_1_2_notes.txt": "",
            "__MACOSX/._ada_1_2_lab.ipynb": "",
            "bob/.ipynb_checkpoints/bob.ipynb": "",
            "readme.md": "",
        },
    )
    handins, problems = find_handins([path], lab)
    assert [h.student for h in handins] == ["ada_1"]
    assert problems == [
        "left out, neither notebook nor submit file: class.zip: ada_1_2_notes.txt, "
        "class.zip: readme.md (2)"
    ]


def test_a_student_who_sent_only_a_pdf_does_not_vanish(lab: Lab, tmp_path: Path) -> None:
    path = _zip(tmp_path / "class.zip", {"ada_1_2_lab.pdf": "%PDF"})
    handins, problems = find_handins([path], lab)
    assert [(h.student, h.members) for h in handins] == [("ada_1", ("ada_1_2_lab.pdf",))]
    assert problems == []


def test_links_are_not_followed(lab: Lab, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "ada.ipynb").write_text("{}")
    (folder / "eve.ipynb").symlink_to(secret)
    path = tmp_path / "class.zip"
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("mallory.ipynb")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, str(secret))
    handins, _ = find_handins([folder, path], lab)
    assert [h.student for h in handins] == ["ada"]


def test_archives_that_cannot_be_read_are_named(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = _zip(tmp_path / "good.zip", {"ada.ipynb": "{}"})
    broken = tmp_path / "broken.zip"
    broken.write_bytes(good.read_bytes()[:40])
    handins, problems = find_handins([good, broken], lab)
    assert [h.student for h in handins] == ["ada"]
    assert problems[0].startswith("broken.zip cannot be read as a zip")
    monkeypatch.setattr("labkit.course.archives.MAX_TOTAL", 1)
    _, problems = find_handins([good, _plain(tmp_path)], lab)
    assert problems[0].startswith(
        "good.zip cannot be read as a zip: it holds 1 files of 2 bytes; 5000 files and 1 bytes are"
    )


def _plain(folder: Path) -> Path:
    path = folder / "bob.ipynb"
    path.write_text("{}")
    return path


def test_a_date_that_is_none(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "class.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("ada.ipynb", (1980, 0, 0, 0, 0, 0)), "{}")
    (handin,), _ = find_handins([path], lab)
    assert handin.submitted is None


def test_nothing_found_and_no_such_path(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"no notebook \(.ipynb\) and no submit file"):
        find_handins([tmp_path], lab)
    with pytest.raises(LabError, match=r"none\.zip does not exist"):
        find_handins([tmp_path / "none.zip"], lab)


@pytest.mark.parametrize(
    "name", ["ada.ipynb", "Ada_1_assignsubmission_file_/ada.ipynb", "Übung\\Élodie\\ada.ipynb"]
)
def test_a_student_reads_the_files_own_name(lab: Lab, tmp_path: Path, name: str) -> None:
    (handin,), _ = find_handins([_zip(tmp_path / "secret place.zip", {name: "{}"})], lab)
    assert handin.file_name == "ada.ipynb"


@pytest.mark.parametrize(
    ("student", "folder"),
    [
        ("Ada Lovelace_12", "Ada-Lovelace_12"),
        ("../../etc/passwd", "etc-passwd"),
        ("ада@x.org", "ада@x.org"),
        ("...", "student"),
        ("a" * 300, "a" * 100),
        ("王" * 100, "王" * 33),  # 99 bytes
    ],
)
def test_no_name_leads_out_of_the_folder(student: str, folder: str) -> None:
    assert folder_name(student) == folder


@pytest.mark.parametrize(
    ("name", "student"),
    [
        ("e\nve.ipynb", "e\\nve"),
        ("e\x1b[2Jve.ipynb", "e\\x1b[2Jve"),
        ("e\u2028ve.ipynb", "e\\u2028ve"),
        ("山田\u3000花子.ipynb", "山田\u3000花子"),  # a space, as names have it
        ("نی\u200cلوفر.ipynb", "نی\u200cلوفر"),
    ],
)
def test_a_name_can_be_shown_anywhere(lab: Lab, tmp_path: Path, name: str, student: str) -> None:
    path = _zip(tmp_path / "class.zip", {name: "{}"})
    (handin,), _ = find_handins([path], lab)
    assert (handin.student, b"".join(handin.read())) == (student, b"{}")
    assert handin.file_name == f"{student}.ipynb"
    assert handin.name == f"class.zip: {student}.ipynb"


def test_a_name_of_bytes_that_are_no_text(lab: Lab, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/ev\xff.ipynb"))
    path.write_text("{}")
    (handin,), _ = find_handins([tmp_path], lab)
    assert (handin.student, handin.file_name) == ("ev\\udcff", "ev\\udcff.ipynb")
    assert b"".join(handin.read()) == b"{}"
    handin.name.encode("utf8")


def test_an_attempt_of_five_thousand_digits(lab: Lab, tmp_path: Path) -> None:
    name = f"x_1_20_lab-{'9' * 5000}.ipynb"
    (handin,), _ = find_handins([_zip(tmp_path / "class.zip", {name: "{}"})], lab)
    assert (handin.student, handin.attempt) == ("x_1", 1)


def test_names_that_are_not_what_the_zip_says_they_are(lab: Lab, tmp_path: Path) -> None:
    path = _zip(tmp_path / "class.zip", {"evxx\u00e9.ipynb": "{}"})  # not ASCII, so marked UTF-8
    path.write_bytes(path.read_bytes().replace(b"evxx", b"ev\xff\xfe"))
    handins, problems = find_handins([path, _plain(tmp_path)], lab)
    assert [h.student for h in handins] == ["bob"]
    assert problems[0].startswith("class.zip cannot be read as a zip: 'utf-8' codec")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_a_zip_holds_twice_is_said(lab: Lab, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "class.zip", "w") as archive:
        archive.writestr("ada.ipynb", "1")
        archive.writestr("ada.ipynb", "2")
    (handin,), problems = find_handins([tmp_path / "class.zip"], lab)
    assert b"".join(handin.read()) == b"2"
    assert problems == ["class.zip holds 2 files of the name ada.ipynb: the last one counts"]


def test_a_damaged_file_of_a_zip_costs_its_student_alone(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "class.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("eve.ipynb", "{}" * 500)
        archive.writestr("ada.ipynb", "{}")
    data = bytearray(path.read_bytes())
    begin = 30 + len("eve.ipynb")
    data[begin : begin + 8] = b"\xff" * 8
    path.write_bytes(data)
    ada, eve = (read_handin(handin, lab) for handin in find_handins([path], lab)[0])
    assert "the file cannot be read: " in eve.problems["sampler"]
    assert "cannot be read" not in ada.problems["sampler"]


# ---- two students stay two


def _held(lab: Lab, *paths: Path) -> dict[str, list[str]]:
    """By student, the contents of each attempt that is graded."""
    found: dict[str, list[str]] = {}
    for handin in find_handins(list(paths), lab)[0]:
        found.setdefault(handin.student, []).append(b"".join(handin.read()).decode())
    return found


def _folders(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_file_in_ones_folder_is_never_anothers(lab: Lab, tmp_path: Path) -> None:
    folder = _folders(tmp_path / "in", {"ada/bob.ipynb": "a", "bob/bob.ipynb": "b"})
    assert _held(lab, folder) == {"ada": ["a"], "bob": ["b"]}
    folder = _folders(tmp_path / "more", {"ada/bob_1_2_lab.ipynb": "a", "ada/bob/x.ipynb": ""})
    assert list(_held(lab, folder)) == ["ada"]


def test_two_folders_with_the_same_file_name_are_two_students(lab: Lab, tmp_path: Path) -> None:
    folder = _folders(tmp_path / "in", {"ada/work.ipynb": "a", "bob/work.ipynb": "b"})
    assert _held(lab, folder) == {"ada": ["a"], "bob": ["b"]}
    wrapped = _zip(tmp_path / "x.zip", {"x/ada/work.ipynb": "a", "x/bob/work.ipynb": "b"})
    assert _held(lab, wrapped) == {"ada": ["a"], "bob": ["b"]}


def test_a_name_beside_the_labs_own_is_a_students(lab: Lab, tmp_path: Path) -> None:
    names = ("ada", "bob", "restored-eve")
    folder = _folders(tmp_path / "in", {f"{lab.slug}-{name}.ipynb": name for name in names})
    assert _held(lab, folder) == {f"{lab.slug}-{name}": [name] for name in names}
    copies = ("", " (1)", "_2", "-restored", "-copy")
    for copy in copies:
        path = _folders(tmp_path / f"of{copy}", {f"{lab.slug}{copy}.ipynb": TASK})
        assert list(_held(lab, path)) == [f"of{copy}"]


@pytest.mark.parametrize(
    "name", ["1-2 - " + "a 2026 " * 9000, "a_1" * 20_000, f"x_attempt_{'_1' * 30_000}"]
)
def test_a_name_without_end_is_no_course_systems(name: str) -> None:
    """A zip holds names of 65,535 characters; the square of that would stop the class."""
    assert of_course_system(name) is None
    assert not names_nobody(f"lab{'1' * 60_000}x.ipynb", "lab")
    assert not names_nobody(f"lab{'1' * 100}x.ipynb", "lab")
    assert common_beginning([name, name + "x"]) == ""


def test_where_it_is_in_doubt_nobody_is_guessed(lab: Lab, tmp_path: Path) -> None:
    """`grade LAB in/*` hands over folders: each may be a student or a part of the class."""
    folder = _folders(tmp_path / "in", {"ada/work.ipynb": "a", "bob/my.ipynb": "b"})
    with pytest.raises(LabError, match=r"whose are .*work\.ipynb and .*my\.ipynb: is"):
        find_handins(sorted(folder.iterdir()), lab)
    zips = [_zip(tmp_path / f"{name}.zip", {"work.ipynb": name}) for name in ("ada", "bob")]
    with pytest.raises(LabError, match="Give the folder above"):
        find_handins(zips, lab)
    plain = _folders(tmp_path / "p", {"ada/work.ipynb": "a", "bob/work.ipynb": "b"})
    with pytest.raises(LabError, match="Give the folder above"):
        find_handins(sorted(plain.rglob("*.ipynb")), lab)
    # What a folder's name alone can say is no doubt; nor are two files of one person.
    own = _folders(tmp_path / "o", {f"{s}/autoregressive-decoding.ipynb": s for s in ("x", "y")})
    assert _held(lab, *sorted(own.iterdir())) == {"x": ["x"], "y": ["y"]}
    assert _held(lab, *sorted(own.rglob("*.ipynb"))) == {"x": ["x"], "y": ["y"]}
    two = _folders(tmp_path / "t", {"ada.ipynb": TASK, "ada.submit.json": ""})
    assert _held(lab, *sorted(two.iterdir())) == {"ada": [TASK]}


def test_a_part_of_the_class_is_not_taken_for_a_student_in_silence(
    lab: Lab, tmp_path: Path
) -> None:
    moodle = {f"a/S{i}_{i}_assignsubmission_file_/lab.ipynb": TASK for i in (1, 2)}
    folder = _folders(tmp_path / "in", moodle | {"b/x.ipynb": ""})
    _, problems = find_handins([folder], lab)
    assert "in a lie names that a course system makes: where a is no student but" in problems[0]
    assert list(_held(lab, folder / "a")) == ["S1_1", "S2_2"]


def test_blackboards_user_names_may_hold_what_parts_them(lab: Lab, tmp_path: Path) -> None:
    names = {f"Lab_1_{user}_attempt_2026-10-12-20-30-4{i}": i for i, user in
             enumerate(("a_smith", "b_smith"))}  # fmt: skip
    files = {f"{name}_lab.ipynb": TASK for name in names} | {f"{name}.txt": "" for name in names}
    handins, problems = find_handins([_zip(tmp_path / "class.zip", files)], lab)
    assert [(h.student, h.system) for h in handins] == [
        ("a_smith", "blackboard"), ("b_smith", "blackboard"),
    ]  # fmt: skip
    assert handins[1].submitted == datetime(2026, 10, 12, 20, 30, 41)
    assert problems == []  # its page about each attempt is none of the student's
    assert [h.others for h in handins] == [(), ()]


def test_brightspace_writes_times_without_a_separator(lab: Lab, tmp_path: Path) -> None:
    files = {f"1-2 - Ada - Jan 3, 2026 {time}/lab.ipynb": TASK for time in ("112 PM", "1201 AM")}
    handins, _ = find_handins([_zip(tmp_path / "class.zip", files)], lab)
    assert [h.submitted for h in handins] == [
        datetime(2026, 1, 3, 0, 1), datetime(2026, 1, 3, 13, 12),
    ]  # fmt: skip


# ---- several files of one student


def _notebook(*tasks: str) -> str:
    cells = [{"cell_type": "code", "source": f"# task: {task}\nx = 1"} for task in tasks]
    return json.dumps({"cells": cells})


def test_the_labs_own_file_is_found_by_what_it_holds(lab: Lab, tmp_path: Path) -> None:
    """In Canvas's order the scratch notebook comes last, and is newer."""
    path = _zip(
        tmp_path / "class.zip",
        {
            "x_1_20_lab.ipynb": _notebook("sampler", "stream"),
            "x_1_21_old.ipynb": _notebook("sampler"),
            "x_1_30_zz scratch.ipynb": _notebook(),
        },
    )
    (handin,), _ = find_handins([path], lab)
    submission = read_handin(handin, lab)
    assert list(submission.cells) == ["sampler", "stream"]
    assert submission.notes[-1] == "x_1_20_lab.ipynb is graded, not: x_1_21_old.ipynb"


def test_a_notebook_of_another_lab_is_not_the_labs_own(lab: Lab, tmp_path: Path) -> None:
    other = '{"metadata": {"labkit": {"lab": "batching"}}}' + TASK + "# task: stream\n"
    path = _zip(tmp_path / "class.zip", {"x_1_20_a.ipynb": TASK, "x_1_21_b.ipynb": other})
    (handin,), _ = find_handins([path], lab)
    assert handin.file_name == "x_1_20_a.ipynb"


def test_metadata_alone_tells_a_task_too(lab: Lab, tmp_path: Path) -> None:
    cell = '{"id": "task-sampler", "metadata": {"nbgrader": {}}}'
    path = _zip(tmp_path / "class.zip", {"x_1_20_a.ipynb": cell, "x_1_21_b.ipynb": "{}"})
    assert _held(lab, path) == {"x_1": [cell]}


def test_nothing_is_no_silent_zero(lab: Lab, tmp_path: Path) -> None:
    path = _zip(tmp_path / "class.zip", {"x_1_20_notes.ipynb": '{"cells": []}', "x_1_21_a.pdf": ""})
    (handin,), _ = find_handins([path], lab)
    words = "no task of this lab found in these files: x_1_20_notes.ipynb, x_1_21_a.pdf"
    assert words in read_handin(handin, lab).notes
    (pdf,), _ = find_handins([_zip(tmp_path / "pdf.zip", {"x_1_21_a.pdf": "%PDF"})], lab)
    assert "no task of this lab found in these files: x_1_21_a.pdf" in read_handin(pdf, lab).notes


def test_who_left_no_notebook_in_a_folder_does_not_vanish(lab: Lab, tmp_path: Path) -> None:
    folder = _folders(tmp_path / "in", {"ada/lab.ipynb": TASK, "bob/work.pdf": "", "notes.md": ""})
    handins, problems = find_handins([folder], lab)
    assert [(h.student, h.file_name) for h in handins] == [
        ("ada", "lab.ipynb"),
        ("bob", "work.pdf"),
    ]
    assert "notes.md (1)" in problems[0]


def test_a_huge_file_of_one_student_costs_a_stated_search(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.course.contents.MAX_SEARCHED", 3000)
    huge = " " * 5000 + TASK
    path = _zip(tmp_path / "class.zip", {"x_1_20_a.ipynb": huge, "x_1_21_b.ipynb": TASK})
    (handin,), _ = find_handins([path], lab)
    assert handin.others  # neither was seen to hold a task; both are named


# ---- zips in zips


def _packed(files: dict[str, str], folder: Path) -> bytes:
    path = folder / "packed.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path.read_bytes()


def test_a_zip_in_a_folder_or_in_a_zip_is_a_students(lab: Lab, tmp_path: Path) -> None:
    packed = _packed({"bob_1_2_work.ipynb": TASK, "__MACOSX/._x.ipynb": ""}, tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("ada.zip", "Eve_7_assignsubmission_file_.zip"):
        (folder / name).write_bytes(packed)
    assert _held(lab, folder) == {"ada": [TASK], "Eve_7": [TASK]}
    with zipfile.ZipFile(tmp_path / "class.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("adal_12_55_mine.zip", packed)
        archive.writestr("Eve_7_assignsubmission_file_/work.zip", packed)
    assert _held(lab, tmp_path / "class.zip") == {"adal_12": [TASK], "Eve_7": [TASK]}


@pytest.mark.parametrize("top", ["/", "//", "../", "../../", "\\", "./", "x/../../"])
def test_no_name_in_a_zip_leads_out_of_its_students_folder(
    lab: Lab, tmp_path: Path, top: str
) -> None:
    packed = _packed({f"{top}Ada_1_assignsubmission_file_/lab.ipynb": TASK, ".": ""}, tmp_path)
    with zipfile.ZipFile(tmp_path / "class.zip", "w") as archive:
        archive.writestr("Eve_7_assignsubmission_file_/work.zip", packed)
        archive.writestr(".", "")
        archive.writestr("/", "")
    assert _held(lab, tmp_path / "class.zip") == {"Eve_7": [TASK]}


def test_a_zip_that_is_not_opened_is_named_and_its_student_stays(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = _packed({"work.ipynb": TASK}, tmp_path)
    deeper = tmp_path / "deeper.zip"
    with zipfile.ZipFile(deeper, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.zip", packed)
    files = {
        "a_1_1_x.zip": deeper.read_bytes(),
        "b_2_2_x.zip": b"PK no zip",
        "c_3_3_x.zip": packed + b" " * 2000,
        "d_4_4_x.zip": packed,
    }
    with zipfile.ZipFile(tmp_path / "class.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    monkeypatch.setattr("labkit.course.archives.MAX_INNER", 1500)
    handins, problems = find_handins([tmp_path / "class.zip"], lab)
    assert [h.student for h in handins] == ["a_1", "b_2", "c_3", "d_4"]
    assert b"".join(handins[3].read()).decode() == TASK
    said = "\n".join(problems)
    assert "class.zip: a_1_1_x.zip: inner.zip is a zip in a zip in a zip and not opened" in said
    assert "class.zip: b_2_2_x.zip cannot be read as a zip: " in said
    assert "class.zip: c_3_3_x.zip cannot be read as a zip: it has more than" in said
    for handin in handins[:3]:
        assert "no task of this lab found" in " ".join(read_handin(handin, lab).notes)


@pytest.mark.parametrize("more", [b"", b"PK\5\6" + bytes(18)], ids=["one end", "two ends"])
def test_a_zip_in_a_zip_with_a_list_without_end_is_not_read(
    lab: Lab, tmp_path: Path, more: bytes
) -> None:
    """A list of a million names would be a gigabyte of objects before one could be counted.

    A second record, in the comment of the first, may look as if it were the one that counts.
    """
    packed = bytearray(_packed({"work.ipynb": TASK}, tmp_path))
    at = packed.rfind(b"PK\5\6")
    packed[at + 12 : at + 16] = (60 << 20).to_bytes(4, "little")
    with zipfile.ZipFile(tmp_path / "class.zip", "w") as archive:
        archive.writestr("b_2_2_x.zip", bytes(packed) + more)
    (handin,), (problem,) = find_handins([tmp_path / "class.zip"], lab)
    assert handin.student == "b_2"
    words = "holds no file" if more else "cannot be read as a zip"
    assert problem.startswith(f"class.zip: b_2_2_x.zip {words}")


def test_a_zip_entry_of_two_names_costs_its_student_alone(lab: Lab, tmp_path: Path) -> None:
    path = _zip(tmp_path / "class.zip", {"adax.ipynb": TASK, "bobx.ipynb": TASK})
    path.write_bytes(path.read_bytes().replace(b"adax", b"evil", 1))  # before the file alone
    ada, bob = (read_handin(handin, lab) for handin in find_handins([path], lab)[0])
    assert "the file cannot be read: File name in directory" in ada.problems["stream"]
    assert "cannot be read" not in bob.problems["stream"]
