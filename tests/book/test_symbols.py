"""A symbol means one thing in the book, and the notation page says which.

Every formula of a page is cut into symbols: a letter with its accent taken off, and with its index
where the index is a name. A symbol of the notation page's last table belongs to the pages that its
row names; every other symbol of the page belongs to all. Where a sentence says what a symbol is,
it uses a word of the symbol's row, so that a page can't give a letter a second meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sources
from bookmeta import ROOT

NOTATION = ROOT / "book" / "notation.md"
LOCAL = "## Symbols of one page"

GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho"
    "|sigma|tau|phi|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega|ell"
)
NAMED = r"\\(?:text|operatorname|mathrm|begin|end)\{[^{}]*\}"  # words, not symbols
SYMBOL = re.compile(
    rf"(?P<named>{NAMED})|(?P<letter>\\(?:{GREEK})(?![A-Za-z])|(?<![\\A-Za-z])[A-Za-z])"
    r"(?P<prime>'*)(?:_(?P<index>\{(?:[^{}]|\{[^{}]*\})*\}|\\?[A-Za-z]+|\d))?|(?P<word>\\[A-Za-z]+)"
)
STOP = set(re.findall(r"\w+", "a an and at be by each for in is it its on one or that the to with"))
CODE = {None, "code-cell", "code-block", "literalinclude"}
GAP = r"(?:[ \t]+|[ \t]*\n[ \t]*)"  # between two words of a paragraph
LINKING = r"of|from|to|about|by|with|than|at|has|have|holds|needs|costs|takes|crosses|the"


@dataclass(frozen=True)
class Row:
    """A row of the notation page: what a symbol means, and the pages that it belongs to."""

    symbol: str
    meaning: str
    pages: frozenset[str]  # empty: all of them


def plain(symbol: str) -> str:
    """One spelling of a symbol: no spaces, no braces around a single letter, no accent."""
    symbol = re.sub(r"\\(?:bar|hat|tilde|overline)\s*", "", symbol.replace(" ", ""))
    return re.sub(r"(?<![A-Za-z])\{(\w)\}", r"\1", symbol)


def notation(text: str) -> list[Row]:
    """The rows of the notation page, one a symbol; `$F / M$` behind a `=` defines nothing."""
    rows = []
    for part, section in (
        (part, part.startswith(LOCAL)) for part in re.split(r"(?m)^(?=## )", text)
    ):
        for line in part.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not line.startswith("| $") or len(cells) < 2:
                continue
            own = frozenset(re.findall(r"\]\(([^)]+)\)", cells[-1])) if section else frozenset()
            for formula in re.findall(r"\$([^$]+)\$", cells[0]):
                rows.append(Row(plain(formula.split("=")[0]), " ".join(cells[1:]), own))
    return rows


def prose(text: str) -> str:
    """A page's text with every line in its place, and without code, roles and escaped dollars."""
    head = re.match(r"---\n.*?\n---\n", text, flags=re.S)
    lines, fences = [], list[tuple[str, bool]]()
    for number, line in enumerate(text.splitlines()):
        fence = re.match(r"\s*(`{3,}|:{3,})(?:\{([\w-]+)\})?", line)
        inside_code = bool(fences) and fences[-1][1]
        if fence and fences and line.strip() == fences[-1][0]:
            fences.pop()
        elif fence and not inside_code:
            fences.append((fence[1], fence[2] in CODE))
        hidden = fence or inside_code or (head and number < head[0].count("\n"))
        lines.append("" if hidden else line)
    return re.sub(r"`[^`\n]*`|\\\$", "⟨⟩", "\n".join(lines))


def formulas(text: str) -> Iterator[tuple[int, str, bool]]:
    """The formulas of a page, as (line, LaTeX, whether it is displayed)."""
    text = prose(text)
    within = r"(?:[^$\n]|\n(?!\s*\n))+"  # a paragraph
    for match in re.finditer(rf"\$\$({within})\$\$|\$({within})\$", text):
        line = text.count("\n", 0, match.start()) + 1
        yield line, match[1] or match[2], match[1] is not None


def symbols(latex: str, known: set[str]) -> Iterator[str]:
    """The symbols of a formula as the notation page would list them.

    An index that is a name makes a symbol of its own ($h_{kv}$), unless the page has only the
    letter, or a family ($t_{\\text{…}}$). Any other index is a symbol itself ($x_t$ is $x$, $t$).
    """
    latex = re.sub(r"\\(?:bar|hat|tilde|overline)(?![A-Za-z])\s*", "", latex)
    for match in SYMBOL.finditer(latex):
        letter, index = match["letter"], (match["index"] or "").strip("{}")
        if letter is None:
            continue
        whole = plain(f"{letter}{match['prime']}" + (f"_{match['index']}" if index else ""))
        if whole in known:
            yield whole
        elif r"\text" in index or re.fullmatch(r"\\?(?:min|max)|[A-Za-z]{2,}", index):
            family = rf"{letter}_{{\text{{…}}}}"
            yield family if family in known else letter
        else:
            yield letter
            yield from symbols(index, known)


def words(text: str) -> set[str]:
    """The words of a text that carry its meaning, without their endings."""
    found = re.findall(r"[a-z]+", re.sub(r"\$[^$]*\$", " ", text.lower()))
    return {re.sub(r"(?:es|e|s)$", "", word) for word in found} - STOP


def definitions(text: str) -> Iterator[tuple[int, str, str]]:
    """What a page says that a symbol is, as (line, symbol, the words)."""
    text = prose(text)
    symbol, word = r"\$([^$\s]+)\$", r"[\w*-]+"
    # A name before the symbol: "the mean number $L$", "position $p$"; not "an output of $T$".
    name = rf"((?:(?!(?:{LINKING})\b){word}{GAP}){{1,3}})"
    kind = rf"((?:position|length|rate|bandwidth|window|share){GAP})"
    patterns = {
        rf"\blet{GAP}{symbol}{GAP}be{GAP}((?:{word}{GAP}){{1,9}}{word})": (1, 2),
        rf"{symbol}{GAP}(?:is|are){GAP}((?:the|an?){GAP}(?:{word}{GAP}){{1,6}}{word})": (1, 2),
        rf"\b(?:an?|the|its|mean){GAP}{name}{symbol}": (2, 1),
        rf"\b{kind}{symbol}": (2, 1),
    }
    for pattern, (at, said) in patterns.items():
        for match in re.finditer(pattern, text, flags=re.I):
            yield text.count("\n", 0, match.start()) + 1, match[at], match[said]


def faults(page: str, text: str, rows: list[Row]) -> list[str]:
    """What is wrong with the symbols of a page, of path `page` under the root."""
    by_symbol = {row.symbol: row for row in rows}
    found = []
    for line, latex, _ in formulas(text):
        for symbol in symbols(latex, set(by_symbol)):
            row = by_symbol.get(symbol)
            if row is None:
                found.append(f"{page}:{line}: ${symbol}$ is not on the notation page")
            elif row.pages and page not in row.pages:
                at = ", ".join(sorted(row.pages))
                found.append(f"{page}:{line}: ${symbol}$ ({row.meaning}) belongs to {at}")
    for line, latex, said in definitions(text):
        named = list(symbols(latex, set(by_symbol)))
        row = by_symbol.get(named[0]) if len(named) == 1 else None
        if row and not words(said) & words(row.meaning):
            found.append(f"{page}:{line}: ${latex}$ is “{said.strip()}”, and {row.meaning}")
    return list(dict.fromkeys(found))


def rows_of_the_book() -> list[Row]:
    """The notation page's rows, its links turned into paths under the root."""

    def path(link: str) -> str:
        return (NOTATION.parent / link).resolve().relative_to(ROOT).as_posix()

    rows = notation(NOTATION.read_text("utf8"))
    return [Row(r.symbol, r.meaning, frozenset(map(path, r.pages))) for r in rows]


ROWS = rows_of_the_book()
CHAPTERS = [page for page in sources.pages() if "chapters" in page.relative_to(ROOT).parts[:1]]
PAGES = [*CHAPTERS, *(ROOT / "book" / name for name in ("glossary.md", "hardware.md"))]


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_a_symbol_has_one_row() -> None:
    listed = [row.symbol for row in ROWS]
    assert len(listed) > 30
    assert not sorted({symbol for symbol in listed if listed.count(symbol) > 1})


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_a_page_uses_the_symbols_of_the_notation_page(path: Path) -> None:
    found = faults(ids(path), path.read_text("utf8"), ROWS)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("row", [row for row in ROWS if row.pages], ids=lambda row: str(row.symbol))
def test_a_symbol_of_one_page_is_on_it(row: Row) -> None:
    known = {row.symbol for row in ROWS}
    for page in row.pages:
        used = {
            symbol
            for _, latex, _ in formulas((ROOT / page).read_text("utf8"))
            for symbol in symbols(latex, known)
        }
        assert row.symbol in used, f"{page} does not use ${row.symbol}$"


@pytest.mark.parametrize("path", CHAPTERS, ids=ids)
def test_a_page_links_to_the_notation_before_its_first_formula(path: Path) -> None:
    text = path.read_text("utf8")
    first = next((line for line, _, displayed in formulas(text) if displayed), None)
    if first is None:
        assert path.parent.name != "chapters", "a chapter's first page has a formula"
        return
    before = "\n".join(text.splitlines()[:first])
    assert re.search(r"\]\([./]*book/notation\.md\)", before), "link to book/notation.md"


TABLE = """
## Cost

| symbol | meaning |
|---|---|
| $W$ | bytes of weights read in a step |
| $L$, $n$ | layers; tokens |
| $I = F / M$ | intensity |
| $h_q$ | query heads |
| $t_{\\text{…}}$ | a time |

## Symbols of one page

| symbol | meaning | page |
|---|---|---|
| $R$ | mean time in the server | [x](../chapters/x.md) |
"""


def test_the_rows_of_a_table_are_read() -> None:
    rows = notation(TABLE)
    assert [row.symbol for row in rows] == ["W", "L", "n", "I", "h_q", "t_{\\text{…}}", "R"]
    assert rows[-1].pages == {"../chapters/x.md"}
    assert not rows[0].pages


@pytest.mark.parametrize(
    ("latex", "cut"),
    [
        (r"M \approx W + B\,n\,K", "M W B n K"),
        (r"L h_q d_h\, n^2", "L h_q d h n"),  # d_h is not listed: a letter and its index
        (r"\bar T\, t_{\text{decode}}(B)", r"T t_{\text{…}} B"),
        (r"\sum_{j \le t} \operatorname{softmax}_j(q_t \cdot k_j)", "j t j q t k j"),
        (r"\lambda_{\max} = B / R_{\text{in}}", r"\lambda B R"),
        (r"\arg\max_i (z_i/\tau)", r"i z i \tau"),
        (r"\ell' = \ell\, e^{m - m'}", r"\ell \ell e m m"),
        (r"36 \times 2\ \text{MiB}", ""),
        (r"\int_0^\infty e^{-p_i u}\, \mathrm{d}u", "e p i u u"),
    ],
)
def test_a_formula_is_cut_into_symbols(latex: str, cut: str) -> None:
    known = {row.symbol for row in notation(TABLE)}
    assert sorted(symbols(latex, known)) == sorted(cut.split())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A step reads $W$ bytes in each of $L$ layers.", 0),
        ("Let $W$ be the mean time one spends in the server.", 1),  # Little's law, once
        ("The mean number $W$ in it.", 1),
        ("Here $W$ is the bytes of all weights.", 0),
        ("It holds $Z$ of them.", 1),
        ("An output of $n$ tokens, at position $n$.", 1),  # the second is a name
        ("The mean time $R$ in the server.", 1),  # another page's
        ("\\$5 and `$Z$` and \\$6\n\n```python\n$Z$\n```\n", 0),
        ("```{note} T\n$W$\n```\n\n$Z$\n\n```{code-cell}\n$Z$\n```\n", 1),
    ],
)
def test_a_second_meaning_is_seen(text: str, found: int) -> None:
    assert len(faults("chapters/y.md", text, notation(TABLE))) == found
