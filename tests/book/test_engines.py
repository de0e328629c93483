"""The "In production" sections: pinned engines, tables of one shape, and places that exist."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import bookmeta
import pytest
from bookmeta import ROOT

TABLE = tomllib.loads((ROOT / "book" / "engines.toml").read_text("utf8"))
ENGINES: dict[str, dict[str, str]] = TABLE["engines"]
REFERENCES: list[dict[str, str]] = TABLE["reference"]
PAGES = sorted((ROOT / "chapters").rglob("*.md"))
HEAD = ["Idea", "quire", "vLLM", "SGLang"]
LINK = re.compile(r"\[`([^`]+)`\]\((https://github\.com/[^/)]+/[^/)]+)/blob/([^/)]+)/([^)]+)\)")
OURS = re.compile(r"`([\w.]+)`\s+in\s+`([\w/]+\.py)`")


class Place(NamedTuple):
    """A symbol in a file of an engine, as a chapter names it."""

    engine: str
    chapter: str
    path: str
    symbol: str


def place(reference: dict[str, str]) -> Place:
    return Place(*(reference[key] for key in Place._fields))


def chapter_of(page: Path) -> str:
    return page.relative_to(ROOT / "chapters").with_suffix("").parts[0]


def section(text: str) -> str:
    """The "In production" section of a page, or nothing."""
    found = re.search(r"^## In production\n(.*?)(?=^## |\Z)", text, flags=re.S | re.M)
    return found[1] if found else ""


def rows(text: str) -> list[list[str]]:
    """The cells of the section's only table, heads first."""
    [table] = re.findall(r"^```\{list-table\}\n(.*?)^```", text, flags=re.S | re.M)
    body = re.split(r"^\* - ", table, flags=re.M)[1:]
    return [[cell.strip() for cell in re.split(r"^  - ", row, flags=re.M)] for row in body]


def links(text: str, chapter: str) -> list[tuple[Place, str]]:
    """Every link into an engine's repository, with the tag that its address has."""
    by_repository = {engine["repository"]: name for name, engine in ENGINES.items()}
    return [
        (Place(by_repository[repository], chapter, path, symbol), tag)
        for symbol, repository, tag, path in LINK.findall(text)
    ]


@cache
def defined(path: Path) -> set[str]:
    """What a file defines: `name`, `Class.name`, whether function, class, field or constant."""
    text = path.read_text("utf8")
    if path.suffix == ".rs":
        return set(re.findall(r"\bfn (\w+)", text))
    names: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            found: list[str] = []
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found = [node.name]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found = [node.target.id]
            elif isinstance(node, ast.Assign):
                found = [target.id for target in node.targets if isinstance(target, ast.Name)]
            names.update({prefix + name for name in found} | set(found))
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")

    visit(ast.parse(text).body, "")
    return names


def source_of(engine: str) -> Path | None:
    """Where an engine's source lies on this machine: the pinned package, or what was unpacked."""
    unpacked = os.environ.get("QUIRE_ENGINE_SOURCES")
    if unpacked and (Path(unpacked) / engine).is_dir():
        return Path(unpacked) / engine
    spec = importlib.util.find_spec(engine)
    if spec is None or spec.origin is None:
        return None
    if importlib.metadata.version(engine) != ENGINES[engine]["version"]:
        return None
    return Path(spec.origin).parent.parent


def test_every_engine_is_pinned() -> None:
    for engine in ENGINES.values():
        needed = {"name", "version", "tag", "repository", "license", "opened", "read_as"}
        assert needed <= set(engine)
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", engine["opened"])
        assert engine["version"] in engine["tag"]


def test_every_entry_says_what_was_read() -> None:
    slugs = set(bookmeta.slugs())
    allowed = {*Place._fields, "what", "switch"}
    for reference in REFERENCES:
        assert {*Place._fields, "what"} <= set(reference) <= allowed
        assert reference["engine"] in ENGINES
        assert reference["chapter"] in slugs
        assert not reference["path"].startswith("/")
        assert reference["what"].endswith(".")
    places = [place(reference) for reference in REFERENCES]
    assert len(places) == len(set(places))
    assert {found.chapter for found in places} == slugs


@pytest.mark.parametrize("source", PAGES, ids=lambda source: str(source.relative_to(ROOT)))
def test_the_section_is_a_table_of_at_most_eight_rows(source: Path) -> None:
    text = section(source.read_text("utf8"))
    assert text, "no section In production"
    head, *body = rows(text)
    assert head == HEAD
    assert 1 <= len(body) <= 8
    for row in body:
        assert len(row) == len(HEAD), row[0]
        for cell, engine in zip(row[2:], ("vllm", "sglang"), strict=True):
            found = {found.engine for found, _ in links(cell, chapter_of(source))}
            assert found <= {engine}, f"{row[0]}: {cell}"
            assert found or cell == "none", f"{row[0]}: {cell}"
    for engine in ("vllm", "sglang"):
        named = f"{ENGINES[engine]['name']} {ENGINES[engine]['version']}"
        assert named in text, f"the section does not say that it was read at {named}"


@pytest.mark.parametrize("source", PAGES, ids=lambda source: str(source.relative_to(ROOT)))
def test_what_the_section_says_of_quire_stands_in_quire(source: Path) -> None:
    """`Class.method` in `file.py`, in the table's column and in the text."""
    text = section(source.read_text("utf8"))
    for row in rows(text)[1:]:
        assert OURS.search(row[1]) or row[1] == "none", row[:2]
    for symbol, path in OURS.findall(text):
        file = ROOT / "src" / "quire" / path
        assert file.is_file(), path
        assert symbol in defined(file), f"{path} has no {symbol}"


def test_the_sections_link_to_the_entries_and_to_no_other_place() -> None:
    linked: dict[Place, str] = {}
    texts: dict[str, str] = {}
    for page in PAGES:
        chapter = chapter_of(page)
        text = section(page.read_text("utf8"))
        texts[chapter] = texts.get(chapter, "") + text
        assert text.count("https://github.com/") == len(links(text, chapter)), page
        linked.update(links(text, chapter))
    wrong = [found for found, tag in linked.items() if tag != ENGINES[found.engine]["tag"]]
    assert not wrong, "not at the tag of book/engines.toml"
    entries = {place(reference) for reference in REFERENCES}
    assert set(linked) - entries == set(), "links without an entry: nobody says what was read"
    assert entries - set(linked) == set(), "entries that no section links to"
    unnamed = [
        (place(reference), reference["switch"])
        for reference in REFERENCES
        if reference.get("switch", "") not in texts[reference["chapter"]]
    ]
    assert not unnamed, "a section leaves out what turns a branch on or off"


@pytest.mark.parametrize("engine", ENGINES)
def test_every_place_is_in_the_source(engine: str) -> None:
    source = source_of(engine)
    if source is None:
        pytest.skip(f"no source of {engine} {ENGINES[engine]['version']}: see book/engines.toml")
    missing = []
    for reference in REFERENCES:
        if reference["engine"] == engine:
            file = source / reference["path"].removeprefix(ENGINES[engine].get("root", ""))
            if not file.is_file() or reference["symbol"] not in defined(file):
                missing.append((reference["path"], reference["symbol"]))
    assert not missing


def test_the_reader_of_tables_and_sources_sees_what_it_should(tmp_path: Path) -> None:
    text = section(
        "## In production\n\nRead.\n\n```{list-table}\n:header-rows: 1\n\n* - A\n  - B\n"
        "* - one\n  - two\n    goes on\n```\n\nEnd.\n\n## Next\n\nOther.\n"
    )
    assert rows(text) == [["A", "B"], ["one", "two\n    goes on"]]
    assert "Other" not in text
    file = tmp_path / "engine.py"
    file.write_text("LIMIT = 1\nclass A:\n    field: int\n    async def run(self): ...\n")
    assert defined(file) >= {"LIMIT", "A", "A.field", "A.run", "run"}
    assert "A.other" not in defined(file)
