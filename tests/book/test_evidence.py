"""What a claim rests on: measurement files, and sources that were opened."""

from __future__ import annotations

import datetime
import json
import math
import re
from pathlib import Path

import pytest
import sources
from bookmeta import ROOT
from pybtex.database import parse_file

MEASUREMENTS = sorted((ROOT / "measurements").glob("*.json"))
KEYS = {"id", "title", "hardware", "software", "date", "command", "commit", "rows"}
ROW = {"case", "metric", "value", "unit", "baselines"}


def test_there_are_measurements() -> None:
    assert MEASUREMENTS


@pytest.mark.parametrize("path", MEASUREMENTS, ids=lambda path: path.stem)
def test_a_measurement_says_what_where_when_and_how(path: Path) -> None:
    record = json.loads(path.read_text("utf8"))
    assert set(record) >= KEYS
    assert record["id"] == path.stem
    assert record["title"]
    assert {"torch", "python"} <= set(record["software"])
    assert record["hardware"]
    if record["hardware"].get("gpu"):
        assert {"driver"} <= set(record["hardware"])
        assert {"triton"} <= set(record["software"])
    datetime.date.fromisoformat(record["date"])
    assert re.fullmatch(r"[0-9a-f]{7,40}", record["commit"]), "not the commit of a clean tree"
    assert record["rows"]
    for row in record["rows"]:
        assert set(row) >= ROW
        assert row["case"]
        assert row["metric"]
        assert row["unit"]
        assert math.isfinite(row["value"])
        assert all(math.isfinite(value) for value in row["baselines"].values())
    cases = [
        (row["case"], row["metric"], json.dumps(row.get("parameters"), sort_keys=True))
        for row in record["rows"]
    ]
    assert len(cases) == len(set(cases)), "two rows for one case and metric"


@pytest.mark.parametrize("path", MEASUREMENTS, ids=lambda path: path.stem)
def test_a_measurement_is_read_by_something(path: Path) -> None:
    readers = [*sources.pages(), *sources.notebooks(), *(ROOT / "labs").glob("*/master.py")]
    assert any(path.stem in reader.read_text("utf8") for reader in readers)


def bibliography() -> dict[str, dict[str, str]]:
    entries = parse_file(str(ROOT / "book" / "references.bib")).entries
    return {key: dict(entry.fields) for key, entry in entries.items()}


def cited() -> set[str]:
    """Every key that a page cites, that the hardware table names, or that a docstring does."""
    keys: set[str] = set()
    for page in sources.pages():
        for match in re.finditer(r"\{(?:foot)?cite[:\w]*\}`([^`]+)`", page.read_text("utf8")):
            keys.update(key.strip() for key in match[1].split(","))
    tables = "\n".join(path.read_text("utf8") for path in (ROOT / "src").rglob("*.toml"))
    return keys | {key for key in bibliography() if re.search(rf"\b{re.escape(key)}\b", tables)}


@pytest.mark.parametrize("key", bibliography())
def test_a_source_was_opened_and_carries_a_claim(key: str) -> None:
    fields = bibliography()[key]
    datetime.date.fromisoformat(fields["opened"])
    assert len(fields["supports"].split()) >= 4, "say which claim of the book it carries"
    assert fields.get("url") or fields.get("doi")
    assert key in cited(), f"{key} is in references.bib and no page cites it"


def test_every_citation_has_its_source() -> None:
    assert cited() <= set(bibliography())


def unshown(text: str) -> set[str]:
    """Return the names that cells glue and no text shows."""
    made = set(re.findall(r"\bglue\(\s*\"(\w+)\",", text))
    return made - set(re.findall(r"\{glue:\w*\}`(\w+)", text))


@pytest.mark.parametrize("path", sources.pages(), ids=lambda path: path.stem)
def test_every_glued_number_is_shown(path: Path) -> None:
    assert unshown(path.read_text("utf8")) == set()


def test_unshown_numbers_are_found() -> None:
    assert unshown('glue("a", 1)\nglue("b", 2)\nThere are {glue:text}`b:.1f` of them.') == {"a"}
