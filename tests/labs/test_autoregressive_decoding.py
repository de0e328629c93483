"""The lab itself: both solutions earn everything, the starter nothing, every mutant dies."""

from __future__ import annotations

from typing import Any

import pytest

import labkit
from labkit.author.build import build_notebook, drift
from labkit.author.verify import (
    load_mutants,
    map_problems,
    own_problems,
    submission_of,
    verify_mutant,
    verify_solution,
    verify_starter,
)
from labkit.grading.cells import given_cells, reference_cells
from labkit.reader.lab import Lab, load_lab

LAB = load_lab("autoregressive-decoding")
MUTANTS = load_mutants(LAB)


def test_the_starter_is_what_the_master_gives(lab: Lab) -> None:
    assert drift(lab) is None


def test_points_and_tiers_add_up(lab: Lab) -> None:
    assert lab.automatic_points + lab.written_points == 100
    depth = sum(task.points for task in lab.tasks if task.tier == "depth")
    assert depth == 30
    assert 3 <= len(lab.tasks) <= 5
    assert len(lab.variants) >= 3


def test_every_hidden_test_cites_a_sentence_of_the_lab(lab: Lab) -> None:
    assert map_problems(lab) == []


@pytest.mark.parametrize("file", ["master.py", "second.py"])
def test_solutions_earn_every_point_in_every_variant(lab: Lab, file: str) -> None:
    rows = verify_solution(lab, file, {})
    assert len(rows) == len(lab.variants)
    assert [row.problem for row in rows] == [None] * len(rows)
    assert {row.total for row in rows} == {lab.automatic_points}


def test_the_starter_earns_nothing(lab: Lab) -> None:
    row = verify_starter(lab, {})
    assert row.problem is None
    assert row.total == 0


def test_there_are_mutants_enough() -> None:
    assert len(MUTANTS) >= 10
    targets = {task for mutant in MUTANTS for task in mutant.cells}
    assert targets == {task.name for task in LAB.tasks}
    assert {mutant.variant for mutant in MUTANTS} == set(LAB.variants)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_dies(lab: Lab, mutant: Any) -> None:
    row = verify_mutant(lab, mutant, {})
    assert row.problem is None, mutant.bug
    assert row.total < lab.automatic_points


def test_the_engines_own_parts_earn_at_most_40_in_every_variant(lab: Lab) -> None:
    own = [mutant for mutant in MUTANTS if mutant.name.startswith("quires_own")]
    assert {mutant.variant for mutant in own} == set(lab.variants)
    assert {mutant.at_most for mutant in own} == {40}
    assert own_problems(lab, MUTANTS) == []


def _namespace(lab: Lab, cells: dict[str, str]) -> dict[str, Any]:
    namespace: dict[str, Any] = {"LAB": f"{lab.slug}/{lab.default_variant}"}
    for _, source in given_cells(lab):
        exec(compile(source, "<cell>", "exec", dont_inherit=True), namespace)
    for source in cells.values():
        exec(compile(source, "<cell>", "exec", dont_inherit=True), namespace)
    return namespace


@pytest.mark.parametrize("task", [task.name for task in LAB.tasks])
def test_public_checks_fail_on_the_starter_in_words(lab: Lab, task: str) -> None:
    namespace = _namespace(lab, submission_of(lab, build_notebook(lab)).cells)
    with pytest.raises(labkit.CheckFailed) as failed:
        labkit.check(task, namespace)
    words = str(failed.value)
    assert words.startswith(f"{task}: 0 of ")
    assert f"NotImplementedError: write {task}" in words
    assert "called " in words


@pytest.mark.parametrize("file", ["master.py", "second.py"])
@pytest.mark.parametrize("variant", list(LAB.variants))
def test_public_checks_pass_on_the_solutions(
    lab: Lab, file: str, variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace = _namespace(lab, reference_cells(lab, variant, file))
    namespace["LAB"] = f"{lab.slug}/{variant}"
    for task in lab.tasks:
        labkit.check(task.name, namespace)
        printed = capsys.readouterr().out
        assert printed.startswith(f"{task.name}: ")
        assert "✗" not in printed
