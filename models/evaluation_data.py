"""The held-out files as the measurements use them: documents, function heads, prompts.

Everything derives from `heldout.jsonl.gz` and the tokenizer, both committed, by rules without
chance, so every run of `evaluate.py` sees the same inputs.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import textwrap
import tokenize
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizer import load_tokenizer

MODELS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Document:
    """A held-out file with its token ids; the first id is the separator, `<|endoftext|>`."""

    path: str
    text: str
    ids: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())


@cache
def heldout_documents() -> tuple[Document, ...]:
    """Returns every held-out file, in path order."""
    with gzip.open(MODELS / "heldout.jsonl.gz", "rt", encoding="utf-8") as handle:
        rows = sorted((json.loads(line) for line in handle), key=lambda row: row["path"])
    encodings = load_tokenizer().encode_batch([row["text"] for row in rows])
    return tuple(
        Document(row["path"], row["text"], (0, *encoding.ids))
        for row, encoding in zip(rows, encodings, strict=True)
    )


def _rank(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _head(source: str, node: ast.FunctionDef) -> str | None:
    """Signature and docstring of a function, dedented; None when it is not worth completing."""
    first = node.body[0]
    if ast.get_docstring(node) is None or len(node.body) < 3:
        return None
    lines = source.split("\n")[node.lineno - 1 : first.end_lineno]
    indented = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    if any(line.strip() and not line.startswith(indented) for line in lines):
        return None
    head = textwrap.dedent("\n".join(lines)) + "\n    "
    return head if 80 <= len(head) <= 600 else None


def function_heads(count: int) -> list[str]:
    """Returns `count` heads `def name(…):` + docstring, at most two a file, picked by hash.

    Each ends after the line break and indentation where the body would start; the body that
    stood there had at least two statements.
    """
    heads: list[str] = []
    for document in heldout_documents():
        found = [
            head
            for node in ast.walk(ast.parse(document.text))
            if isinstance(node, ast.FunctionDef)
            and (head := _head(document.text, node)) is not None
        ]
        heads += sorted(set(found), key=_rank)[:2]
    if len(heads) < count:
        raise ValueError(f"only {len(heads)} function heads in the held-out files, {count} asked")
    return sorted(set(heads), key=_rank)[:count]


def prompts(count: int, length: int) -> list[list[int]]:
    """Returns `count` prompts of `length` ids, each from a different held-out file.

    Each is cut where a line ends, as near as can be to the middle of its file, and starts
    `length` ids before that.
    """
    tokenizer = load_tokenizer()
    cuts: list[tuple[bytes, list[int]]] = []
    for document in heldout_documents():
        ends = [
            at + 1
            for at in range(length, len(document.ids) - length)
            if "\n" in tokenizer.decode([document.ids[at]])
        ]
        if ends:
            cut = min(ends, key=lambda end: abs(end - len(document.ids) // 2))
            cuts.append((_rank(document.path), list(document.ids[cut - length : cut])))
    if len(cuts) < count:
        raise ValueError(f"only {len(cuts)} held-out files are long enough, {count} asked")
    return [ids for _, ids in sorted(cuts)[:count]]


def cut_at_last_statement(text: str) -> str:
    """Returns `text` up to the end of its last complete statement.

    A statement is complete when its line break was read (outside brackets and strings) and it
    does not end with the colon that opens a block. The text before is not checked.
    """
    lines = text.split("\n")
    last_row = 0
    significant = ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NEWLINE:
                # The tokenizer adds a NEWLINE with empty string at the end of unfinished text.
                if token.string and significant != ":":
                    last_row = token.start[0]
            elif token.type not in (tokenize.NL, tokenize.COMMENT, tokenize.INDENT):
                significant = token.string
    except (tokenize.TokenError, SyntaxError):
        pass  # an open bracket or string at the end: the statements before it stand
    return "\n".join(lines[:last_row]) + "\n"


def parses(head: str, completion: str) -> bool:
    """Whether head and completion, cut at the last full statement, are a function with a body.

    Only the function that the head begins is judged: text from the first line on that stands at
    column 0 is not part of it. The body must hold a statement beside the docstring.
    """
    lines = (head + completion).split("\n")
    heading = head.count("\n") + 1
    for row in range(heading, len(lines)):
        if lines[row] and not lines[row][0].isspace():
            lines = [*lines[:row], ""]
            break
    try:
        body = ast.parse(cut_at_last_statement("\n".join(lines))).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return len(body) == 1 and isinstance(body[0], ast.FunctionDef) and len(body[0].body) > 1
