"""What holds of every lab: both solutions earn everything, the starter nothing, mutants die.

A lab's test file derives a class from `LabSuite` and names the lab's folder.

A mutant's file may say `killed_by`, the hidden test of its task that it is for. That test alone
runs here and has to fail, in a child that the mutant before it has left; `labkit verify` runs them
all, each in children of its own, as it does with submissions.
"""

from __future__ import annotations

import functools
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from shared_children import Children, SharingGrader

import labkit
from labkit.author.build import build_notebook, drift, frontier_digests
from labkit.author.verify import (
    Mutant,
    load_mutants,
    map_problems,
    own_problems,
    submission_of,
    verify_mutant,
    verify_solution,
    verify_starter,
)
from labkit.grading.cells import reference_cells
from labkit.reader.alone import DEFINES, imports_of, namespace_of
from labkit.reader.lab import HiddenTest, Lab, labs_folder, load_lab
from labkit.reader.notebook import Submission

SOLUTIONS = ["master.py", "second.py"]
# A mutant that was not changed with the reference dies of this, and shows nothing.
STALE = re.compile(r"^running the cell|\bNameError|\bUnboundLocalError")


class LabSuite:
    """The tests, for the lab `slug`."""

    slug: ClassVar[str]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give a test each of the lab's mutants, tasks, variants or solutions by its argument."""
        lab = load_lab(self.slug)
        if "mutant" in metafunc.fixturenames:
            metafunc.parametrize("mutant", _mutants(lab.folder), ids=lambda mutant: mutant.name)
        if "task" in metafunc.fixturenames:
            metafunc.parametrize("task", [task.name for task in lab.tasks])
        if "variant" in metafunc.fixturenames:
            metafunc.parametrize("variant", list(lab.variants))
        if "file" in metafunc.fixturenames:
            metafunc.parametrize("file", SOLUTIONS)

    @pytest.fixture
    def lab(self) -> Lab:
        return load_lab(self.slug)

    def test_the_starter_is_what_the_master_gives(self, lab: Lab) -> None:
        assert drift(lab) is None

    def test_points_and_tiers_add_up(self, lab: Lab) -> None:
        assert lab.automatic_points + lab.written_points == 100
        assert sum(task.points for task in lab.tasks if task.tier == "depth") == 30
        assert 3 <= len(lab.tasks) <= 5
        assert len(lab.variants) >= 3

    def test_the_starter_shows_what_each_task_has_to_define(self, lab: Lab) -> None:
        for task in lab.tasks:
            cells = submission_of(lab, build_notebook(lab)).cells
            assert task.defines == tuple(DEFINES.findall(cells[task.name]))

    def test_the_lab_knows_the_frontier_cells_of_its_starter(self, lab: Lab, variant: str) -> None:
        """All of them, so that `submit` tells what is written from what is given."""
        assert lab.frontier == frontier_digests(lab, variant)

    def test_no_cell_needs_what_may_not_be_installed(self, lab: Lab) -> None:
        """So that "Run all" reaches `submit`: what quire itself needs is there, nothing else is."""
        text = (labs_folder().parent / "pyproject.toml").read_text("utf8")
        project = tomllib.loads(text)["project"]
        needed = {re.split(r"[^\w-]", one)[0] for one in project["dependencies"]}
        present = {"quire", "labkit", *needed, *lab.packages, *sys.stdlib_module_names}
        cells = [cell["source"] for cell in _code(build_notebook(lab))]
        imported = {name.partition(".")[0] for cell in cells for name in imports_of(cell)}
        assert imported <= present
        assert _code(build_notebook(lab))[-1]["source"] == "labkit.submit()"

    def test_every_task_names_sections_that_the_chapter_has(self, lab: Lab, variant: str) -> None:
        """On the chapter's page or on those beneath it, whose titles count as sections."""
        chapters = labs_folder().parent / "chapters"
        further = [path.read_text("utf8") for path in sorted((chapters / lab.slug).glob("*.md"))]
        texts = [(chapters / f"{lab.slug}.md").read_text("utf8"), *further]
        headings = [
            heading for text in texts for heading in re.findall(r"^#{2,3} (.+)$", text, re.M)
        ]
        for text in further:
            headings += re.findall(r"^# (.+)$", text, re.M)[:1]
        cells = [cell["source"] for cell in build_notebook(lab, variant)["cells"]]
        tasks = [source for source in cells if re.match(r"## Task \d", source)]
        assert len(tasks) >= len(lab.tasks)
        for number, source in enumerate(tasks):
            line = re.search(r"^\*Sections? of the chapter:\* (.*?)\.$", source, re.M | re.S)
            if line is None:  # a frontier task may follow from those before it
                assert number >= len(lab.tasks), source[:80]
                continue
            named = re.findall(r"\*([^*]+)\*", " ".join(line[1].split()))
            assert named
            assert set(named) <= set(headings)

    def test_the_minutes_of_the_introduction_are_those_of_the_tasks(self, lab: Lab) -> None:
        intro = build_notebook(lab)["cells"][0]["source"]
        rows = re.findall(r"^\| \d\. .*\| (\d+) \|$", intro, re.M)
        assert [int(minutes) for minutes in rows] == [task.minutes for task in lab.tasks]

    def test_every_hidden_test_cites_a_sentence(self, lab: Lab) -> None:
        assert map_problems(lab) == []

    def test_solutions_earn_every_point_in_every_variant(self, lab: Lab, file: str) -> None:
        rows = verify_solution(lab, file, {})
        assert len(rows) == len(lab.variants)
        assert [row.problem for row in rows] == [None] * len(rows)
        assert {row.total for row in rows} == {lab.automatic_points}

    def test_the_starter_earns_nothing(self, lab: Lab) -> None:
        row = verify_starter(lab, {})
        assert row.problem is None
        assert row.total == 0

    def test_there_are_mutants_enough(self, lab: Lab) -> None:
        mutants = _mutants(lab.folder)
        assert len(mutants) >= 10
        assert {task for m in mutants for task in m.cells} == {task.name for task in lab.tasks}
        assert {mutant.variant for mutant in mutants} == set(lab.variants)

    def test_every_mutant_dies(self, lab: Lab, mutant: Mutant, children: Children) -> None:
        if mutant.at_most is not None:
            row = verify_mutant(lab, mutant, {})
            assert row.problem is None, mutant.bug
            assert row.total < lab.automatic_points
            return
        tasks = [lab.task(name) for name in mutant.cells]
        test = _killed_by(lab, mutant)
        if test is not None:
            tasks = [replace(tasks[0], tests=(test,), points=test.points)]
        grader = SharingGrader(
            lab, mutant.variant, smaller=0, until_lost=True, children=children
        )  # fmt: skip
        cells = {**reference_cells(lab, mutant.variant), **mutant.cells}
        report = grader.grade(Submission(cells=cells), tasks)
        assert report.broken == []
        reasons = [reason for task in tasks for reason in report.reasons(task.name)]
        assert not [reason for reason in reasons if STALE.search(reason)]
        for task in tasks:
            if report.task_score(task.name) == task.points:
                # Hypothesis draws numbers of the modules loaded, too: another test may find it.
                found = [one.name for one in task.tests]
                row = verify_mutant(lab, mutant, {})
                assert row.problem is None, f"not found by {found}: {mutant.bug}"

    def test_mutants_die_of_every_hidden_test(self, lab: Lab) -> None:
        """Where they say of which they die, no test is without one."""
        mutants = _mutants(lab.folder)
        found = {(name, _killed_by(lab, m)) for m in mutants for name in m.cells}
        named = {(name, test.name) for name, test in found if test is not None}
        if named:
            assert named == {(task.name, test.name) for task in lab.tasks for test in task.tests}

    def test_a_wrong_solution_fails_the_public_check_of_its_rule(
        self, lab: Lab, mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Save those that say `hidden_only`: a corner of a rule that has its public case."""
        if _raw(lab, mutant).get("hidden_only"):
            return
        monkeypatch.chdir(tmp_path)
        cells = {**reference_cells(lab, mutant.variant), **mutant.cells}
        failed = []
        for task in mutant.cells:
            try:
                labkit.check(task, _loaded(lab, mutant, task, cells))
            except labkit.CheckFailed:
                failed.append(task)
        assert failed, mutant.bug

    def test_the_engines_own_parts_earn_at_most_40(self, lab: Lab) -> None:
        assert own_problems(lab, _mutants(lab.folder)) == []

    def test_public_checks_fail_on_the_starter_in_words(
        self, lab: Lab, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        cells = submission_of(lab, build_notebook(lab)).cells
        with pytest.raises(labkit.CheckFailed) as failed:
            labkit.check(task, _notebook(lab, lab.default_variant, cells))
        words = str(failed.value)
        assert words.startswith(f"{task}: 0 of ")
        assert f"NotImplementedError: write {task}" in words
        assert "called " in words

    def test_public_checks_pass_on_the_solutions(
        self, lab: Lab, file: str, variant: str, capsys: pytest.CaptureFixture[str],
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        namespace = _notebook(lab, variant, reference_cells(lab, variant, file))
        for task in lab.tasks:
            labkit.check(task.name, namespace)
            printed = capsys.readouterr().out
            assert printed.startswith(f"{task.name}: ")
            assert "✗" not in printed


@functools.cache  # collected for several tests
def _mutants(folder: Path) -> list[Mutant]:
    return load_mutants(load_lab(folder))


def _raw(lab: Lab, mutant: Mutant) -> dict[str, Any]:
    """What a mutant's file says."""
    path = lab.folder / "mutants" / f"{mutant.name.partition(',')[0]}.toml"
    return tomllib.loads(path.read_text("utf8"))


def _killed_by(lab: Lab, mutant: Mutant) -> HiddenTest | None:
    """The hidden test that a mutant's file says it dies of; None where it says nothing.

    Raises:
        StopIteration: its task has no such test.
    """
    name = _raw(lab, mutant).get("killed_by")
    if name is None:
        return None
    (task,) = mutant.cells
    return next(test for test in lab.task(task).tests if test.name == name)


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _loaded(lab: Lab, mutant: Mutant, task: str, cells: dict[str, str]) -> dict[str, Any]:
    """What `check` finds outside a notebook: a task's names, and no cells to read once more.

    A notebook it stays where kernels run elsewhere, and for quire's own code, which need not load.
    """
    if lab.interpreted or mutant.at_most is not None:
        return _notebook(lab, mutant.variant, cells)
    return {"LAB": f"{lab.slug}/{mutant.variant}", **namespace_of(lab, lab.task(task), cells)}


def _notebook(lab: Lab, variant: str, cells: dict[str, str]) -> dict[str, Any]:
    """What a notebook knows once it has run these cells: their sources, and none of their names."""
    return {"LAB": f"{lab.slug}/{variant}", "In": ["", lab.given, *cells.values()]}
