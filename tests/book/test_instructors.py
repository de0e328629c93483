"""The instructor's pages: what they generate, the commands they show, the example lab."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bookmeta
import lab_sheet
import pytest
import sources
from bookmeta import ROOT

import labkit
from labkit.author.build import build_notebook, drift
from labkit.author.verify import load_mutants, map_problems, submission_of, verify
from labkit.cli import _parser, main
from labkit.course.course_file import KNOWN, OF_A_LAB, OF_A_STUDENT
from labkit.grading.cells import given_cells, reference_cells
from labkit.reader.lab import import_folder, load_lab
from labkit.sandbox.process import Limits

FOLDER = ROOT / "book" / "instructors"
PAGES = sorted(FOLDER.glob("*.md"))
TUTOR = ROOT / "src" / "labkit" / "author" / "templates" / "AGENTS.md"
EXAMPLE = load_lab(FOLDER / "example-lab")


def page(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text("utf8")


# ---- what is generated


@pytest.mark.parametrize("slug", bookmeta.slugs())
def test_every_chapter_has_a_sheet(slug: str) -> None:
    assert f"```{{lab-sheet}} {slug}\n" in page("chapters")
    lab = lab_sheet.lab_of(slug)
    text = lab_sheet.sheet(slug)
    for task in lab.tasks:
        assert f"| `{task.name}` | {task.title} | {task.tier} | {task.points:g} |" in text
    for further in lab_sheet.pages_of(slug)[1:]:
        assert lab_sheet.lead(further, "After this page you can") in text
    assert lab_sheet.failures(slug), "the chapter's What goes wrong names nothing in bold"
    bugs = [bug for found in lab_sheet.mistakes(lab).values() for bug in found]
    assert len(bugs) >= 10
    assert all(f"- {bug}\n" in text for bug in bugs)


def test_minutes_are_the_labs() -> None:
    slug = bookmeta.slugs()[0]
    lab = lab_sheet.lab_of(slug)
    first, second = lab.tasks[:2]
    assert lab_sheet.minutes(slug) == sum(task.minutes for task in lab.tasks)
    both = lab_sheet.minutes(f"{slug}/{first.name}+{second.name}")
    assert both == first.minutes + second.minutes
    with pytest.raises(ValueError, match="is not `slug`"):
        lab_sheet.minutes("Two Words")


def test_the_long_syllabus_names_every_chapter_in_order() -> None:
    weeks = page("syllabi").split("## Six weeks")[0]
    named = list(dict.fromkeys(re.findall(r"\{chapter\}`([a-z-]+)`", weeks)))
    written = bookmeta.slugs()  # not always the first ones of the book
    planned = [slug for slug in lab_sheet.planned() if slug not in written]
    assert [slug for slug in named if slug in written] == written
    assert [slug for slug in named if slug not in written] == planned
    assert len(named) >= 11


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_planned_chapter_is_not_linked_by_hand(path: Path) -> None:
    """The role decides whether a title is a link, so that no page promises what is not there."""
    titles = [title for slug, title in lab_sheet.planned().items() if slug not in bookmeta.slugs()]
    linked = re.findall(r"\[([^\]]+)\]\(", path.read_text("utf8"))
    assert not set(titles) & set(linked)


def test_the_workshop_fits_its_days() -> None:
    """Each half day of the table adds up to what its head says."""
    table = page("syllabi").split("## A three-day workshop")[1]
    rows = [line for line in table.splitlines() if re.match(r"\| \d \|", line)]
    assert len(rows) == 3
    for row in rows:
        for half in row.strip("|").split("|")[1:]:
            spans = re.findall(r"\((?:(\d+)|\{lab-minutes\}`([^`]+)`)\)", half)
            total = sum(int(plain) if plain else lab_sheet.minutes(lab) for plain, lab in spans)
            assert 150 <= total <= 180, half


# ---- the commands


def commands(path: Path) -> Iterator[list[str]]:
    """Every `labkit …` line of a page's console blocks, and every one in the running text."""
    text = path.read_text("utf8")
    for block in re.findall(r"^```console\n(.*?)^```", text, flags=re.M | re.S):
        lines = block.replace("\\\n", " ").splitlines()
        found = [line[2:] for line in lines if line.startswith("$ labkit ")]
        yield from (shlex.split(line.partition(" #")[0]) for line in found)


def subcommands() -> dict[str, argparse.ArgumentParser]:
    for action in _parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("labkit has no subcommands")


SHOWN = [(path, words) for path in PAGES for words in commands(path)]


@pytest.mark.parametrize(("path", "words"), SHOWN, ids=lambda value: getattr(value, "stem", None))
def test_a_command_that_a_page_shows_parses(path: Path, words: list[str]) -> None:
    _parser().parse_args(words[1:])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_command_that_a_page_names_exists(path: Path) -> None:
    for name, rest in re.findall(r"`labkit ([a-z]+)([^`]*)`", path.read_text("utf8")):
        assert name in subcommands(), f"labkit {name}"
        known = set(re.findall(r"--[a-z-]+", subcommands()[name].format_help()))
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, f"labkit {name}{rest}"


def test_the_grading_page_names_every_option_and_every_word_of_the_courses_file() -> None:
    text = page("grading")
    shown = set(re.findall(r"--[a-z-]+", text))
    for name in ("grade", "regrade", "bundle"):
        options = set(re.findall(r"--[a-z-]+", subcommands()[name].format_help()))
        assert options - {"--help"} <= shown, name
    words = [*KNOWN["course"], *KNOWN["late"], *KNOWN["resubmission"], *OF_A_LAB, *OF_A_STUDENT]
    for word in words:
        assert f"`{word}`" in text or f".{word}." in text, word


# ---- the assistant's text


def test_the_tutors_text_is_shown_and_plain() -> None:
    text = TUTOR.read_text("utf8")
    assert "templates/AGENTS.md" in page("integrity")
    assert "# task:" in text
    for title in ("What you may do", "What you may not do", "When the student asks"):
        assert f"## {title}" in text
    # It goes into other people's folders: no address and no path of this tree.
    assert not re.search(r"https?:|\.\./|src/", text)
    assert list(sources._paragraphs(text))


# ---- what the key protects


def test_across_grades_each_variants_solution_as_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first task is the same in all variants, and all that a wrong variant's solution earns."""
    assert main(["verify", str(EXAMPLE.folder), "--across"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert [f"as {variant} /90" in header for variant in EXAMPLE.variants] == [True] * 3
    first = f"{EXAMPLE.tasks[0].points:g}"
    for index, row in enumerate(rows):
        points = row.split()[-3:]
        assert points.pop(index) == "="
        assert points == [first, first]
    assert len(rows) == 3  # no lab of quire's, so nothing of its own


@pytest.mark.parametrize("slug", bookmeta.slugs())
def test_the_page_shows_what_published_solutions_earn(slug: str) -> None:
    lab = load_lab(slug)
    assert f"output/across-{slug}.txt" in page("integrity")
    text = (FOLDER / "output" / f"across-{slug}.txt").read_text("utf8")
    header, *rows = text.splitlines()
    assert all(f"as {variant} /{lab.automatic_points:g}" in header for variant in lab.variants)
    *masters, own = rows
    width = len(lab.variants)
    low, high = re.findall(r"(\d+) to (\d+) of the 95 points", page("integrity"))[0]
    for variant, row in zip(lab.variants, masters, strict=True):
        assert row.startswith(f"master.py, {variant} ")
        points = [int(cell) for cell in row.split()[-width:] if cell != "="]
        assert all(int(low) <= value <= int(high) for value in points)
    assert own.startswith("quire's own")
    assert all(int(cell) + lab.written_points <= 40 for cell in own.split()[-width:])


# ---- the threat model


def test_the_threat_model_states_every_limit_of_the_sandbox() -> None:
    rows = dict(
        re.findall(r"^\| `(\w+)` \| ([\d.]+) (?:MiB|GiB|s)?", page("threat-model"), flags=re.M)
    )
    for limit in dataclasses.fields(Limits):
        value = getattr(Limits(), limit.name)
        for unit in (1 << 30, 1 << 20):
            if limit.name.endswith("_bytes") and value >= unit:
                value /= unit
                break
        assert float(rows.pop(limit.name)) == value, limit.name
    assert not rows, "rows for limits that are not there"


# ---- the made-up class


@pytest.fixture(scope="module")
def sample_class(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("class")
    import_folder(FOLDER, "instructors", "sample_class").write(folder)
    return folder


def test_the_class_is_graded_as_the_page_shows(
    sample_class: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some of the class, each of another kind: the rows of the page's table."""
    students = ("alan", "grace", "john", "margaret", "radia", "tony", "whitfield", "yann")
    times = (sample_class / "times.csv").read_text("utf8").splitlines()
    kept = [line for line in times if line.split(",")[0] in ("student", *students)]
    (sample_class / "times.csv").write_text("\n".join(kept) + "\n", "utf8")
    handed_in = [str(sample_class / "handed-in" / f"{student}.ipynb") for student in students]
    course = ["--course", str(sample_class / "course.toml"), "--out", str(sample_class / "graded")]
    assert main(["grade", str(EXAMPLE.folder), *handed_in, *course, "--jobs", "1"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    shown = (FOLDER / "output" / "grade.txt").read_text("utf8")
    expected = {line.split()[0]: line.split() for line in shown.splitlines()}
    for student in students:
        assert rows[student] == expected[student]


def test_the_page_and_the_class_name_the_same_students() -> None:
    shown = (FOLDER / "output" / "grade.txt").read_text("utf8").splitlines()
    students = import_folder(FOLDER, "instructors", "sample_class").STUDENTS
    assert [line.split()[0] for line in shown[1:-1]] == list(students)
    for name in re.findall(r"`([a-z]+)`(?: ends| has| handed|'s file)", page("grading")):
        assert name in students


def test_the_screenshots_are_small() -> None:
    sizes = [path.stat().st_size for path in (FOLDER / "images").iterdir()]
    assert len(sizes) == 2
    assert sum(sizes) < 120_000


# ---- the example lab


def test_the_example_lab_is_sound() -> None:
    """`labkit verify` finds nothing, and prints the table that the page shows."""
    scores, problems = verify(EXAMPLE)
    assert problems == []
    assert scores + "\n" == (FOLDER / "output" / "verify.txt").read_text("utf8")


def test_the_example_lab_is_complete() -> None:
    assert drift(EXAMPLE) is None
    assert map_problems(EXAMPLE) == []
    assert EXAMPLE.automatic_points + EXAMPLE.written_points == 100
    assert len(EXAMPLE.variants) >= 3
    mutants = load_mutants(EXAMPLE)
    assert len(mutants) >= 10
    assert {mutant.variant for mutant in mutants} == set(EXAMPLE.variants)


def test_the_page_counts_the_examples_lines() -> None:
    rows = re.findall(r"\| `([a-z./*]+)` \|.*\| (\d+) (lines|files) \|", page("new-lab"))
    assert len(rows) == 7
    for name, number, unit in rows:
        files = sorted((EXAMPLE.folder / name).glob("*.py")) or sorted(EXAMPLE.folder.glob(name))
        lines = sum(len(file.read_text("utf8").splitlines()) for file in files)
        assert int(number) == (len(files) if unit == "files" else lines), name


def _run(cells: dict[str, str], variant: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(FOLDER)  # the lab's folder goes by its own name where the notebook lies
    namespace: dict[str, Any] = {"LAB": f"example-lab/{variant}"}
    for _, source in given_cells(EXAMPLE):
        exec(source, namespace)
    for source in cells.values():
        exec(source, namespace)
    return namespace


@pytest.mark.parametrize("file", ["master.py", "second.py"])
@pytest.mark.parametrize("variant", list(EXAMPLE.variants))
def test_the_examples_checks_pass_on_solutions(
    file: str, variant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace = _run(reference_cells(EXAMPLE, variant, file), variant, monkeypatch)
    for task in EXAMPLE.tasks:
        labkit.check(task.name, namespace)
        assert "✗" not in capsys.readouterr().out


@pytest.mark.parametrize("variant", list(EXAMPLE.variants))
def test_the_examples_checks_fail_on_the_starter(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = submission_of(EXAMPLE, build_notebook(EXAMPLE, variant)).cells
    namespace = _run(cells, variant, monkeypatch)
    for task in EXAMPLE.tasks:
        with pytest.raises(labkit.CheckFailed, match="0 of"):
            labkit.check(task.name, namespace)


def test_the_examples_starter_is_a_notebook_of_that_lab() -> None:
    notebook = json.loads((EXAMPLE.folder / f"{EXAMPLE.slug}.ipynb").read_text("utf8"))
    assert notebook["metadata"]["labkit"] == {
        "lab": EXAMPLE.slug,
        "variant": EXAMPLE.default_variant,
    }
