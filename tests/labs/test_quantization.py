"""The lab on quantization, and that its tables are what the solutions return."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from lab_suite import LabSuite

import labkit
from labkit.author.build import build_notebook
from labkit.grading.cells import reference_cells
from labkit.grading.grade import Grader
from labkit.reader.lab import import_checks, load_lab
from labkit.reader.notebook import Submission
from labkit.reader.titles import title_of

VARIANTS = ("dense", "doubled", "sorted")
FILES = ("master.py", "second.py")


class TestQuantization(LabSuite):
    slug = "quantization"


def _task_text(number: int, variant: str | None = None) -> str:
    cells = build_notebook(load_lab("quantization"), variant)["cells"]
    (text,) = (c["source"] for c in cells if c["source"].startswith(f"## Task {number}:"))
    return text


def _names(file: str, variant: str) -> dict[str, Any]:
    lab = load_lab("quantization")
    names: dict[str, Any] = {}
    for source in reference_cells(lab, variant, file).values():
        exec(source, names)
    return names


def _rows(text: str) -> list[list[str]]:
    """The cells of every line of a table, without heads and rules."""
    lines = re.findall(r"^\|.*\|$", text, re.M)
    parts = [[part.strip().strip("`") for part in line.strip("|").split("|")] for line in lines]
    return [row for row in parts if not row[0].startswith("--")]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?[\d.]+", text)]


def _after(text: str, words: str) -> str:
    """What stands between the backticks behind these words."""
    found = re.search(re.escape(words) + r"\s+`([^`]*)`", " ".join(text.split()))
    assert found, words
    return found[1]


def test_the_introduction_says_how_long_it_takes() -> None:
    tasks = load_lab("quantization").tasks
    cells = build_notebook(load_lab("quantization"), None)["cells"]
    intro = cells[0]["source"]
    assert sum(task.minutes for task in tasks) == 5 * 60
    assert "five hours" in " ".join(intro.split())


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_words_of_the_table(file: str, variant: str) -> None:
    names, text = _names(file, variant), _task_text(1, variant)
    codes = np.array([_numbers(_after(text, "The row"))], np.int64)
    table = [row for row in _rows(text) if re.fullmatch(r"[0-9A-F]{8}", row[0])]
    words = names["pack"](codes, 8, 6)
    assert [f"{word & 0xFFFFFFFF:08X}" for word in words[0].tolist()] == [row[0] for row in table]
    for row in table:
        held = {int(row[0][i : i + 2], 16) for i in range(0, 8, 2)} - {0}
        assert held == set(_numbers(row[1]))
    assert names["unpack"](words, 8, 8, 6).tolist() == codes.tolist()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_grids_of_the_table(file: str, variant: str) -> None:
    names, text = _names(file, variant), _task_text(2, variant)
    weights = np.array([_numbers(_after(text, "The row"))])
    importance = np.array(_numbers(_after(text, "importances")))
    ladder = _numbers(_after(text, "the ladder"))
    table = _rows(text)[1:]
    assert [float(row[0]) for row in table] == ladder
    costs = []
    for ratio, scale, zero, codes, stands, cost in table:
        scales, zeros = names["search"](weights, importance, 2, [float(ratio)])
        found = np.asarray(names["nearest"](weights, scales, zeros, 2))
        numbers = (found - zeros[:, None]) * scales[:, None]
        assert (scales[0], zeros[0]) == (float(scale), int(zero))
        assert found[0].tolist() == _numbers(codes)
        assert numbers[0].tolist() == _numbers(stands)
        costs.append(float((importance * (weights - numbers) ** 2).sum()))
        assert costs[-1] == float(cost)
    scales, zeros = names["search"](weights, importance, 2, ladder)
    best = table[costs.index(min(costs))]
    assert (scales[0], zeros[0]) == (float(best[1]), int(best[2]))
    assert f"So the scale is {best[1]}" in text


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_columns_of_the_table(file: str, variant: str) -> None:
    """Each line follows from the one before, and `gptq` returns what they say."""
    text = _task_text(3, variant)
    given = _numbers(_after(text, "The row"))
    hessian = np.array(eval(_after(text, "and the hessian")), float)
    pushes = {(0, 1): -0.5, (0, 2): 0.5, (1, 2): -0.5}
    flat = " ".join(text.split())
    for (k, j), by in pushes.items():
        left = np.linalg.inv(hessian[k:, k:])
        assert left[0, j - k] / left[0, 0] == pytest.approx(by)
    assert "adds 0.5 to column 1 and takes 0.5 from column 2" in flat
    assert "in column 1 adds 0.5 to column 2" in flat
    table = [row for row in _rows(text)[1:] if row[0].isdigit()]
    weights = list(given)
    for column, weight, scale, zero, code, stands, error, behind in table:
        k = int(column)
        assert weights[k] == float(weight)
        assert (int(code) - int(zero)) * float(scale) == float(stands)
        assert float(weight) - float(stands) == float(error)
        for j in range(k + 1, 3):
            weights[j] -= float(error) * pushes[k, j]
        assert weights[k + 1 :] == _numbers(behind)
    found = _names(file, variant)["gptq"](np.array([given]), hessian, 4, 2, [1.0], 0.0)
    assert found["codes"][0].tolist() == [int(row[4]) for row in table]
    assert found["scales"][0].tolist() == [float(table[k][2]) for k in (0, 2)]
    assert found["zeros"][0].tolist() == [int(table[k][3]) for k in (0, 2)]


@pytest.mark.parametrize("file", FILES)
def test_the_stream_of_the_table(file: str) -> None:
    text = _task_text(4, "dense")
    table = [row for row in _rows(text) if re.match(r"\d", row[0])]
    at, stream, groups = 0, 0, []
    for numbers, size, places, _ in table:
        bits = int(size.split()[0])
        for number in map(int, _numbers(numbers)):
            stream |= number << at
            at += bits
        ends = [int(one) for one in re.findall(r"\d+", places)]
        assert ends[-1] == at - 1
        groups.append([int(number) for number in _numbers(numbers)])
    word = _after(text, "The row has one word,")
    assert f"{stream:08X}" == word
    stored = {
        "words": np.array([int(word, 16)]), "starts": np.array([0]),
        "scales": np.array([[1.0, 1.0]]),
    }  # fmt: skip
    first, second = groups[1][0], groups[4][0]
    want = [code - first for code in groups[2]] + [code - second for code in groups[5]]
    assert _names(file, "dense")["read"](stored, 6, 4)[0].tolist() == want


@pytest.mark.parametrize("file", FILES)
def test_the_steps_of_the_table(file: str) -> None:
    table = [row for row in _rows(_task_text(4, "doubled")) if row[0].isdigit()]
    scales = np.array([[float(row[1]) for row in table]])
    ones, zeros = np.ones(5), np.zeros((1, 5), np.int64)
    names, chosen = _names(file, "doubled"), [set() for _ in table]
    for weight in np.linspace(0.0, 3.0, 60):
        found = names["write"](weight * scales, ones, scales, zeros, 2, 1, 3)
        for place, (_, scale, exponent, quotient, _) in enumerate(table):
            assert found["exponents"][0, place // 3] == int(exponent)
            assert float(scale) / 2.0 ** int(exponent) == float(quotient)
            chosen[place].add(int(found["steps"][0, place]))
    assert chosen == [{int(step) for step in _numbers(row[4])} for row in table]


@pytest.mark.parametrize("file", FILES)
def test_the_visits_of_the_table(file: str) -> None:
    text = _task_text(4, "sorted")
    diagonal = _numbers(_after(text, "the diagonal"))
    table = [row for row in _rows(text)[1:] if row[1].isdigit()]
    order = [int(row[1]) for row in table]
    assert order == sorted(range(5), key=lambda k: (-diagonal[k], k))
    assert [int(row[2]) for row in table] == [k // 2 for k in order]
    weights = np.arange(1.0, 6.0)[None]
    write = _names(file, "sorted")["write"]
    found = write(weights, np.diag(diagonal), 2, 2, [1.0], 0.1, False)
    assert [int(found["g_idx"][k]) for k in order] == [int(row[3]) for row in table]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_product_of_the_text(file: str, variant: str) -> None:
    names, text = _names(file, variant), _task_text(5, variant)
    codes = np.array([_numbers(_after(text, "the row of codes"))], np.int64)
    weights = _numbers(_after(text, "stands for the weights"))
    token = np.array([_numbers(_after(text, "The token"))])
    rounded = _numbers(_after(text, 'so with `"token"` it becomes'))
    assert ((codes[0] - 2) * 0.5).tolist() == weights
    assert float(np.dot(rounded, weights)) == 82.0
    changed = {"dense": 1, "doubled": 2 - 128 + 256, "sorted": 255 - 2}[variant]
    shard = {
        "rows": 1, "columns": 3, "bits": 8, "group": 3, "block": 1,
        "words": names["pack"](codes, 8, 3), "scales": np.array([[0.5]]),
        "zeros": names["pack"](np.array([[changed]]), 8, 1),
    }  # fmt: skip
    assert names["Layer"]([shard], "token").apply(token)[0, 0] == 82.0
    assert names["Layer"]([shard], "plain").apply(token)[0, 0] == pytest.approx(81.8)
    assert names["Layer"]([shard], "plain").bytes() == 4 + 4 + 2


# A task's functions return what a file would hold: int32 for integers, float16 for scales.
# Task 4's `read` and task 5's products keep float64: they are no scales.
NARROW = """

def _narrow(value):
    if isinstance(value, dict):
        return {key: _narrow(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_narrow(one) for one in value)
    if value.dtype.kind == "f":
        return value.astype(np.float16)
    return value.astype(np.int32)


def _narrowed(function):
    return lambda *args: _narrow(function(*args))
"""
NARROWED = {
    "pack": ("pack", "unpack", "fuse"), "scales": ("nearest", "search"), "gptq": ("gptq",),
    "finer": ("write",),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_arrays_of_any_width_are_taken(variant: str) -> None:
    """In the public checks and in grading."""
    lab = load_lab("quantization")
    reference = reference_cells(lab, variant)
    for task, functions in NARROWED.items():
        wrapped = [f"{name} = _narrowed({name})" for name in functions]
        cell = "\n".join([reference[task], NARROW, *wrapped])
        cells = {**reference, task: cell}
        namespace: dict[str, Any] = {"LAB": f"quantization/{variant}"}
        for name in dict.fromkeys((*lab.task(task).needs, task)):
            exec(cells[name], namespace)
        labkit.check(task, namespace)
        report = Grader(lab, variant, smaller=0).grade(Submission(cells=cells), [lab.task(task)])
        assert report.reasons(task) == []
        assert report.task_score(task) == lab.task(task).points


def _complaint(task: str, variant: str, old: str, new: str) -> str:
    lab = load_lab("quantization")
    source = reference_cells(lab, variant)[task]
    assert source.count(old) == 1
    namespace: dict[str, Any] = {"LAB": f"quantization/{variant}"}
    for name in (*lab.task(task).needs, task):
        text = source.replace(old, new) if name == task else reference_cells(lab, variant)[name]
        exec(text, namespace)
    with pytest.raises(labkit.CheckFailed) as failed:
        labkit.check(task, namespace)
    return str(failed.value)


@pytest.mark.parametrize(
    ("variant", "slot"), [("dense", 0), ("doubled", 3), ("sorted", 3)], ids=VARIANTS
)
def test_wrong_words_are_told_in_hexadecimal_with_the_first_code_that_differs(
    variant: str, slot: int
) -> None:
    shown = {"dense": "01030500", "doubled": "04030201", "sorted": "02050301"}[variant]
    spoilt = f"{int(shown, 16) ^ 0x02000000:08X}"
    end = "return words - (words >> 31 << 32)"
    words = _complaint("pack", variant, end, f"words ^= 0x02000000\n    {end}")
    assert f"expected the words {shown} " in words
    assert f"got the words {spoilt} " in words
    first = int(shown[:2], 16)
    assert f"row 0, word 0: slot {slot} is the first that differs" in words
    assert f"expected {first}, got {first ^ 2}" in words


def test_a_word_without_its_sign_is_told_as_such() -> None:
    words = _complaint("pack", "dense", "return words - (words >> 31 << 32)", "return words")
    assert "has the right bits, and the int32 that has them is" in words


def test_a_wrong_stream_is_told_in_hexadecimal_with_its_first_bit() -> None:
    words = _complaint("finer", "dense", "(bits - 3) << ends[row]", "(4 - bits) << ends[row]")
    assert "the words are 01E7BE08 00787F08 in hexadecimal" in words
    assert "bit 0 of row 0's stream is the first that differs" in words


def test_titles_of_checks_speak_of_their_own_variant() -> None:
    for checks in import_checks(load_lab("quantization")).CHECKS.values():
        for check in checks:
            assert set(getattr(check, "titles", VARIANTS)) == set(VARIANTS)
            assert all("variant" not in title_of(check, variant) for variant in VARIANTS)
    chosen = import_checks(load_lab("quantization")).CHECKS["finer"][0]
    assert title_of(chosen, "dense") == "What is chosen: which groups have 4 bits"
    assert len({title_of(chosen, variant) for variant in VARIANTS}) == 3
