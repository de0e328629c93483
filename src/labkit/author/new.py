"""`labkit new`: a small lab that builds and verifies, to be changed into another."""

from __future__ import annotations

import re
from pathlib import Path

from labkit.author.build import build_notebook, notebook_text, starter_path
from labkit.reader.lab import LabError, load_lab

SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
ENDING = ".tmpl"  # keeps the sample's files from being taken for labkit's own


def scaffold(slug: str, parent: Path) -> Path:
    """Write a new lab's folder and its starter; return the folder.

    Raises:
        LabError: the slug is not lower-case words joined by hyphens, or the folder is there.
    """
    import jinja2

    if not SLUG.fullmatch(slug):
        raise LabError(
            f"{slug!r} is no slug: lower-case words joined by hyphens, as paged-kv-cache"
        )
    folder = parent / slug
    if folder.exists():
        raise LabError(f"{folder} exists already: choose another slug, or remove it first")
    sample = Path(__file__).with_name("templates") / "lab"
    title = slug.replace("-", " ")
    for path in sorted(sample.rglob(f"*{ENDING}")):
        target = folder / path.relative_to(sample).as_posix().removesuffix(ENDING)
        target.parent.mkdir(parents=True, exist_ok=True)
        template = jinja2.Template(path.read_text("utf8"), keep_trailing_newline=True)
        target.write_text(template.render(slug=slug, title=title), "utf8")
    lab = load_lab(folder)
    starter_path(lab).write_text(notebook_text(build_notebook(lab)), "utf8")
    return folder
