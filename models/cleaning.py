"""Cleaning one Python file for the corpus: comments, licence headers and names of people out.

The trial model that was trained on files as they are recited licence headers with people's
names. A corpus file therefore keeps its code and its docstrings, and loses

- every comment (found with `tokenize`, so a `#` inside a string stays);
- assignments such as `__author__ = …` and `__copyright__ = …`;
- every line of a multi-line string that holds an e-mail address, a copyright or licence
  notice, or an author field.

What is left must parse and must match none of `PERSONAL`; a file that still does is refused as
a whole. `evaluate.py` looks for the same patterns in the text that the model samples.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize

# What neither the corpus nor a sampled completion may hold.
PERSONAL: dict[str, re.Pattern[str]] = {
    "e-mail": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b"),
    "copyright": re.compile(r"\bcopyright\b|©|\(c\)\s*\d{4}|all rights reserved", re.IGNORECASE),
    "licence": re.compile(
        r"SPDX-License|licen[sc]ed (?:under|to)|\b(?:apache|bsd|mit|gnu|mozilla|psf)\b[\w\s-]*"
        r"\blicen[sc]e|general public licen[sc]e|permission (?:is hereby granted|to use, copy)"
        r"|redistribution and use in source|without warrant(?:y|ies)|terms of (?:the|this) licen",
        re.IGNORECASE,
    ),
    "author": re.compile(
        r"^[\s\"'#*:.@-]*(?:(?:code|section)?authors?|maintainers?|contributors?)\s*::?\s*\S"
        r"|^\s*__(?:author|credits|maintainer|email|copyright|license)__"
        r"|\b(?:written|contributed|implemented) by\s*:?\s+[A-Z]",
        re.IGNORECASE | re.MULTILINE,
    ),
}
_NOTICE_NAMES = {
    "__author__", "__authors__", "__contact__", "__copyright__", "__credits__", "__date__",
    "__email__", "__license__", "__licence__", "__maintainer__", "__docformat__", "__version__",
}  # fmt: skip
_GENERATED = re.compile(
    r"auto-?\s?generated|automatically generated|(?:file|module) (?:is|was) generated"
    r"|generated (?:by|from|with) [\w/.-]+\.\w+|do not edit|machine generated",
    re.IGNORECASE,
)
_LITERAL_LINE = re.compile(
    r"^[\s\[\](){}]*(?:[rbuf]?[\"'][^\"']*[\"']|[-+\d.eExXjL]+)[\s,:\])}].*$"
)


class Refused(ValueError):
    """A file that does not belong in the corpus; the message is the reason, one word or two."""


def clean_source(source: str) -> str:
    """Returns `source` without comments, notices and names of people.

    Raises:
        Refused: the text does not parse, is generated, minified or mostly data, or still holds
            an e-mail address, a licence or an author line after cleaning.
    """
    if _GENERATED.search("\n".join(source.split("\n")[:15])):
        raise Refused("generated")
    text = _drop_notices_and_tidy(strip_comments(source))
    _parse(text)
    _refuse_data(text)
    for name, pattern in PERSONAL.items():
        if pattern.search(text):
            raise Refused(f"{name} in code")
    return text


def strip_comments(source: str) -> str:
    """Removes every comment; a line that holds nothing else goes with it. The AST stays equal."""
    lines = source.split("\n")
    drop: set[int] = set()
    for token in _tokens(source):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            before = lines[row - 1][:column].rstrip()
            if before:
                lines[row - 1] = before
            else:
                drop.add(row)
    return "\n".join(line for row, line in enumerate(lines, start=1) if row not in drop)


def _tokens(source: str) -> list[tokenize.TokenInfo]:
    try:
        return list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError) as error:
        raise Refused("does not parse") from error


def _parse(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise Refused("does not parse") from error


def _drop_notices_and_tidy(text: str) -> str:
    """Drops notices; outside strings leaves no trailing blanks and at most two blank lines."""
    lines = text.split("\n")
    drop: set[int] = set()
    for node in _parse(text).body:
        if isinstance(node, ast.Assign) and all(
            isinstance(target, ast.Name) and target.id in _NOTICE_NAMES for target in node.targets
        ):
            drop.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    inside: set[int] = set()  # rows whose line break belongs to a string
    for token in _tokens(text):
        if token.type == tokenize.STRING and token.end[0] > token.start[0]:
            inside.update(range(token.start[0], token.end[0]))
            # The opening and the closing row also hold code, so only the rows between may go.
            for row in range(token.start[0] + 1, token.end[0]):
                if any(pattern.search(lines[row - 1]) for pattern in PERSONAL.values()):
                    drop.add(row)
    out: list[str] = []
    blank = 2
    for row, line in enumerate(lines, start=1):
        if row in drop:
            continue
        if row in inside:
            out.append(line)
            blank = 0
            continue
        line = line.rstrip()
        blank = blank + 1 if not line else 0
        if blank <= 2 and (line or out):
            out.append(line)
    return "\n".join(out).strip("\n") + "\n"


def _refuse_data(text: str) -> None:
    """Refuses minified files, tables of literals, and files that are mostly another alphabet."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(text) < 200 or len(lines) < 6:
        raise Refused("too short")
    if max(map(len, lines)) > 400 or len(text) / len(lines) > 90:
        raise Refused("minified")
    literals = sum(bool(_LITERAL_LINE.match(line)) for line in lines)
    digits = sum(character.isdigit() for character in text)
    if literals > 0.4 * len(lines) or digits > 0.12 * len(text):
        raise Refused("mostly data")
    if sum(ord(character) > 127 for character in text) > 0.02 * len(text):
        raise Refused("mostly data")
