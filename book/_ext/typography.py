"""Lines that break where a reader would break them, and listings without empty margins.

A `literalinclude` of a method brings the class's indentation, which would cost four of a
line's columns, and the empty lines up to its end marker. Both go, here once instead of by an
option at each listing (an option `:dedent:` with a number still holds).

In a table a long name does not fit its column. It breaks behind a slash, a dot or an underline
or before a capital rather than anywhere; and in a command's option the dashes stay with the
first word. In running text a number stays with its unit.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.directives.code import LiteralInclude

if TYPE_CHECKING:
    from sphinx.application import Sphinx

LITERAL = re.compile(r'(<code class="docutils literal[^>]*>)(.*?)(</code>)', re.S)
TABLE = re.compile(r"<table\b.*?</table>", re.S)
WORD = re.compile(r'(<span class="pre">)([^<]+)(</span>)')
OPTION = re.compile(r"^((?:&quot;|\()?--?\w+)(?=-)")
MAY_BREAK = re.compile(r"(?<=[A-Za-z0-9)][/_])(?=\w)|(?<=\w\.)(?=\w{3})|(?<=[a-z0-9])(?=[A-Z])")

QUIET = re.compile(r"<(pre|code|svg|script|style|math)\b.*?</\1>|<[^>]*>", re.S)
UNITS = r"%|[nµm]?s|[kKMGT]B(?:/s)?|[KMG]iB|[GT]FLOPs?(?:/s)?|nats?|bits?|bytes?"
# A number, the end of the element that it may stand in, a space, and a unit.
MEASURE = re.compile(rf"(\d\x01*) (?=(?:{UNITS})(?!\w))")


class Listing(LiteralInclude):
    def run(self) -> list[nodes.Node]:
        self.options.setdefault("dedent", None)
        found = super().run()
        for node in found:
            for block in node.findall(nodes.literal_block):
                block.rawsource = block.rawsource.strip("\n")
                block.children = [nodes.Text(block.rawsource)]
        return found


def _mend_literal(match: re.Match[str], may_break: bool) -> str:
    def word(part: re.Match[str]) -> str:
        text = part[2]
        option = OPTION.match(text)
        whole = f'<span class="q-whole">{option[1]}</span>' if option else ""
        rest = text[option.end() :] if option else text
        if may_break and len(text) > 12:
            rest = MAY_BREAK.sub("<wbr>", rest)
        return part[1] + whole + rest + part[3]

    return match[1] + WORD.sub(word, match[2]) + match[3]


def mend_names(html: str) -> str:
    """`html` with places to break in the code of its tables, and options' dashes held."""
    html = LITERAL.sub(lambda m: _mend_literal(m, may_break=False), html)
    return TABLE.sub(
        lambda table: LITERAL.sub(lambda m: _mend_literal(m, may_break=True), table[0]), html
    )


def hold_units(html: str) -> str:
    """`html` with a space that does not break between a number and its unit."""
    kept: list[str] = []

    def put_away(match: re.Match[str]) -> str:
        kept.append(match[0])
        return "\x00" if match[1] else "\x01"

    text = MEASURE.sub(r"\1&nbsp;", QUIET.sub(put_away, html))
    parts = iter(kept)
    return re.sub("[\x00\x01]", lambda _: next(parts), text)


def mend_body(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    if "body" in context:
        context["body"] = hold_units(mend_names(context["body"]))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("literalinclude", Listing, override=True)
    app.connect("html-page-context", mend_body)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
