"""The pages: what they say, what they never say, and that nothing in them runs."""

from __future__ import annotations

import html
import html.parser
import re
from dataclasses import replace
from typing import Any

import pytest
from synthetic_class import _renamed

from labkit.course.course import Late
from labkit.course.feedback import (
    feedback_page,
    groups,
    histogram,
    marking_page,
    summary_page,
    told,
)
from labkit.course.gradebook import Result
from labkit.course.marks import Mark
from labkit.course.publish import given_to_all
from labkit.course.record import Record, Verdict
from labkit.course.similarity import Pair, alike, published
from labkit.grading.cells import reference_cells
from labkit.grading.report import UNSAFE
from labkit.reader.lab import Lab, load_lab

NASTY = "<script>alert(1)</script>{{ 7 * 7 }} <img src=https://example.org/x onerror=alert(2)>"
REASON = "called fit([3, 4], 5)\nexpected [0]\ngot [0, 1]\nat [1]: one too many"


def _record(lab: Lab, student: str = "ada", share: float = 1.0, **more: Any) -> Record:
    verdicts = [
        Verdict(
            task.name,
            f"What `{test.name}` says.",
            test.spec,
            test.points * share,
            test.points,
            None if share == 1 else REASON,
        )
        for task in lab.tasks
        for test in task.tests
    ]
    fields: dict[str, Any] = {
        "lab": lab.slug, "student": student, "file": f"{student}.ipynb", "attempt": 1,
        "submitted": None, "marked_late": False, "file_digest": "", "settings_digest": "",
        "variant": "shortest", "seconds": 0.4, "verdicts": verdicts,
        "written": {"explain": "Long ones starve."},
    }  # fmt: skip
    return Record(**(fields | more))


def _result(record: Record, lab: Lab, **more: Any) -> Result:
    fields: dict[str, Any] = {"attempts": 1, "late": Late(), "marks": {}}
    return Result(lab, record, **(fields | more))


def _summary(lab: Lab, results: list[Result], **more: Any) -> str:
    fields: dict[str, Any] = {
        "attempts": len(results), "links": {r.student: f"students/{r.student}" for r in results},
        "pairs": [], "problems": [],
    }  # fmt: skip
    return summary_page(lab, results, **(fields | more))


class _Page(html.parser.HTMLParser):
    """Collects the tags, the ids and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


@pytest.fixture
def pages(small_lab: Lab) -> dict[str, str]:
    """Every kind of page, each made from the words of somebody who means harm."""
    record = _record(
        small_lab,
        NASTY,
        share=0.0,
        written={"explain": NASTY},
        notes=[NASTY],
        problems={"admit": NASTY},
        verdicts=[
            replace(v, reason=f"called {NASTY}\ngot {NASTY}")
            for v in _record(small_lab, share=0.0).verdicts
        ],
    )
    mark = Mark(1, NASTY, 3.0, NASTY, "")
    result = _result(record, small_lab, marks={"explain": mark})
    (question,) = small_lab.written
    pair = Pair("fit", NASTY, "bob", 0.9, 200)
    return {
        "feedback": feedback_page(result),
        "summary": _summary(small_lab, [result], problems=[NASTY], pairs=[pair]),
        "marking": marking_page(question, "# Rubric\n\n| a | b |\n|---|---|\n| 1 | <b>x</b> |", [
            (mark, NASTY)]),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["feedback", "summary", "marking"])
def test_nothing_in_a_page_runs_or_calls_another_host(pages: dict[str, str], name: str) -> None:
    page = _Page(pages[name])
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object", "form", "link", "b"}
    for _, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on")]
        assert not str(attributes.get("href", "")).startswith(("http", "javascript", "//"))
    assert "url(" not in pages[name]
    assert "@import" not in pages[name]
    assert "default-src 'none'" in pages[name]
    assert "alert(1)" in page.text  # shown, as text
    assert "49" not in page.text.replace("49–", "").replace("40–49", "")


@pytest.mark.parametrize("name", ["feedback", "summary", "marking"])
def test_a_page_has_what_a_screen_reader_needs(pages: dict[str, str], name: str) -> None:
    page = _Page(pages[name])
    assert ("html", {"lang": "en"}) in page.tags
    tags = [tag for tag, _ in page.tags]
    assert tags.count("h1") == 1
    assert tags.count("title") == (2 if name == "summary" else 1)  # the drawing has its own
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    drawings = [a for tag, a in page.tags if tag == "svg"]
    hidden = pages[name].count('<div class="bar" aria-hidden="true">')
    assert len([a for a in drawings if a.get("role") != "img"]) == hidden
    for tag, attributes in page.tags:
        if tag == "th":
            assert name == "marking" or attributes.get("scope") in ("row", "col")


@pytest.mark.parametrize("name", ["feedback", "summary", "marking"])
def test_light_and_dark_differ_and_have_contrast(pages: dict[str, str], name: str) -> None:
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", pages[name], re.S)
    )
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for ink in ("ink", "soft", "good", "bad", "link"):
            assert _contrast(colours[ink], colours["card"]) >= 4.5
        for ink in ("ink", "soft"):
            for back in ("page", "code", "warn-back", "bad-back"):
                assert _contrast(colours[ink], colours[back]) >= 4.5


def _contrast(first: str, second: str) -> float:
    """WCAG's contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (
            p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_feedback_says_what_was_called_expected_and_got(small_lab: Lab) -> None:
    page = feedback_page(_result(_record(small_lab, share=0.0), small_lab))
    text = " ".join(_Page(page).text.split())
    assert "✗ Missed: What test_ties says 0 of 5" in text
    assert "The task says: Among equals the earlier one goes first." in text
    assert "called fit([3, 4], 5) expected [0] got [0, 1] why at [1]: one too many" in text
    assert "written answers are still to be marked" in text


def test_feedback_holds_no_source_of_a_hidden_test(small_lab: Lab) -> None:
    page = feedback_page(_result(_record(small_lab, share=0.0), small_lab))
    for path in small_lab.folder.glob("hidden/*.py"):
        for line in path.read_text("utf8").split("\n"):
            code = line.strip()
            if len(code) > 25 and not code.startswith('"""'):
                assert code not in html.unescape(page)


def test_full_points_and_marks(small_lab: Lab) -> None:
    mark = Mark(1, "ada", 8.0, "Good", "")
    result = _result(_record(small_lab), small_lab, marks={"explain": mark})
    text = " ".join(_Page(feedback_page(result)).text.split())
    assert result.total == 98
    assert "98 of 100 points" in text
    assert "Missed" not in text
    assert "8 of 10 Good Long ones starve." in text


def test_a_frontier_cell_is_said_to_be_judged_apart(small_lab: Lab) -> None:
    words = "frontier cell policy received; judged apart"
    for frontier in ([], ["policy"]):
        result = _result(_record(small_lab, frontier=frontier), small_lab)
        for page in (feedback_page(result), _summary(small_lab, [result])):
            assert (words in re.sub(r"</?code>", "", page)) == bool(frontier)


def test_a_cell_that_could_not_be_graded_says_why_once(small_lab: Lab) -> None:
    reason = "syntax error in line 2: invalid syntax"
    record = _record(small_lab, share=0.0, problems={"fit": reason})
    text = _Page(feedback_page(_result(record, small_lab))).text
    assert text.count(reason) == 1


@pytest.mark.parametrize(
    ("reason", "parts"),
    [
        (REASON, ["called", "expected", "got", "why"]),
        ("running the cell: no answer within 10 s", ["why"]),
        ("two\nlines", ["why"]),
    ],
)
def test_reasons_are_cut_where_they_change(reason: str, parts: list[str]) -> None:
    assert [key for key, _ in told(reason)] == parts


def test_the_summary_counts(small_lab: Lab) -> None:
    results = [
        _result(_record(small_lab, "ada", unsafe=True), small_lab),
        _result(_record(small_lab, "bob", share=0.0), small_lab),
        _result(_record(small_lab, "eve", share=0.5), small_lab, late=Late(0.8, "late")),
    ]
    page = _Page(_summary(small_lab, results))
    text = " ".join(page.text.split())
    assert "Mean 42.0 Median 36.0 Lowest 0 Highest 90 Late 1" in text
    assert "What fits into a step 30.0 60 1 1 0" in text
    assert "2 of 3" in text
    assert "eve 30 15 to mark −20 % 36" in text
    assert UNSAFE in text
    assert UNSAFE in _Page(feedback_page(results[0])).text
    assert UNSAFE not in _Page(feedback_page(results[1])).text
    assert "No two cells share 80 % or more." in text


def test_the_histogram_holds_everybody() -> None:
    bins = histogram([0, 9.9, 10, 55, 99, 100], 100)
    assert [b["count"] for b in bins] == [2, 1, 0, 0, 0, 1, 0, 0, 0, 2]
    assert [b["label"] for b in bins][::9] == ["0–9", "90–100"]
    assert all(b["x"] >= 20 and b["x"] + b["width"] <= 620 for b in bins)
    assert max(b["height"] for b in bins) == 140


SOLUTION = """
def fit(lengths, budget):
    taken = []
    for index, length in enumerate(lengths):
        if length > budget:
            break
        budget -= length
        taken.append(index)
    return taken


def admit(lengths, arrived, budget):
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    taken = fit([lengths[i] for i in order], budget)
    return [order[i] for i in taken]
"""
DISGUISED = """
def fit(sizes, room):
    '''My own work.'''
    chosen = []  # start with none
    for i, size in enumerate(sizes):
        if size > room: break
        room -= size
        chosen.append(i)
    return chosen

def admit(sizes, times, room):
    # shortest first
    row = sorted(range(len(sizes)), key=lambda n: sizes[n])
    chosen = fit([sizes[n] for n in row], room)
    return [row[n] for n in chosen]
"""
ANOTHER = """
import itertools
def fit(lengths, budget):
    sums = itertools.accumulate(lengths)
    return [i for i, _ in enumerate(itertools.takewhile(lambda total: total <= budget, sums))]
def admit(lengths, arrived, budget):
    order = [i for _, i in sorted(zip(lengths, range(len(lengths))))]
    taken = fit([lengths[i] for i in order], budget)
    return order[: len(taken)]
"""


def test_a_disguised_copy_is_seen_and_a_solution_of_ones_own_is_not(small_lab: Lab) -> None:
    cells = {"ada": SOLUTION, "bob": DISGUISED, "eve": ANOTHER, "zoe": "x = 1"}
    records = [_record(small_lab, name, cells={"fit": cell}) for name, cell in cells.items()]
    (pair,) = alike(records, {"fit": "def fit(lengths, budget):\n    raise NotImplementedError"})
    assert (pair.task, pair.first, pair.second) == ("fit", "ada", "bob")
    assert pair.share > 0.9


def test_what_everybody_was_given_is_no_likeness(small_lab: Lab) -> None:
    records = [_record(small_lab, name, cells={"fit": SOLUTION}) for name in ("ada", "bob")]
    assert len(alike(records, {"fit": ""})) == 1
    assert alike(records, {"fit": SOLUTION}) == []


def test_a_disguised_copy_of_any_variants_solution_is_named() -> None:
    book_lab = load_lab("batching")
    solutions = published(book_lab)
    for variant in book_lab.variants:
        cells = {n: _renamed(source) for n, source in reference_cells(book_lab, variant).items()}
        records = [_record(book_lab, "ada", cells=cells)]
        pairs = alike(records, given_to_all(book_lab, book_lab.default_variant), solutions)
        for task in book_lab.tasks:
            found = [pair.second for pair in pairs if pair.task == task.name]
            assert any(variant in name for name in found if name.startswith("published: master"))


@pytest.mark.parametrize(
    "slug",
    [
        "autoregressive-decoding",
        "batching",
        "paged-kv-cache",
        "parallelism",
        "quantization",
        "speculative-decoding",
    ],
)
def test_who_writes_it_alone_is_like_no_published_solution(
    slug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second solution shares less than half of a master's cell; copied, it is named."""
    book_lab = load_lab(slug)
    cells = reference_cells(book_lab, None, "second.py")
    given = given_to_all(book_lab, book_lab.default_variant)
    solutions = published(book_lab)
    pairs = alike([_record(book_lab, "ada", cells=cells)], given, solutions)
    assert pairs
    assert all("second.py" in pair.second and "master.py" not in pair.second for pair in pairs)
    masters = {
        task: {name: source for name, source in sources.items() if "master.py" in name}
        for task, sources in solutions.items()
    }
    monkeypatch.setattr("labkit.course.similarity.SHOWN", 0.5)
    assert alike([_record(book_lab, "ada", cells=cells)], given, masters) == []


def test_pairs_that_share_a_student_are_one_group() -> None:
    pairs = [
        Pair("fit", "ada", "bob", 0.9, 10),
        Pair("fit", "eve", "zoe", 1.0, 10),
        Pair("fit", "bob", "eve", 0.85, 10),
        Pair("admit", "ada", "bob", 0.95, 10),
    ]
    found = [(g["task"], g["students"], g["least"], g["most"]) for g in groups(pairs)]
    assert found == [("fit", "ada, bob, eve, zoe", 0.85, 1.0), ("admit", "ada, bob", 0.95, 0.95)]
