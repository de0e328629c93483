"""The prose lint: words and turns that the book does without, and numbers without a source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sources
from bookmeta import ROOT

UNWANTED = {
    "a word that adds nothing": r"crucial(?:ly)?|delv(?:e|es|ed|ing)|simply|obviously"
    r"|seamless(?:ly)?|leverag(?:e|es|ed|ing)|(?:the|a|this|today's) (?:\w+ )?landscape",
    "not just X but Y": r"not (?:just|only|merely)\b[^.;:]{1,80}?\bbut\b",
    "announces what comes": r"(?:in|throughout) (?:this|the next|the following)"
    r" (?:section|chapter|part),? (?:we|you)(?: will|'ll)?\b|(?:we|you)(?: will|'ll) (?:now|next)"
    r"|let(?:'|’)s (?:now )?\w+|(?:next|now), (?:we|let)\b",
    "recaps": r"(?:in summary|to summari[sz]e|in conclusion|to conclude|as we have seen"
    r"|as we saw|to recap|in short),",
}

# A figure that somebody measured: a number with a unit of time, rate or bandwidth.
MEASURED = re.compile(
    r"(?<![\w⟩/.-])\d[\d.,  ]*(?:[–-]\d[\d.,]*)?\s?"
    r"(?:ms|µs|μs|tok/s|tokens/s|[KMGT]B/s|[GT]FLOP/s|milliseconds?|microseconds?"
    r"|(?:tokens|requests) (?:per|a) second)(?![\w/])"
)


def sentences(paragraph: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+(?=[A-Z⟨*\[])", paragraph)


@pytest.mark.parametrize(
    "path", [*sources.pages(), *sources.notebooks()], ids=lambda path: str(path.relative_to(ROOT))
)
def test_prose_is_plain(path: Path) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {kind}: “{match[0]}”"
        for number, paragraph in sources.prose(path)
        for kind, pattern in UNWANTED.items()
        for match in re.finditer(rf"\b(?:{pattern})", paragraph, flags=re.I)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", sources.pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_sentence_is_taken_for_a_comment(path: Path) -> None:
    """MyST leaves out a line that begins with a percent sign, and a wrapped “50 %” makes one."""
    fence, lost = "", []
    for number, line in enumerate(path.read_text("utf8").splitlines(), start=1):
        mark = re.match(r"\s*(`{3,}|~{3,})", line)
        if mark and not fence:
            fence = mark[1]
        elif fence and line.strip() == fence:
            fence = ""
        elif not fence and line.lstrip().startswith("%"):
            lost.append(f"{path.relative_to(ROOT)}:{number}: {line[:60]}")
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize(
    "path",
    [path for path in sources.pages() if "chapters" in path.parts],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_measured_number_has_a_source(path: Path) -> None:
    """It comes from a cell (`glue`), or its sentence cites whoever measured it."""
    bare = [
        f"{path.relative_to(ROOT)}:{number}: “{match[0]}” in “{sentence[:100]}”"
        for number, paragraph in sources.prose(path)
        for sentence in sentences(paragraph)
        if "⟨cited⟩" not in sentence
        for match in MEASURED.finditer(sentence)
    ]
    assert not bare, "\n".join(bare)


@pytest.mark.parametrize(
    ("text", "hits"),
    [
        ("It takes 4.3 ms a step.", 1),
        ("It takes `4.3 ms` a step, $4$ ms in theory.", 0),
        ("It takes {glue:text}`t` ms, as said.", 0),
        ("Between 2–3 ms and 24,100 tok/s.", 2),
        ("A page of 16 tokens in 2 minutes.", 0),
    ],
)
def test_the_lint_sees_what_it_should(text: str, hits: int) -> None:
    [(_, paragraph)] = list(sources._paragraphs(text))
    assert len(MEASURED.findall(paragraph)) == hits


def test_the_lint_reads_directives_and_not_code() -> None:
    text = (
        "---\nkey: simply\n---\n# T\n\n"
        "```{note}\n:class: simply\nSimply so.\n```\n\n```\nsimply\n```\n"
    )
    read = [paragraph for _, paragraph in sources._paragraphs(text)]
    assert read == ["# T", "Simply so."]
