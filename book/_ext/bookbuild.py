"""The book's own build rules, as one Sphinx extension.

- Addresses come from `pyproject.toml` (see `bookmeta`), the execution cache lives in a
  folder named after what an executed cell can read.
- A chapter page gets its Colab, notebook and lab links; a trio that lacks a part warns,
  which fails the strict build.
- What the builders leave behind (pages taken out of `_toc.yml`, execution reports, the
  theme's icon script and unused maps) is removed from the site.
"""

from __future__ import annotations

import shutil
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bookmeta
from docutils import nodes
from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config

logger = logging.getLogger(__name__)

CACHE_PREFIX = "execution-"

# 2.6 MB that no page asks for: icons are masks in quire.css (see _templates/layout.html).
UNUSED_STATIC = (
    "scripts/fontawesome.js",
    "scripts/*.map",
    "scripts/*.LICENSE.txt",
    "styles/*.map",
    "vendor/fontawesome",
    "sbt-webpack-macros.html",
    "webpack-macros.html",
    "locales",
    "images/logo_*",
)


def configure(app: Sphinx, config: Config) -> None:
    """Set every option that derives from the repository's address or content."""
    config.html_theme_options["repository_url"] = bookmeta.repository_url()
    config.html_theme_options["repository_branch"] = bookmeta.BRANCH
    config.html_baseurl = config.ogp_site_url = bookmeta.site_url()
    # The cache's place is a value Sphinx compares with the last build's, so a changed
    # engine also re-reads (and hence re-executes) pages whose text did not change.
    caches = Path(app.outdir).parent
    cache = caches / f"{CACHE_PREFIX}{bookmeta.execution_hash()}"
    config.nb_execution_cache_path = str(cache)
    for stale in caches.glob(f"{CACHE_PREFIX}*"):
        if stale != cache:
            shutil.rmtree(stale)


def chapter_slug(docname: str) -> str | None:
    """`paged-kv-cache` for `chapters/paged-kv-cache` and its further pages, else None."""
    folder, _, rest = docname.partition("/")
    return rest.split("/")[0] if folder == "chapters" else None


def _links(slug: str) -> list[tuple[str, str, str]]:
    """(label, accessible description, address) of each link a chapter's header shows."""
    notebook, lab = f"notebooks/{slug}.ipynb", f"labs/{slug}/{slug}.ipynb"
    return [
        ("Notebook in Colab", "fa-rocket", bookmeta.colab_url(notebook)),
        ("Notebook", "fa-code", bookmeta.blob_url(notebook)),
        ("Lab in Colab", "fa-rocket", bookmeta.colab_url(lab)),
        ("Lab", "fa-flask", bookmeta.tree_url(f"labs/{slug}")),
    ]


def add_trio_links(app: Sphinx, doctree: nodes.document) -> None:
    """Put the links to notebook and lab under the title of a chapter."""
    docname = app.env.docname
    slug = chapter_slug(docname)
    if slug is None:
        return
    for part in (f"notebooks/{slug}.ipynb", f"labs/{slug}/{slug}.ipynb"):
        if not (bookmeta.ROOT / part).is_file():
            logger.warning("%s: the chapter lacks %s", docname, part, type="trio")
    anchors = "".join(
        f'<a href="{escape(url)}"><i class="fa-solid {icon}" aria-hidden="true"></i> {label}</a>'
        for label, icon, url in _links(slug)
    )
    html = f'<nav class="q-trio" aria-label="Work with this chapter">{anchors}</nav>'
    title = next(iter(doctree.findall(nodes.title)), None)
    if title is not None:
        title.parent.insert(title.parent.index(title) + 1, nodes.raw("", html, format="html"))


def add_colab_button(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Show one Colab button in the top bar of a chapter, and of nothing else.

    The theme's own launch button would point at the chapter's `.md`, which Colab cannot
    open. Runs at priority 600, after the theme filled `header_buttons` at 501.
    """
    slug = chapter_slug(pagename)
    if slug is None or "header_buttons" not in context:
        return
    context["header_buttons"].insert(
        0,
        {
            "type": "link",
            "text": "Colab",
            "tooltip": "Open this chapter's notebook in Colab",
            "icon": "fa-solid fa-rocket",
            "url": bookmeta.colab_url(f"notebooks/{slug}.ipynb"),
            "label": "colab",
        },
    )


def mend_body(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Replace the roles that ARIA 1.2 has withdrawn and docutils still writes."""
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def clean_site(app: Sphinx, exception: Exception | None) -> None:
    """Leave in the site what this build made, and an `index.html` at its root."""
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    known = {f"{name}.html" for name in app.env.found_docs} | {"search.html", "genindex.html"}
    for page in out.rglob("*.html"):
        if page.relative_to(out).as_posix() not in known and "_static" not in page.parts:
            page.unlink()
    for name in ("_sources", "reports"):
        shutil.rmtree(out / name, ignore_errors=True)
    for pattern in UNUSED_STATIC:
        for path in (out / "_static").glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    root = f"{app.config.root_doc}.html"
    (out / "index.html").write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(app.config.html_title)}</title>"
        f'<meta http-equiv="refresh" content="0; url={root}">'
        f'<link rel="canonical" href="{bookmeta.site_url()}{root}"></head>'
        f'<body><p><a href="{root}">{escape(app.config.html_title)}</a></p></body></html>\n',
        "utf8",
    )


def setup(app: Sphinx) -> dict[str, bool]:
    # Jupyter Book sets this for an extension that the book does not load.
    app.add_config_value("comments_config", {}, "")
    app.connect("config-inited", configure, priority=400)
    app.connect("doctree-read", add_trio_links)
    app.connect("html-page-context", add_colab_button, priority=600)
    app.connect("html-page-context", mend_body)
    app.connect("build-finished", clean_site, priority=900)
    app.add_js_file("site.js", defer="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
