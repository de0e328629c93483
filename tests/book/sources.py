"""The book's sources as its tests read them: files of the tree, and the prose of a page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from bookmeta import ROOT

SKIPPED = {
    ".git", ".venv", "_build", "node_modules", "__pycache__", "dist", ".cache", "corpus",
    ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".ipynb_checkpoints", "katex",
}  # fmt: skip
TEXT = {
    ".bib", ".cff", ".cfg", ".css", ".html", ".ipynb", ".js", ".json", ".md", ".py", ".sh",
    ".toml", ".txt", ".yml", "",
}  # fmt: skip


def files() -> Iterator[Path]:
    """Every text file of the tree that a person wrote or that the project publishes."""
    stack = [ROOT]
    while stack:
        for path in sorted(stack.pop().iterdir()):
            if path.name in SKIPPED or path.name.endswith(".egg-info"):
                continue
            if path.is_dir():
                stack.append(path)
            elif path.suffix in TEXT and path.name not in {"tokenizer.json", "package-lock.json"}:
                yield path


def pages() -> list[Path]:
    """The pages of the book and of the repository's front; a lab's rubric is none."""
    found = [*ROOT.glob("*.md"), *(ROOT / "book").rglob("*.md"), *(ROOT / "chapters").rglob("*.md")]
    return sorted(path for path in found if not {"_static", "example-lab"} & set(path.parts))


def notebooks() -> list[Path]:
    """The workbenches and the labs' starters."""
    return sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "labs").glob("*/*.ipynb")])


def prose(path: Path) -> list[tuple[int, str]]:
    """The running text of a page or notebook, as (line or cell number, paragraph).

    Code, comments, formulas, roles, links' addresses and directive options are gone, so
    what is left is what a reader reads as sentences.
    """
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text("utf8"))["cells"]
        return [
            (number, paragraph)
            for number, cell in enumerate(cells)
            if cell["cell_type"] == "markdown"
            for _, paragraph in _paragraphs("".join(cell["source"]))
        ]
    return list(_paragraphs(path.read_text("utf8")))


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    text = re.sub(r"\A---\n.*?\n---\n", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    fences: list[tuple[str, bool]] = []
    start, lines = 1, []
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        fence = re.match(r"\s*(`{3,}|~{3,}|:{3,})\s*(\{([\w:-]+)\})?", line)
        if fence:
            if fences and line.strip() == fences[-1][0]:
                fences.pop()
            elif not (fences and fences[-1][1]):
                # A directive's body is prose; a plain fence and a cell are code.
                code = fence[3] in {None, "code-cell", "code-block", "literalinclude", "math"}
                fences.append((fence[1], code and not fence[1].startswith(":")))
            line = ""
        elif (fences and fences[-1][1]) or line.lstrip().startswith(("%", ":", "(", "+++")):
            line = ""
        if line.strip():
            if not lines:
                start = number
            lines.append(line.strip())
        elif lines:
            yield start, _plain(" ".join(lines))
            lines = []


def _plain(paragraph: str) -> str:
    # The order matters: roles hold backticks, formulas may hold anything.
    paragraph = re.sub(r"\{(?:cite[:\w]*|footcite[:\w]*)\}`[^`]*`", "⟨cited⟩", paragraph)
    paragraph = re.sub(r"\{[\w:-]+\}`[^`]*`", "⟨role⟩", paragraph)
    paragraph = re.sub(r"`+[^`]*`+", "⟨code⟩", paragraph)
    paragraph = re.sub(r"\$\$.*?\$\$|\$[^$]+\$", "⟨math⟩", paragraph)
    return re.sub(r"\]\([^)]*\)", "]", paragraph)
