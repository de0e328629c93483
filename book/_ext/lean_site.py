"""What a reader downloads: one style sheet with the rules in use, and scripts that wait.

The theme and its extensions bring eight style sheets (560 KB, of which the pages use a
seventh) and as many scripts that block the first paint. `_templates/layout.html` asks for
`_static/site.css` alone; this extension writes it when the pages are done, from the sheets
Sphinx knows of, without the rules whose classes no page and no script mentions.

As soon as a page has loaded, and whenever its content changes, the theme's script asks every box
of code or output for its width. On a phone that lays out the whole chapter, section by section
(1.5 s of a slowed processor, where all else took 2.8 s), so that one call is taken out of the
script: `site.js` looks at the same boxes when their section has been laid out anyway.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.errors import ExtensionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

BUNDLE = "site.css"
THEME_SHEETS = ("styles/theme.css", "styles/pydata-sphinx-theme.css")
THEME_SCRIPT = "scripts/pydata-sphinx-theme.js"
LOOK_AT_BOXES = re.compile(
    r'"complete"===document\.readyState\?(\w+)\(\):window\.addEventListener\("load",\1\)'
)
TAKEN_OUT = "void(0/* site.js finds the boxes that scroll */)"
NAME = re.compile(r"[A-Za-z0-9_-]+")


def blocks(css: str) -> Iterator[tuple[str, str | None]]:
    """The top-level parts of a style sheet: (selector or at-rule, body or None).

    Comments must be gone. A statement such as `@charset "UTF-8";` has no body.
    """
    start = position = 0
    while position < len(css):
        character = css[position]
        if character in "\"'":
            position = css.index(character, position + 1)
        elif character == ";":
            yield css[start:position].strip(), None
            start = position + 1
        elif character == "{":
            head, body = css[start:position].strip(), position + 1
            depth = 1
            while depth:
                position += 1
                if css[position] in "\"'":
                    position = css.index(css[position], position + 1)
                depth += {"{": 1, "}": -1}.get(css[position], 0)
            yield head, css[body:position]
            start = position + 1
        position += 1


def in_use(selector: str, words: set[str]) -> bool:
    """Whether every class and id that `selector` demands is a word of the site.

    What stands in parentheses (`:not(.a)`, `:is(.a, .b)`) demands nothing; an escaped name
    is too rare to be read.
    """
    if "\\" in selector:
        return True
    while "(" in selector:
        selector, count = re.subn(r"\([^()]*\)", "", selector)
        if not count:
            return True
    selector = re.sub(r"\[[^\]]*\]", "", selector)
    return all(name in words for name in re.findall(r"[.#]([A-Za-z_-][A-Za-z0-9_-]*)", selector))


def prune(css: str, words: set[str]) -> str:
    """`css` without the rules that cannot apply to a site made of `words`."""
    kept = []
    for head, body in blocks(re.sub(r"/\*.*?\*/", "", css, flags=re.S)):
        if body is None:
            if not head.startswith(("@charset", "/")) and head:
                kept.append(f"{head};")
        elif head.startswith(("@media", "@supports", "@layer")):
            if inner := prune(body, words):
                kept.append(f"{head}{{{inner}}}")
        elif head.startswith("@"):
            # The icon faces go with the icon script.
            if not re.search(r"Font ?Awesome", body):
                kept.append(f"{head}{{{body.strip()}}}")
        elif selectors := [part for part in split_selectors(head) if in_use(part, words)]:
            kept.append(f"{','.join(selectors)}{{{' '.join(body.split())}}}")
    return "\n".join(kept)


def split_selectors(head: str) -> list[str]:
    """`a, b:is(c, d)` → `a`, `b:is(c, d)`."""
    parts, depth, current = [], 0, ""
    for character in head:
        depth += {"(": 1, ")": -1, "[": 1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [*parts, current.strip()]


def move_addresses(css: str, folder: str) -> str:
    """Point the relative `url(…)` of a sheet in `folder` from where the bundle is."""

    def move(match: re.Match[str]) -> str:
        target = match[2]
        if target.startswith(("data:", "#", "http:", "https:", "/")) or not folder:
            return match[0]
        parts = [*folder.split("/"), *target.split("/")]
        while ".." in parts:
            place = parts.index("..")
            del parts[place - 1 : place + 1]
        return f"url({match[1]}{'/'.join(parts)}{match[1]})"

    return re.sub(r"""url\((["']?)([^"')]+)\1\)""", move, css)


def read_sheet(path: Path) -> str:
    """A style sheet with those it imports put in place; empty if it does not exist."""
    if not path.is_file():
        return ""
    imported = r"""@import (?:url\()?["']([^"']+)["']\)?;"""
    return re.sub(
        imported, lambda match: read_sheet(path.parent / match[1]), path.read_text("utf8")
    )


def write_bundle(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    static = out / "_static"
    words: set[str] = set()
    for pattern in ("**/*.html", "_static/**/*.js"):
        for path in out.glob(pattern):
            words.update(NAME.findall(path.read_text("utf8")))
    sheets: dict[str, str | None] = dict.fromkeys(THEME_SHEETS)
    for sheet in sorted(app.builder._css_files, key=lambda sheet: sheet.priority):  # type: ignore[attr-defined]
        if "://" not in str(sheet.filename):
            sheets[str(sheet.filename).removeprefix("_static/")] = sheet.attributes.get("media")
    css = ""
    for name, media in sheets.items():
        text = prune(read_sheet(static / name), words)
        text = move_addresses(text, name.rpartition("/")[0])
        css += f"@media {media}{{{text}}}\n" if media else text + "\n"
    (static / BUNDLE).write_text(css, "utf8")


def spare_layout(app: Sphinx, exception: Exception | None) -> None:
    """Take the theme's look at all boxes out of its script."""
    if exception is not None or app.builder.format != "html":
        return
    path = Path(app.outdir) / "_static" / THEME_SCRIPT
    script = path.read_text("utf8")
    if TAKEN_OUT in script:  # a build that copied no static file
        return
    script, count = LOOK_AT_BOXES.subn(TAKEN_OUT, script)
    if count != 1:
        raise ExtensionError(
            f"{THEME_SCRIPT} looks for boxes that scroll in {count} places instead of one: "
            "change LOOK_AT_BOXES in book/_ext/lean_site.py for this version of the theme"
        )
    path.write_text(script, "utf8")


def defer_scripts(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Let every script file wait for the page, except the one that inline scripts read.

    Scripts that wait still run in order. sphinx-thebe's own is dropped wherever it came from.
    The search page loads its own tools at once, so there nothing waits.
    """
    waits = pagename != "search"
    scripts = []
    for script in context.get("script_files", []):
        name = str(getattr(script, "filename", "") or "")
        if "thebe" in name or "THEBE" in script.attributes.get("body", ""):
            continue
        at_once = "documentation_options" in name or "type" in script.attributes
        if name and waits and not at_once:
            attributes = {**script.attributes, "defer": "defer"}
            script = type(script)(script.filename, priority=script.priority, **attributes)
        scripts.append(script)
    context["script_files"] = scripts


def notice_static_files(
    app: Sphinx, env: Any, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Count the root page as outdated when a static file changed.

    With no page to write Sphinx ends before it copies static files.
    """
    state = sorted(
        (str(path), path.stat().st_mtime_ns)
        for folder in app.config.html_static_path
        for path in Path(app.srcdir, folder).rglob("*")
        if path.is_file()
    )
    if getattr(env, "static_files_seen", None) == state:
        return []
    env.static_files_seen = state
    return [app.config.root_doc]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("env-get-outdated", notice_static_files)
    app.connect("html-page-context", defer_scripts, priority=900)
    app.connect("build-finished", write_bundle, priority=950)  # the pages are all there
    app.connect("build-finished", spare_layout, priority=950)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
