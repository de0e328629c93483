"""Number the further pages of a chapter as pages: 2b, 2c, with sections 2b.1, 2b.2.

Sphinx takes a page below a chapter in `_toc.yml` for the chapter's next section, so the second
page of chapter 2 would be "2.14", after the last heading of the first, and move with each heading
that is added there. Figures, tables and equations keep the chapter's count: they are numbered
before this runs, and the first number of both pages is the chapter's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docutils import nodes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

LETTERS = "bcdefghijklmnopqrstuvwxyz"  # the chapter itself is page a, and is not called so


def further_pages(env: BuildEnvironment) -> Iterator[tuple[str, str]]:
    """Every page below a numbered chapter, with its number: `("chapters/x/more", "2b")`."""
    for chapter, numbers in env.toc_secnumbers.items():
        number = numbers.get("")
        if number and len(number) == 1:
            below = env.toctree_includes.get(chapter, [])
            for page, letter in zip(below, LETTERS, strict=False):
                yield page, f"{number[0]}{letter}"


def renumber(app: Sphinx, env: BuildEnvironment) -> Iterable[str]:
    """Give each further page its own number, in headings and in every table of contents.

    Runs after Sphinx's collector of section and figure numbers.
    """
    for page, name in list(further_pages(env)):
        numbers: dict[str, Any] = env.toc_secnumbers.get(page, {})
        if not numbers.get(""):
            continue
        depth = len(numbers[""])
        for anchor, number in numbers.items():
            if number:
                numbers[anchor] = (name, *number[depth:])
        for reference in env.tocs[page].findall(nodes.reference):
            if reference.get("secnumber") and reference["anchorname"] in numbers:
                reference["secnumber"] = numbers[reference["anchorname"]]
        env.titles[page]["secnumber"] = numbers[""]
    return []


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("env-get-updated", renumber, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
