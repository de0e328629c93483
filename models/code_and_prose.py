"""Two sorts of held-out text, for comparing the experts' loads: code, and prose from docstrings.

    python models/code_and_prose.py        # writes models/corpus/{code,prose}.bin.xz

Both derive from `heldout.jsonl.gz` and the tokenizer by rules without chance. A held-out file gives
one text of code, the file without its docstrings, and at most one of prose: those paragraphs of its
docstrings that are sentences. Doctests, parameter lists, tables and underlines are neither.
"""

from __future__ import annotations

import ast
import lzma
import re
from pathlib import Path

import numpy as np
from evaluation_data import MODELS, heldout_documents
from tokenizer import load_tokenizer

MIN_WORDS = 8  # of a paragraph of prose
MIN_LETTERS = 0.85  # share of letters and blanks in it
_NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph reads as sentences: enough words, few marks and digits, no indentation.

    Indented lines are those of parameter lists and of code.
    """
    if ">>>" in paragraph or "\n " in paragraph or len(paragraph.split()) < MIN_WORDS:
        return False
    plain = sum(character.isalpha() or character.isspace() for character in paragraph)
    return plain >= MIN_LETTERS * len(paragraph)


def split(source: str) -> tuple[str, str]:
    """Returns (the code of a file without its docstrings, the prose in its docstrings).

    Raises:
        SyntaxError: `source` is not Python.
    """
    lines = source.split("\n")
    paragraphs: list[str] = []
    dropped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, _NODES) or (text := ast.get_docstring(node)) is None:
            continue
        first = node.body[0]
        dropped.update(range(first.lineno - 1, first.end_lineno or first.lineno))
        paragraphs += [part for part in re.split(r"\n\s*\n", text) if is_prose(part)]
    code = "\n".join(line for row, line in enumerate(lines) if row not in dropped)
    return code, "\n\n".join(paragraphs)


def texts() -> dict[str, list[str]]:
    """Returns the texts of each sort, in the order of the held-out files' paths."""
    parts = [split(document.text) for document in heldout_documents()]
    return {
        "code": [code for code, _ in parts if code.strip()],
        "prose": [prose for _, prose in parts if prose],
    }


def write(folder: Path) -> dict[str, int]:
    """Writes token ids as `corpus.py` does, the separator before each text; returns the counts."""
    tokenizer = load_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, int] = {}
    for sort, group in texts().items():
        ids = [np.array([0, *encoding.ids], "<u2") for encoding in tokenizer.encode_batch(group)]
        joined = np.concatenate(ids)
        (folder / f"{sort}.bin.xz").write_bytes(lzma.compress(joined.tobytes()))
        sizes[sort] = int(joined.size)
    return sizes


if __name__ == "__main__":
    print(write(MODELS / "corpus"))
