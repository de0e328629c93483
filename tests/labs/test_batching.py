"""The lab on batching, and the judge of its frontier task."""

from __future__ import annotations

import re
from types import ModuleType

import pytest
from lab_suite import LabSuite

from labkit.author.build import build_notebook
from labkit.gpu.frontier import MARK, cell_of
from labkit.reader.lab import import_folder, labs_folder, load_lab
from labkit.reader.subject import Wrong

BY_HOPE = """
def policy(budget, block, wishes, now):
    whole = budget  # and a step with it takes about 15 ms

    def order(i):
        wish = wishes[i]
        late = now + wish["count"] / whole * 0.015 > wish["due"]
        return not wish["decode"], late and wish["count"] > 300, wish["count"]

    given = [0] * len(wishes)
    for i in sorted(range(len(wishes)), key=order):
        given[i] = min(wishes[i]["count"], budget)
        budget -= given[i]
    return given
"""


class TestBatching(LabSuite):
    slug = "batching"


def test_every_task_names_sections_that_the_chapter_has() -> None:
    lab = load_lab("batching")
    chapter = (labs_folder().parent / "chapters" / f"{lab.slug}.md").read_text("utf8")
    headings = re.findall(r"^## (.+)$", chapter, re.M)
    tasks = [
        cell["source"]
        for cell in build_notebook(lab)["cells"]
        if re.match(r"## Task \d", cell["source"])
    ]
    assert len(tasks) == len(lab.tasks) + 1  # the frontier's, too
    for source in tasks:
        line = re.search(r"^\*Sections? of the chapter:\* (.*?)\.$", source, re.M | re.S)
        assert line, source[:80]
        named = re.findall(r"\*([^*]+)\*", line[1])
        assert named
        assert set(named) <= set(headings)


@pytest.fixture(scope="module")
def frontier() -> ModuleType:
    return import_folder(load_lab("batching").folder, "frontier_of_batching", "frontier")


def test_a_policy_earns_what_it_gains_over_the_shortest_first(frontier: ModuleType) -> None:
    assert 0 < frontier.judge(BY_HOPE, seed=4) <= 10


def test_the_starter_has_the_frontier_cell() -> None:
    lab = load_lab("batching")
    assert "def policy" in cell_of(lab.folder / f"{lab.slug}.ipynb", MARK)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return [budget + 1] * len(wishes)", "expected counts within 256"),
        ("return [budget] + [0] * (len(wishes) - 1)", "expected at most"),
        ("return [0] * len(wishes)", "expected counts within 256"),
        ("return [True] * len(wishes)", "expected counts within 256"),
        ("raise SystemExit", "SystemExit"),
        ("return open('/etc/passwd')", "Error"),
    ],
)
def test_a_policy_without_usable_counts_is_told_so(
    frontier: ModuleType, body: str, words: str
) -> None:
    source = f"def policy(budget, block, wishes, now):\n    {body}\n"
    with pytest.raises(Wrong, match=words):
        frontier.judge(source, seed=0)
