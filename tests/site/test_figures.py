"""Every picture says in words what it shows."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import bookmeta
import pytest


class Pictures(HTMLParser):
    """Pictures with their alternative text, and figures with their captions."""

    def __init__(self) -> None:
        super().__init__()
        self.nameless: list[str] = []
        self.named: list[str] = []
        self.figures = self.captions = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img" or (tag == "svg" and "q-figure" in (values.get("class") or "")):
            name = values.get("alt" if tag == "img" else "aria-label") or ""
            if name:
                self.named.append(name)
            else:
                self.nameless.append(self.get_starttag_text() or tag)
        self.figures += tag == "figure"
        self.captions += tag == "figcaption"


@pytest.mark.parametrize("page", bookmeta.pages())
def test_every_picture_has_words(page: str, site: Path) -> None:
    pictures = Pictures()
    pictures.feed((site / f"{page}.html").read_text("utf8"))
    assert not pictures.nameless, pictures.nameless
    for name in pictures.named:
        assert len(name.split()) >= 4, f"alternative text that says little: {name!r}"
        assert not name.startswith(("../", "_images")), f"a file name, not words: {name!r}"
    assert pictures.figures == pictures.captions, "a figure without a caption"
