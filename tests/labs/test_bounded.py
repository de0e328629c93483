"""Reading what a student sends: under limits of memory and time, in a process of its own."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.author.build import build_notebook, notebook_text
from labkit.course import classroom
from labkit.course.archives import MAX_READ
from labkit.course.classroom import Settings, grade_class, plan, read_handin
from labkit.course.intake import find_handins
from labkit.course.reading import read_bounded
from labkit.grading.variants import choose
from labkit.reader import outputs
from labkit.reader.cells import MAX_SOURCE
from labkit.reader.lab import Lab
from labkit.reader.outputs import TooLarge, _Sieve, without_outputs
from labkit.sandbox.bounded import Bounds, Exceeded, ask

MIB = 1 << 20
DOTTED = "import " + "a." * 99_000 + "a"  # the parser builds each of its beginnings
ACCENTS = "a" + "\u0315\u0300" * 45_000 + " = 1"  # which Unicode has sorted, one by one
FLAT = b"[" + b"0," * (20 * MIB) + b"0]"


# ---- a notebook without its outputs


def test_outputs_attachments_and_widgets_are_left_out() -> None:
    cell = {
        "attachments": {"a.png": {"image/png": "x" * 99}},
        "cell_type": "code",
        "outputs": [{"text": 'a "]}\\'}, [[]]],
        "metadata": {"outputs": [1]},
        "source": '"outputs": [1]',
    }
    notebook = {"cells": [cell, {"outputs": None}, {"outputs": []}], "widgets": {"a": [1]}}
    submitted = {"cells": {"outputs": "def f(): [1]", "widgets": "{}"}, "outputs": [2]}
    kept = json.loads(without_outputs(io.BytesIO(json.dumps(notebook).encode())))
    assert kept == {
        "cells": [
            {**cell, "attachments": {}, "outputs": []},
            {"outputs": None},
            {"outputs": []},
        ],
        "widgets": {"a": [1]},
    }
    assert json.loads(without_outputs(io.BytesIO(json.dumps(submitted).encode()))) == submitted
    metadata = {"metadata": {"widgets": {"state": [1]}, "kernel": {"widgets": [1]}}}
    kept = json.loads(without_outputs(io.BytesIO(json.dumps(metadata).encode())))
    assert kept == {"metadata": {"widgets": {}, "kernel": {"widgets": [1]}}}


VALUES = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('ab"\\[]{}:,é\n')),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["outputs", "cells", "source", 'a"\\']), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["cells", "metadata", "outputs"]), VALUES, max_size=3),
    st.integers(1, 9),
)
def test_whatever_else_is_there_comes_out_as_it_was(notebook: Any, size: int) -> None:
    """However the bytes are cut into chunks."""
    data, sieve, kept = json.dumps(notebook).encode(), _Sieve(), b""
    for at in range(0, len(data), size):
        kept += b"".join(sieve.feed(data[at : at + size]))
    want = json.loads(data)
    lists = [value for value in want.values() if isinstance(value, list)]
    for cell in (item for found in lists for item in found):  # of whatever name, as `cells`
        if isinstance(cell, dict) and isinstance(cell.get("outputs"), list | dict):
            cell["outputs"] = type(cell["outputs"])()
    assert json.loads(kept + sieve.rest) == want


def test_what_is_left_has_a_limit_and_so_has_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "CHUNK", 100)
    monkeypatch.setattr(outputs, "MAX_KEPT", 1000)
    monkeypatch.setattr(outputs, "MAX_BYTES", 5000)
    large = json.dumps({"cells": [{"outputs": ["x" * 4000], "source": "1"}]}).encode()
    assert json.loads(without_outputs(io.BytesIO(large)))["cells"][0]["source"] == "1"
    with pytest.raises(TooLarge, match="larger than"):
        without_outputs(io.BytesIO(large + b" " * 1000))
    with pytest.raises(TooLarge, match="beside the outputs"):
        without_outputs(io.BytesIO(b"[" * 2000))


def test_damaged_json_passes_as_it_is() -> None:
    for data in (b"", b"]]}}", b'{"cells": [{"source": "a\\', b'\xff\xfe{\x00"\x00', b'"' * 99):
        assert without_outputs(io.BytesIO(data)) == data


# ---- the process


def _module(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> str:
    head = "from labkit.sandbox.bounded import serve\ndef answer(request):\n"
    (folder / "answers_for_test.py").write_text(f"{head}    {body}\nserve(answer)\n")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return "answers_for_test"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return len(bytearray(60 << 20))", "more than 50 MiB of memory"),
        ("while True: pass", "more than 1 s of processor time"),
        ("import time; time.sleep(600)", "more than 3 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"crashes \(signal 11\)"),
    ],
)
def test_each_limit_ends_it_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    bounds = Bounds(memory_bytes=50 * MIB, cpu_seconds=1, wall_seconds=3.0)
    if "processor" in words:
        bounds = dataclasses.replace(bounds, wall_seconds=60.0)
    with pytest.raises(Exceeded, match=words):
        ask(_module(tmp_path, monkeypatch, body), None, bounds)


def test_within_the_limits_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module(tmp_path, monkeypatch, "return [request, len(bytearray(20 << 20))]")
    assert ask(module, {"a": "é"}, Bounds(memory_bytes=50 * MIB)) == [{"a": "é"}, 20 * MIB]


def test_labkits_own_fault_is_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError") as found:
        ask(_module(tmp_path, monkeypatch, "return 1 / 0"), None, Bounds())
    assert not isinstance(found.value, Exceeded)


def test_a_file_in_the_working_folder_is_no_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lab: Lab
) -> None:
    """A student's, where an instructor grades in the folder of the hand-ins."""
    for name in ("json.py", "labkit.py"):
        (tmp_path / name).write_text("raise SystemExit('of a student')")
    (tmp_path / "in.ipynb").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert "no list of cells" in read_bounded(Path("in.ipynb"), (), lab).problems["sampler"]


def test_the_threat_model_states_these_limits() -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "book" / "instructors" / "threat-model.md").read_text("utf8")
    bounds = Bounds()
    for row in (
        f"| memory | {bounds.memory_bytes >> 20} MiB more than",
        f"| processor time | {bounds.cpu_seconds} s |",
        f"| wall time | {bounds.wall_seconds:g} s |",
        f"left out as the bytes go by | {outputs.MAX_KEPT >> 20} MiB |",
        f"| the file, its outputs included | {outputs.MAX_BYTES >> 20} MiB |",
        f"| one cell or answer | {MAX_SOURCE:,} characters |",
    ):
        assert row in page


# ---- hand-ins that parsers choke on


def _with_sampler(solved: dict[str, Any], source: str) -> bytes:
    for cell in solved["cells"]:
        if "# task: sampler" in "".join(cell["source"]):
            cell["source"] = f"# task: sampler\n{source}"
    return json.dumps(solved).encode()


def _read(data: bytes, lab: Lab, folder: Path, **bounds: Any) -> tuple[set[str], str]:
    """Which tasks can be graded, and why the sampler cannot."""
    path = folder / "in.ipynb"
    path.write_bytes(data)
    submission = read_bounded(path, (), lab, Bounds(**bounds))
    return set(submission.cells), submission.problems.get("sampler", "")


def test_a_dotted_import_that_fills_the_memory_costs_its_own_cell(
    solved: dict[str, Any], lab: Lab, tmp_path: Path
) -> None:
    cells, why = _read(_with_sampler(solved, DOTTED), lab, tmp_path, memory_bytes=64 * MIB)
    assert cells == {task.name for task in lab.tasks} - {"sampler"}
    assert why == "the cell cannot be compiled: it takes more memory than reading a hand-in may"


def test_a_name_that_takes_minutes_to_compile_ends_at_the_limit(
    solved: dict[str, Any], lab: Lab, tmp_path: Path
) -> None:
    cells, why = _read(_with_sampler(solved, ACCENTS), lab, tmp_path, cpu_seconds=1)
    assert cells == set()
    assert why.startswith("the file cannot be read: it takes more than 1 s of processor time; ")
    assert "clear the notebook's outputs" in why


def test_python_quotes_a_long_name_in_part(
    solved: dict[str, Any], lab: Lab, tmp_path: Path
) -> None:
    name = "n" * 90_000
    source = f"def f({name}, {name}): pass"
    cells, why = _read(_with_sampler(solved, source), lab, tmp_path)
    assert len(cells) == len(lab.tasks) - 1
    assert why.startswith("syntax error in line 2: duplicate argument 'nnn")
    assert len(why) <= 300


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (FLAT, "more than 16 MiB beside the outputs"),
        (b"[" + b"{}," * MIB + b"0]", "more than 48 MiB of memory"),
        (b"[" + b'"\\u00e9",' * 9999 + b"0]", "holds no list of cells"),
    ],
    ids=["flat", "objects", "small"],
)
def test_json_that_fills_the_memory_is_an_empty_hand_in(
    lab: Lab, tmp_path: Path, data: bytes, words: str
) -> None:
    cells, why = _read(data, lab, tmp_path, memory_bytes=48 * MIB)
    assert (cells, words in why) == (set(), True), why


def test_an_output_of_200_mb_hides_nothing(
    solved: dict[str, Any], lab: Lab, tmp_path: Path
) -> None:
    solved["cells"][-1]["outputs"] = [
        {"output_type": "stream", "text": ("x" * 99 + "\n") * (2 * MIB)}
    ]
    cells, why = _read(json.dumps(solved).encode(), lab, tmp_path, memory_bytes=64 * MIB)
    assert (cells, why) == ({task.name for task in lab.tasks}, "")


# ---- zips


def _zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("other", [b"ada.ipynb", b"\xff\xfe.ipynb"], ids=["another", "no text"])
def test_an_entry_whose_two_names_differ_costs_its_student_alone(
    lab: Lab, tmp_path: Path, other: bytes
) -> None:
    path = _zip(tmp_path / "class.zip", {"eve.ipynb": b"{}", "bob.ipynb": b"{}"})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"eve.ipynb", other.ljust(9, b"_"), 1))  # the one at its data
    bob, eve = find_handins([path], lab)[0]
    assert "cannot be read: " in read_handin(eve, lab).problems["sampler"]
    assert "no list of cells" in read_handin(bob, lab).problems["sampler"]
    assert len({eve.digest(), bob.digest()}) == 2


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_packing_without_a_limit_on_memory_is_refused_by_name(
    lab: Lab, tmp_path: Path, method: int
) -> None:
    (handin,), _ = find_handins([_zip(tmp_path / "class.zip", {"ada.ipynb": b"{}"}, method)], lab)
    words = f"ada.ipynb is packed by method {method}"
    assert words in read_handin(handin, lab).problems["sampler"]


@pytest.mark.parametrize("inside", [False, True])
def test_a_zip_with_a_list_too_long_is_not_held_in_memory(
    lab: Lab, tmp_path: Path, inside: bool
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "ada.ipynb").write_text("{}")
    entry = b"PK\1\2" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"x"
    count = MAX_READ // len(entry) + 1
    end = b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 1, 1, count * len(entry), 0, 0)
    (folder / "eve.zip").write_bytes(entry * count + end)
    if inside:
        (tmp_path / "out.zip").write_bytes(_zipped(folder))
        folder = tmp_path / "out.zip"
    handins, problems = find_handins([folder], lab)
    assert [handin.student for handin in handins] == ["ada"]
    assert any("its list of contents has" in problem for problem in problems)


def _zipped(folder: Path) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return data.getvalue()


# ---- and the class goes on


def test_hostile_files_cost_their_students_alone(small_lab: Lab, tmp_path: Path) -> None:
    classroom._grader.cache_clear()
    folder = tmp_path / "in"
    folder.mkdir()
    solved = notebook_text(build_notebook(small_lab, solution=True))
    (folder / "ada.ipynb").write_text(solved, "utf8")
    notebook = json.loads(solved)
    task = small_lab.tasks[0].name
    for cell in notebook["cells"]:
        if f"# task: {task}" in "".join(cell["source"]):
            cell["source"] = f"# task: {task}\n{DOTTED}"
    (folder / "dot.ipynb").write_text(json.dumps(notebook), "utf8")
    (folder / "flat.ipynb").write_bytes(FLAT)
    path = _zip(folder / "names.zip", {"names.ipynb": b"{}"})
    path.write_bytes(path.read_bytes().replace(b"names.ipynb", b"\xff" * 11, 1))
    settings = Settings(small_lab.folder, choose(small_lab, None))
    handins, _ = find_handins([folder], small_lab)
    jobs = plan(handins, settings, tmp_path / "out")
    records = {record.student: record for record in grade_class(jobs, settings, 1)}
    assert set(records) == {"ada", "dot", "flat", "names"}
    assert not any(record.broken for record in records.values())
    points = {student: record.automatic for student, record in records.items()}
    assert points["ada"] == small_lab.automatic_points
    assert 0 < points["dot"] < points["ada"]
    assert points["flat"] == points["names"] == 0
    words = " ".join(verdict.reason or "" for verdict in records["names"].verdicts)
    assert "its two names differ" in words
