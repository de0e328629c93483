"""That sharing children between mutants changes no verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shared_children import Children, SharingGrader

from labkit.grading.cells import reference_cells
from labkit.grading.report import Report
from labkit.reader.lab import load_lab
from labkit.reader.notebook import Submission

LAB = load_lab("paged-kv-cache")
# It builds on another task, so the reference answers from a second child.
TABLES = LAB.task("tables")
QUICK = tuple(test for test in TABLES.tests if test.name == "test_the_last_holder")
TASK = replace(TABLES, tests=QUICK, points=QUICK[0].points)
REFERENCE = reference_cells(LAB)


def _grade(children: Children, source: str = REFERENCE[TASK.name]) -> Report:
    submission = Submission(cells={**REFERENCE, TASK.name: source})
    return SharingGrader(LAB, smaller=0, children=children).grade(submission, [TASK])


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        ("raise ValueError('at once')", "at once"),
        ("import os\nos._exit(3)", "the process ended"),
        ("class BlockTables:\n    pass", ""),
    ],
)
def test_a_wrong_cell_spoils_nothing_for_the_next(
    children: Children, spoilt: str, words: str
) -> None:
    for _ in range(2):
        assert _grade(children).score == TASK.points
        report = _grade(children, spoilt)
        assert report.score == 0
        assert report.broken == []
        assert all(words in reason for reason in report.reasons(TASK.name)[:1])


def test_children_are_there_before_and_after(children: Children) -> None:
    _grade(children)
    before = dict(children.kept)
    _grade(children)
    assert children.kept == before
    assert len(before) == 2


def test_what_a_cell_leaves_in_its_names_is_gone(children: Children) -> None:
    """A cell that lacks its class cannot take that of the cell before."""
    _grade(children)
    assert _grade(children, "import sys").score == 0
