"""The lab on Triton kernels, and that the examples of its text are what the solutions compute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab_suite import LabSuite

import labkit
from labkit.author.build import build_notebook
from labkit.grading.cells import reference_cells
from labkit.reader.lab import import_folder, load_lab

VARIANTS = ("words", "sinks", "rope")


class TestTritonKernels(LabSuite):
    slug = "triton-kernels"


def _task_text(number: int, variant: str | None = None) -> str:
    cells = build_notebook(load_lab("triton-kernels"), variant)["cells"]
    (text,) = (c["source"] for c in cells if c["source"].startswith(f"## Task {number}:"))
    return str(text)


def test_the_introduction_says_how_long_it_takes() -> None:
    tasks = load_lab("triton-kernels").tasks
    intro = build_notebook(load_lab("triton-kernels"), None)["cells"][0]["source"]
    assert 300 < sum(task.minutes for task in tasks) < 330
    assert "a little more than five hours" in " ".join(intro.split())


# ---- the examples of the text, which stand in the public checks or are computed here


def _packing() -> Any:
    return import_folder(
        load_lab("triton-kernels").folder / "hidden", "hidden_of_kernels", "packing"
    )


def _flat(number: int, variant: str) -> str:
    return " ".join(_task_text(number, variant).split())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_notebook_compiles_what_grading_compiles(variant: str) -> None:
    """A student sees each kernel compile for the sizes and types that the hidden tests take."""
    cells = build_notebook(load_lab("triton-kernels"), variant)["cells"]
    (source,) = (c["source"] for c in cells if "PLANS = {" in c["source"])
    shown: dict[str, Any] = {}
    exec(source[source.index("F16, F32") : source.index("COUNTED =")], shown)
    assert list(shown["PLANS"]) == [f"{p}_launch" for p in ("add_norm", "gemv", "product", "deep")]
    folder = load_lab("triton-kernels").folder / "hidden"
    scalars, more, kinds = import_folder(folder, "hidden_of_kernels", "test_deep").COMPILED[variant]
    types = dict(line.split() for line in kinds.strip().splitlines())
    assert shown["PLANS"]["deep_launch"] == (scalars, more, types)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_codes_of_the_word_in_the_text(variant: str) -> None:
    """`12345678` is the word 0 of a group; each pair of a code and a column that is said."""
    text = _flat(2, variant)
    said = re.search(r"holds the code (\d+) for column (\d+), (.*?)\.", text)
    assert said
    pairs = [(int(said[1]), int(said[2]))]
    pairs += [(int(c), int(k)) for c, k in re.findall(r"(\d+) for column (\d+)", said[3])]
    assert len(pairs) >= 3
    for code, column in pairs:
        word, low = _packing().slot_of(variant, column, 32)
        assert word == 0
        assert 0x12345678 >> low & 15 == code


@pytest.mark.parametrize("variant", ["words", "sinks"])
def test_the_zeros_of_the_text(variant: str) -> None:
    zeros = [int(zero) for zero in re.findall(r"the zero (\d+)", _flat(2, variant))[-3:]]
    stored = [(zero - 1) % 16 if variant == "words" else 15 - zero for zero in zeros]
    assert sum(code << 4 * i for i, code in enumerate(stored)) == 0xFFFFFF70 & 0xFFF
    assert "FFFFFF70" in _flat(2, variant)


def test_the_numbers_of_the_text_on_signs() -> None:
    said = re.search(r"codes `([\d ]+)` are the weights `([-\d. ]+)`", _flat(2, "rope"))
    assert said
    numbers = [_packing().number("rope", int(code)) * 0.5 + 1 for code in said[1].split()]
    assert numbers == [float(weight) for weight in said[2].split()]


def test_the_blocks_of_the_text() -> None:
    rows = re.findall(r"^\| (\d+) to (\d+) \| (\d+) \| (\d+) \|$", _task_text(3), re.M)
    assert [int(row[0]) for row in rows] == list(range(0, 200, 64))
    assert [int(row[1]) for row in rows] == [63, 127, 191, 199]
    assert all(int(row[2]) % 3 == int(row[3]) for row in rows)
    said = re.search(r"the sums `([-\d ]+)` give (\d+) in this order and (\d+)", _flat(3, "words"))
    assert said
    sums = [np.float32(number) for number in said[1].split()]
    for order, want in ((sums, said[2]), (sums[::-1], said[3])):
        total = np.float32(0)
        for number in order:
            total += number
        assert total == float(want)


def test_the_straddling_code_of_the_text() -> None:
    text = _flat(4, "words")
    said = re.search(r"with the words `([0-9A-F ]+)` column 0 has the code (\d)", text)
    assert said
    stream = sum(int(word, 16) << 32 * i for i, word in enumerate(said[1].split()))
    codes = [stream >> 3 * column & 7 for column in range(32)]
    assert codes[0] == int(said[2])
    assert codes[10] == 7
    assert sum(codes) == 8


@pytest.mark.parametrize(("task", "has_kernels"), [("norm", True), ("step", False)])
def test_a_check_that_passes_says_that_grading_compiles_kernels(
    task: str,
    has_kernels: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)  # a check keeps what was run
    cells = reference_cells(load_lab("triton-kernels"))
    labkit.check(task, {"LAB": "triton-kernels", "In": list(cells.values())})
    assert ("compiles the kernels" in capsys.readouterr().out) is has_kernels
