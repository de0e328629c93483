"""`labkit release`: the folder and the zip that students get.

It holds the starter of the course's variant, a page that says how to work, and `AGENTS.md`, which
asks an assistant that opens the folder to be a tutor. No solution and no hidden test is in it.
A lab that labkit does not bring along comes with its `lab.toml` and `checks.py`, which
`labkit.check` needs; the first names the hidden tests and the sentences that they judge.
"""

from __future__ import annotations

import re
from pathlib import Path

from labkit.author.build import build_notebook, notebook_text
from labkit.author.zips import write_zip
from labkit.grading.cells import repository_url
from labkit.reader.lab import READERS, Lab, labs_folder

TEMPLATES = Path(__file__).with_name("templates")
# A frontier task in the notebook's own table of tasks; `lab.toml` knows no title of it.
FRONTIER_ROW = re.compile(r"^\| \d+\. (.+) \| frontier \| (.+) \| open \|$", re.MULTILINE)


def release_files(lab: Lab, variant: str | None = None) -> dict[str, bytes]:
    """The files of a release, by name."""
    import jinja2

    template = jinja2.Template(
        (TEMPLATES / "README.md.tmpl").read_text("utf8"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    ours = lab.folder.parent == labs_folder().resolve()
    brought = [] if ours else [name for name in READERS if (lab.folder / name).is_file()]
    notebook = build_notebook(lab, variant)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    readme = template.render(
        lab=lab,
        frontier=FRONTIER_ROW.findall(text),
        total=f"{lab.automatic_points + lab.written_points:g}",
        hours=f"{sum(task.minutes for task in lab.tasks) / 60:.1f}",
        repository=repository_url(),
        brought=brought,
    )
    return {
        f"{lab.slug}/{lab.slug}.ipynb": notebook_text(notebook).encode(),
        f"{lab.slug}/README.md": readme.encode(),
        f"{lab.slug}/AGENTS.md": (TEMPLATES / "AGENTS.md").read_bytes(),
        **{f"{lab.slug}/{name}": (lab.folder / name).read_bytes() for name in brought},
    }


def release(lab: Lab, out: Path, variant: str | None = None) -> list[Path]:
    """Write a release as a folder and as a zip under `out`; return both."""
    files = release_files(lab, variant)
    for name, content in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    archive = out / f"{lab.slug}.zip"
    write_zip(archive, files, executable=frozenset())
    return [out / lab.slug, archive]
