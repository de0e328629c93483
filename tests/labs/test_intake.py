"""Whose a file is, as course systems name it; archives that are not what they seem."""

from __future__ import annotations

import os
import zipfile
from datetime import datetime
from pathlib import Path

import pytest

from labkit.course.classroom import read_handin
from labkit.course.intake import find_handins, folder_name
from labkit.reader.lab import Lab, LabError


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
        ("export/submission_5678/lab.ipynb", "submission_5678"),
        ("submitted/ada/autoregressive-decoding/autoregressive-decoding.ipynb", "ada"),
        ("course/submitted/ada/lab 1/autoregressive-decoding.ipynb", "ada"),
        # What a student named, inside what a course system named, says nothing.
        ("Eve_2_assignsubmission_file/Ada Lovelace_1234_9_lab.ipynb", "Eve_2"),
        ("Eve_2_assignsubmission_file/Ada_1_assignsubmission_file/lab.ipynb", "Eve_2"),
        ("Eve_2_assignsubmission_file/submitted/Ada_1/x/lab.ipynb", "Eve_2"),
        ("export/submission_5678/submission_1/ada_1_2_lab.ipynb", "submission_5678"),
        ("submitted/eve/lab 1/submitted/ada/lab 1/lab.ipynb", "eve"),
        ("submitted/eve/lab 1/ada_1_2_lab.ipynb", "eve"),
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
    assert (handin.student, handin.read(), problems) == (student, b"{}", [])


def test_canvas_says_late_and_counts_attempts(lab: Lab, tmp_path: Path) -> None:
    path = _zip(
        tmp_path / "class.zip",
        {"x_LATE_1_30_lab-2.ipynb": "b", "x_1_20_lab-1.ipynb": "a", "y_2_21_lab.ipynb": "c"},
    )
    handins, _ = find_handins([path], lab)
    found = [(h.student, h.attempt, h.marked_late, h.read()) for h in handins]
    assert found == [("x_1", 1, False, b"a"), ("x_1", 2, True, b"b"), ("y_2", 1, False, b"c")]
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
    assert [(h.student, h.member) for h in handins] == [("ada_1", "ada_1_2_lab.pdf")]
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
    monkeypatch.setattr("labkit.course.intake.MAX_TOTAL", 1)
    _, problems = find_handins([good, _plain(tmp_path)], lab)
    assert problems[0].startswith("good.zip holds 1 files of 2 bytes; 5000 files and 1 bytes are")


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
    assert (handin.student, handin.read()) == (student, b"{}")
    assert handin.file_name == f"{student}.ipynb"
    assert handin.name == f"class.zip: {student}.ipynb"


def test_a_name_of_bytes_that_are_no_text(lab: Lab, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/ev\xff.ipynb"))
    path.write_text("{}")
    (handin,), _ = find_handins([tmp_path], lab)
    assert (handin.student, handin.file_name) == ("ev\\udcff", "ev\\udcff.ipynb")
    assert handin.read() == b"{}"
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
    assert handin.read() == b"2"
    assert problems == ["class.zip holds 2 files of the name ada.ipynb: the last one counts"]


@pytest.mark.parametrize(
    ("method", "at"), [(zipfile.ZIP_DEFLATED, 0), (zipfile.ZIP_LZMA, 10), (zipfile.ZIP_BZIP2, 0)]
)
def test_a_damaged_file_of_a_zip_costs_its_student_alone(
    lab: Lab, tmp_path: Path, method: int, at: int
) -> None:
    path = tmp_path / "class.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("eve.ipynb", "{}" * 500)
        archive.writestr("ada.ipynb", "{}")
    data = bytearray(path.read_bytes())
    begin = 30 + len("eve.ipynb") + at
    data[begin : begin + 8] = b"\xff" * 8
    path.write_bytes(data)
    ada, eve = (read_handin(handin, lab) for handin in find_handins([path], lab)[0])
    assert "the file cannot be read: " in eve.defects[0]
    assert "cannot be read" not in ada.defects[0]
