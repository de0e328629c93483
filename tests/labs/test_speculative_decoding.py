"""The lab on speculative decoding, and that its tables are what the solutions return."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import pytest
from lab_suite import LabSuite

from labkit.author.build import build_notebook
from labkit.grading.cells import reference_cells
from labkit.reader.lab import load_lab

VARIANTS = ("quota", "pair", "grammar")


class TestSpeculativeDecoding(LabSuite):
    slug = "speculative-decoding"


def _task_texts(variant: str | None = None) -> list[str]:
    cells = build_notebook(load_lab("speculative-decoding"), variant)["cells"]
    return [cell["source"] for cell in cells if re.match(r"## Task \d", cell["source"])]


def _names(file: str, variant: str) -> dict[str, Any]:
    lab = load_lab("speculative-decoding")
    names: dict[str, Any] = {}
    for source in [lab.given, *reference_cells(lab, variant, file).values()]:
        exec(source, names)
    return names


def _rows(text: str) -> list[list[str]]:
    """The cells of every line of a table."""
    return [
        [part.strip().strip("`") for part in line.strip("|").split(" | ")]
        for line in re.findall(r"^\|.*\|$", text, re.M)
    ]


def test_the_introduction_says_how_long_it_takes() -> None:
    tasks = load_lab("speculative-decoding").tasks
    cells = build_notebook(load_lab("speculative-decoding"), None)["cells"]
    intro = cells[0]["source"]
    assert sum(task.minutes for task in tasks) == 5 * 60 + 20
    assert "five hours and twenty minutes" in " ".join(intro.split())


@pytest.mark.parametrize("file", ["master.py", "second.py"])
def test_the_drafts_of_the_table(file: str) -> None:
    propose = _names(file, "quota")["propose"]
    (text,) = (text for text in _task_texts() if text.startswith("## Task 1"))
    numbers = re.search(r"`longest` (\d), `shortest` (\d) and `separator` (\d)", text)
    tokens = re.search(r"the text `([\d ]+)` goes on so", text)
    assert numbers
    assert tokens
    known = [int(token) for token in tokens[1].split()]
    drafted = [int(row[-1].strip("| ")) for row in _rows(text) if row[-1].strip("| ").isdigit()]
    assert propose(known, *map(int, numbers.groups()), 4) == drafted == [1, 2, 9, 5]


@pytest.mark.parametrize("file", ["master.py", "second.py"])
def test_the_trace_of_the_ledger(file: str) -> None:
    names, made, calls = _names(file, "quota"), None, 0
    (text,) = (text for text in _task_texts() if text.startswith("## Task 3"))
    for call, returned, state, *_ in (row for row in _rows(text) if "(" in row[0]):
        if call.startswith("Ledger"):
            made = eval(call, dict(names))
            continue
        assert eval(f"made.{call}", {"made": made}) == eval(returned), call
        assert eval('made.state("a")', {"made": made}) == eval(state), call
        calls += 1
    assert calls == 12


@pytest.mark.parametrize("file", ["master.py", "second.py"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_request_of_the_plan(file: str, variant: str) -> None:
    """Costs, history and answer are those of the text, and the rates those of the table."""
    (text,) = (text for text in _task_texts(variant) if text.startswith("## Task 4"))
    flat = " ".join(text.split())
    found = re.search(
        r"`costs` `(\[.*?\])` and one request, whose `most` is (\d) and whose `history` is "
        r"`(\[\[.*?\])`:", flat,
    )  # fmt: skip
    answer = re.search(r"The answer is `(\[.*?\])`\.", flat)
    assert found
    assert answer
    costs, most, history = (eval(part) for part in found.groups())
    request = {"most": most, "history": history, "forced": [], "client": "a", "quota": 9}
    assert _names(file, variant)["plan"](costs, [request], 9) == eval(answer[1])
    rates = re.findall(r"\| ([^|]*?) / (\d+) = (0\.\d+) \|", text)
    assert len(rates) == 4
    for sum_, time, rate in rates:
        expected = sum((Fraction(part) for part in sum_.strip("()").split(" + ")), Fraction(0))
        assert int(time) in costs
        assert f"{float(expected / int(time)):.4f}".rstrip("0") == rate


@pytest.mark.parametrize("file", ["master.py", "second.py"])
def test_the_records_of_the_tally(file: str) -> None:
    (text,) = (text for text in _task_texts() if text.startswith("## Task 5"))
    rows = [row for row in _rows(text) if row[0].startswith("[[")]
    records = [eval(row[0]) for row in rows]
    want = re.search(r"For these four it returns `(\{.*?\})`", " ".join(text.split()))
    assert want
    tally = _names(file, "quota")["tally"]
    assert tally(records) == eval(want[1])
    for record, row in zip(records, rows, strict=True):
        counts = tally([record])
        sums = [sum(counts[name]) for name in ("drafted", "judged", "kept")]
        assert sums == [int(number) for number in row[1:4]]


@pytest.mark.parametrize("file", ["master.py", "second.py"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_step_that_the_text_verifies(file: str, variant: str) -> None:
    """Rows that choose what the table says, and the answer below it."""
    (text,) = (text for text in _task_texts(variant) if text.startswith("## Task 2"))
    drafts = re.search(r"With the drafts `(\[.*?\])` there", text)
    answer = re.search(r"The answer is `(\{.*?\})`", " ".join(text.split()))
    assert drafts
    assert answer
    table = [row for row in _rows(text) if row[0].isdigit()]
    place = 3 if variant == "grammar" else 2
    weights = [[1] * 8 for _ in range(5)]
    for row in table:
        weights[int(row[0])][int(row[place])] = 5
    request = {
        "seed": None, "position": 3, "weights": weights, "drafts": eval(drafts[1]), "left": 9,
        "stops": [], "least": 0, "client": "a", "quota": 9, "grammar": [[0] * 8], "state": 0,
    }  # fmt: skip
    (got,) = _names(file, variant)["verify"]([request])
    assert got == eval(answer[1], {"s": 0})
