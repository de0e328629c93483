"""What `labkit verify` complains about: each complaint provoked on a small lab of its own."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from labkit.author.build import build_notebook, notebook_text
from labkit.author.verify import (
    Row,
    file_problems,
    load_mutants,
    rubric_problems,
    verify,
    verify_rows,
)
from labkit.reader.lab import Lab, LabError, Written, load_lab

TOML = """
slug = "double"
title = "Doubling"
default_variant = "plain"
withheld = ["quire.doubler"]

[variants]
plain = "as it is"
negated = "with the sign turned"

[[tasks]]
name = "double"
title = "Double a number"
tier = "core"
minutes = 5
points = 10
[tasks.tests]
test_double = {points = 4, spec = "returns twice `n`"}
test_zero = {points = 6, spec = "chapters/autoregressive-decoding.md#ANCHOR"}
"""
MASTER = '''# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# `double` returns twice `n`.

# %% task="double"
# task: double
def double(n: int) -> int:
    """Twice n."""
    ### BEGIN SOLUTION
    ### BEGIN VARIANT plain
    return 2 * n
    ### END VARIANT
    ### BEGIN VARIANT negated
    return -2 * n
    ### END VARIANT
    ### END SOLUTION
'''
SECOND = """# %% task="double"
# task: double
def double(n):
    ### BEGIN VARIANT plain
    return n + n
    ### END VARIANT
    ### BEGIN VARIANT negated
    return -n - n
    ### END VARIANT
"""
HIDDEN = '''
def test_double(student, variant):
    """Any number."""
    for n in (1, 5):
        student.expect("double", n, want=2 * n if variant == "plain" else -2 * n)


def test_zero(student, variant, seed):
    """Nothing doubled, and a number of the course's own."""
    student.expect("double", 0, want=0)
    n = seed + 10
    student.expect("double", n, want=2 * n if variant == "plain" else -2 * n)
'''
WRONG = 'task = "double"\nbug = "thrice"\n[[edits]]\nold = "2 * n"\nnew = "3 * n"\n'
OWN = 'bug = "quire\'s own"\ncells = "own.py"\nat_most = 7\n'
OWN_CELLS = '# %% task="double"\n# task: double\ndef double(n):\n    return abs(2 * n) + (n == 1)\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    anchors = Path(__file__).parents[2] / "chapters" / "autoregressive-decoding.md"
    anchor = next(
        line[1:-2] for line in anchors.read_text("utf8").splitlines() if line.endswith(")=")
    )
    files = {
        "lab.toml": TOML.replace("ANCHOR", anchor),
        "master.py": MASTER,
        "second.py": SECOND,
        "hidden/test_double.py": HIDDEN,
        "mutants/thrice.toml": WRONG,
        "mutants/own.toml": OWN,
        "mutants/own.py": OWN_CELLS,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf8")
    _release(tmp_path)
    return tmp_path


def _release(folder: Path) -> None:
    lab = load_lab(folder)
    (folder / "double.ipynb").write_text(notebook_text(build_notebook(lab)), "utf8")


def _change(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text("utf8")
    assert old in text
    (folder / name).write_text(text.replace(old, new), "utf8")


def _lab(folder: Path, request: pytest.FixtureRequest) -> Lab:
    # Hidden modules are imported once by the lab's slug: each test brings a slug of its own.
    return dataclasses.replace(load_lab(folder), slug=f"double-{abs(hash(request.node.nodeid))}")


def _rows(lab: Lab) -> dict[str, Row]:
    return {row.name: row for row in verify_rows(lab)}


def test_a_sound_lab_has_no_problems(folder: Path) -> None:
    scores, problems = verify(load_lab(folder))
    assert problems == []
    assert scores.split("\n") == [
        "                     double /10  all",
        "master.py, plain             10   10",
        "master.py, negated           10   10",
        "second.py, plain             10   10",
        "second.py, negated           10   10",
        "starter                       0    0",
        "mutant own, plain             6    6",
        "mutant own, negated           0    0",
        "mutant thrice                 0    0",
    ]


def test_solutions_and_starter_that_earn_the_wrong_points(
    folder: Path, request: pytest.FixtureRequest
) -> None:
    shutil.rmtree(folder / "mutants")  # their edits may no longer fit
    _change(folder, "second.py", "return n + n", "return n * n")
    _change(folder, "master.py", '"""Twice n."""', '"""Twice n."""\n    return 2 * n')
    rows = _rows(_lab(folder, request))
    assert "called double(1)\nexpected 2\ngot 1" in str(rows["second.py, plain"].problem)
    assert rows["second.py, negated"].problem is None
    assert rows["starter"].problem == "the starter earns 10"
    assert "expected -2" in str(rows["master.py, negated"].problem)


def test_a_mutant_that_lives_and_one_that_earns_too_much(
    folder: Path, request: pytest.FixtureRequest
) -> None:
    _change(folder, "mutants/thrice.toml", "3 * n", "n * 2")
    _change(folder, "mutants/own.toml", "at_most = 7", "at_most = 5")
    rows = _rows(_lab(folder, request))
    assert rows["mutant thrice"].problem == "it lives: full points in double"
    assert rows["mutant own, plain"].scores == {"double": 6}
    assert "it earns 6 with the written answer, more than 5" in str(
        rows["mutant own, plain"].problem
    )
    assert rows["mutant own, negated"].problem is None


def test_quires_own_code_must_be_among_the_mutants(folder: Path) -> None:
    _change(folder, "mutants/own.toml", "at_most = 7", "at_most = 41")
    problems = file_problems(load_lab(folder))
    assert [problem.partition(":")[0] for problem in problems] == [
        "variant plain", "variant negated",
    ]  # fmt: skip
    (folder / "mutants" / "own.toml").unlink()
    assert len(file_problems(load_lab(folder))) == 2
    _change(folder, "lab.toml", 'withheld = ["quire.doubler"]', "")
    assert file_problems(load_lab(folder)) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("lab.toml", "returns twice `n`", "returns thrice `n`", "test_double cites no sentence"),
        ("lab.toml", "returns twice `n`", "", "test_double cites no sentence"),
        ("lab.toml", ".md#", ".md#no-", "test_zero cites no sentence"),
        ("lab.toml", "chapters/auto", "chapters/no-auto", "test_zero cites no sentence"),
        ("lab.toml", "test_zero =", "test_nought =", "test_nought is in lab.toml only"),
        ("hidden/test_double.py", "def test_zero", "def test_one", "test_one is not in lab.toml"),
        ("master.py", "    return 2 * n\n", "    return n * 2\n", ""),
        ("master.py", "# `double` returns twice `n`.", "# It returns twice `n`.", "is not what"),
    ],
)
def test_what_is_wrong_with_the_files(
    folder: Path, request: pytest.FixtureRequest, name: str, old: str, new: str, problem: str
) -> None:
    _change(folder, name, old, new)
    shutil.rmtree(folder / "mutants")  # their edits may no longer fit
    _change(folder, "lab.toml", 'withheld = ["quire.doubler"]', "")
    found = file_problems(_lab(folder, request))
    drifted = f"double-{abs(hash(request.node.nodeid))}.ipynb does not exist"
    found = [words for words in found if not words.startswith(drifted)]
    if problem == "is not what":  # the starter lies under the lab's own slug
        found = file_problems(load_lab(folder))
    assert any(problem in words for words in found) if problem else found == []


@pytest.mark.parametrize(
    ("rubric", "words"),
    [
        (None, "there is no rubric.md for the written answers"),
        ("Five points for a good answer.", "rubric.md has no table of points for: why"),
        ("| points | what |\n|---|---|\n| 3 | **A.** |\n", "the rows of why give 3 points, the"),
        ("| points | what |\n|---|---|\n| 2.5 | **A.** |\n| 2.5 | **A** |\n", "called the same"),
        ("| points | what |\n|---|---|\n| 2.5 | **A.** |\n| 2.5 | **B** |\n", ""),
    ],
)
def test_a_rubric_whose_rows_a_marker_could_not_fill_in(
    folder: Path, rubric: str | None, words: str
) -> None:
    lab = dataclasses.replace(
        load_lab(folder), written=(Written("why", "Why", "core", 5.0),), withheld=()
    )
    if rubric is not None:
        (folder / "rubric.md").write_text(rubric)
    found = rubric_problems(lab)
    assert [words in problem for problem in found] == ([True] if words else [])


def test_an_edit_that_does_not_fit_is_an_error(folder: Path) -> None:
    _change(folder, "mutants/thrice.toml", 'old = "2 * n"', 'old = "4 * n"')
    with pytest.raises(LabError, match=r"thrice\.toml: '4 \* n' occurs 0 times"):
        load_mutants(load_lab(folder))
