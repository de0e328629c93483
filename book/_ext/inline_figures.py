"""SVG figures become part of the page, so that they follow its theme and its typeface.

An `<img>` cannot see the page's colours. Every local SVG that uses the figure colours of
`quire.plotting` is put into the HTML itself: those colours become the style sheet's
variables, identifiers are made unique to the page, and the image's alternative text
becomes the drawing's accessible name. Other images are left as they are.
"""

from __future__ import annotations

import hashlib
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

from quire.plotting import INK, PALETTE, RULE

if TYPE_CHECKING:
    from sphinx.application import Sphinx

logger = logging.getLogger(__name__)

VARIABLES = {INK: "--q-ink-soft", RULE: "--q-reference"} | {
    colour: f"--q-{index}" for index, colour in enumerate(PALETTE, start=1)
}
GRID = re.compile(rf"stroke: {RULE}(?=; stroke-opacity: 0\.5; stroke-width: 0\.5\b)", re.I)
"""The grid stays in the background; every other thing in its colour says something."""
POINT = 96 / 72
"""CSS pixels in a point: matplotlib writes a drawing's size in points."""


def inline_svg(svg: str, alt: str, prefix: str) -> str:
    """`svg`, a whole file, as an element that can stand in an HTML page.

    `alt` is its accessible name; `prefix` keeps its identifiers apart from other figures'.
    """
    svg = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = re.sub(r'((?: id="|href="#|url\(#))', rf"\1{prefix}-", svg)
    svg = GRID.sub("stroke: var(--q-rule)", svg)
    # White words stand on a data colour, which in the dark theme is light.
    svg = re.sub(r"fill: (#ffffff|white)\b", "fill: var(--q-paper)", svg)
    for colour, variable in VARIABLES.items():
        svg = re.sub(re.escape(colour), f"var({variable}, {colour})", svg, flags=re.I)
    # The page's own typeface; sizes and weights stay as drawn.
    svg = re.sub(r"'DejaVu Sans'(, (?:'sans-serif'|sans-serif))*", "var(--q-sans)", svg)
    svg = re.sub(r">\s+<", "><", svg).strip()

    match = re.match(r"<svg\b[^>]*>", svg)
    if match is None:
        raise ValueError("no <svg> element")
    head = match[0]
    width = re.search(r'\bwidth="([\d.]+)(pt|px)?"', head)
    box = re.search(r'viewBox="[^"]+"', head)
    if width is None or box is None:
        raise ValueError("an <svg> to be put into a page needs `width` and `viewBox`")
    pixels = float(width[1]) * (POINT if width[2] == "pt" else 1)
    name = f'role="img" aria-label="{escape(alt)}"' if alt else 'aria-hidden="true"'
    return f'<svg class="q-figure" {box[0]} style="width:{pixels:.0f}px" {name}>' + svg[len(head) :]


class InlineFigures(SphinxPostTransform):
    default_priority = 900
    formats = ("html",)

    def run(self, **kwargs: object) -> None:
        for node in list(self.document.findall(nodes.image)):
            path = Path(self.app.srcdir) / node["uri"]
            if path.suffix != ".svg" or not path.is_file():
                continue
            svg = path.read_text("utf8")
            if not any(colour in svg.lower() for colour in VARIABLES):
                continue
            prefix = "f" + hashlib.sha256(svg.encode()).hexdigest()[:6]
            try:
                html = inline_svg(svg, node.get("alt", ""), prefix)
            except ValueError as error:
                logger.warning("%s: %s", path.name, error, location=node, type="figure")
                continue
            node.replace_self(nodes.raw("", html, format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_post_transform(InlineFigures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
