"""Formulas are typeset while the book is built, by KaTeX in an embedded QuickJS.

Three ways were weighed. MathJax in the browser costs a reader 400 KB and a second of
script on a phone. MathML from Python (latex2mathml) passed `aligned` and `\\arg` through
as text, in silence. KaTeX at build time costs 1.7 ms a formula here, nothing but a style
sheet and the fonts a page uses there, works without JavaScript and in print, and a
formula it cannot read is a warning with its place in the source, so a strict build fails.
`katex.min.js` is a build tool and is not part of the site.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)

KATEX = Path(__file__).parent / "katex" / "katex.min.js"
RENDER = """
function render(source, display) {
  return katex.renderToString(source, {
    displayMode: display, output: "htmlAndMathml", throwOnError: true,
    strict: code => code === "unicodeTextInMathMode" ? "ignore" : "error",
  });
}
"""


@lru_cache(1)
def _renderer() -> Any:
    try:
        import quickjs
    except ImportError as error:
        raise RuntimeError("formulas need the package quickjs: pip install quickjs") from error
    return quickjs.Function("render", KATEX.read_text("utf8") + RENDER)


@lru_cache(maxsize=4096)
def to_html(source: str, display: bool) -> str:
    """HTML (with MathML for screen readers) of one LaTeX formula.

    Raises ValueError with KaTeX's own words if the formula cannot be read.
    """
    import quickjs

    try:
        return str(_renderer()(source, display))
    except quickjs.JSException as error:
        raise ValueError(str(error).splitlines()[0]) from None


def _render(node: nodes.Element, source: str, display: bool) -> str:
    try:
        return to_html(source, display)
    except ValueError as error:
        logger.warning("formula: %s", error, location=node, type="katex")
        return f"<code>{source}</code>"


def visit_inline(self: HTML5Translator, node: nodes.Element) -> None:
    from docutils.nodes import SkipNode

    self.body.append(_render(node, node.astext(), display=False))
    raise SkipNode


def visit_block(self: HTML5Translator, node: nodes.Element) -> None:
    from docutils.nodes import SkipNode

    # A wide formula scrolls inside its own box, which the keyboard must be able to reach.
    self.body.append(self.starttag(node, "div", CLASS="math", role="group", tabindex="0"))
    self.body.append(_render(node, node.astext(), display=True))
    if node["number"]:
        number = get_node_equation_number(self, node)  # type: ignore[arg-type]
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("katex", (visit_inline, None), (visit_block, None))  # type: ignore[arg-type]
    app.add_css_file("katex/katex.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
