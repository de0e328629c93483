"""`{explorable}`: put an interactive figure on a page.

    ```{explorable} decode-stepper
    :data: decode-trace.json
    :caption: Twelve decode steps of quire-mini, with and without the cache.

    ![The cache grows by one row a step.](decode-stepper.svg)
    ```

becomes a figure that holds `<quire-decode-stepper data-src="…/decode-trace.json">`. The
module `book/_static/explorables/decode-stepper.js` defines that element and is loaded on
this page alone. The directive's body stays inside the element as the fallback that print
and a browser without JavaScript show; the element replaces it when it upgrades.
`:data:` names one or more files of `book/_static/explorables/data/`; with more than one,
`data-src` holds their addresses separated by spaces.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from bookmeta import ROOT
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from collections.abc import Callable

    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

STATIC = ROOT / "book" / "_static"
FOLDER = "explorables"


class explorable(nodes.General, nodes.Element):
    """The custom element; its children are the fallback."""


class ExplorableDirective(SphinxDirective):
    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Callable[[str], Any]]] = {
        "data": directives.unchanged,
        "caption": directives.unchanged_required,
        "name": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
            raise self.error(f"explorable `{name}`: lower-case words joined by hyphens")
        files = [f"{FOLDER}/{name}.js"]
        data = [f"{FOLDER}/data/{part}" for part in self.options.get("data", "").split()]
        for file in files + data:
            self.env.note_dependency(str(STATIC / file))
            if not (STATIC / file).is_file():
                raise self.error(
                    f"explorable `{name}`: no file {(STATIC / file).relative_to(ROOT)}"
                )
        if not self.content:
            raise self.error(f"explorable `{name}`: the body (a static figure or text) is empty")
        element = explorable("", name=name, data=data)
        self.set_source_info(element)
        self.state.nested_parse(self.content, self.content_offset, element)
        figure = nodes.figure("", element, classes=["q-explorable"])
        figure["align"] = "default"
        if "caption" in self.options:
            text, messages = self.state.inline_text(self.options["caption"], self.lineno)
            figure += nodes.caption(self.options["caption"], "", *text)
            figure += messages
        self.add_name(figure)
        modules = self.env.metadata[self.env.docname].setdefault("explorables", [])
        modules.append(name)
        return [figure]


def visit(self: HTML5Translator, node: explorable) -> None:
    root = "../" * self.builder.current_docname.count("/")
    attributes = {}
    if node["data"]:
        attributes["data-src"] = " ".join(f"{root}_static/{path}" for path in node["data"])
    self.body.append(self.starttag(node, f"quire-{node['name']}", **attributes))


def depart(self: HTML5Translator, node: explorable) -> None:
    self.body.append(f"</quire-{node['name']}>\n")


def pass_through(self: object, node: nodes.Element) -> None:
    """Other builders show the fallback alone."""


def add_modules(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    if doctree is None:
        return
    for name in dict.fromkeys(app.env.metadata[pagename].get("explorables", [])):
        app.add_js_file(f"{FOLDER}/{name}.js", type="module")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_node(
        explorable,
        html=(visit, depart),
        latex=(pass_through, pass_through),
        text=(pass_through, pass_through),
    )
    app.add_directive("explorable", ExplorableDirective)
    app.connect("html-page-context", add_modules)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
