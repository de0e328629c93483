"""What the instructor's pages say about chapters and labs, read from where it stands.

    ```{lab-sheet} autoregressive-decoding
    ```

writes the objectives of a chapter's pages, the time they take, its lab's tasks with tier,
points and minutes, the variants, and the mistakes that are known: the failures that the pages
reproduce and the wrong solutions that ship with the lab. Nothing of it is written twice.

`{chapter}`batching`` is a link to a chapter that exists, and otherwise its title as the
roadmap words it. `{lab-minutes}`autoregressive-decoding/sampler+stream`` adds up minutes.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import bookmeta
from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective, SphinxRole

from labkit.reader.lab import Lab, load_lab

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROADMAP = bookmeta.ROOT / "book" / "project" / "roadmap.md"
TASK_OR_MORE = re.compile(r"([a-z-]+)(?:/([a-z+-]+))?")


def pages_of(slug: str) -> list[Path]:
    """The files of a chapter's pages in reading order, its first page first."""
    first = f"chapters/{slug}"
    names = [p for p in bookmeta.pages() if p == first or p.startswith(f"{first}/")]
    return [bookmeta.ROOT / f"{name}.md" for name in names]


def lab_of(slug: str) -> Lab:
    return load_lab(bookmeta.ROOT / "labs" / slug)


def planned() -> dict[str, str]:
    """Titles of the chapters that the roadmap names, by slug."""
    return {
        slug: title
        for title, slug in re.findall(r"\*\*([^*]+)\*\* \(`([a-z-]+)`\)", ROADMAP.read_text("utf8"))
    }


def lead(page: Path, words: str) -> str:
    """The paragraph of a page that has `words` in bold, from there on and without them.

    Raises:
        ValueError: the page has no such paragraph.
    """
    for paragraph in page.read_text("utf8").split("\n\n"):
        found = re.search(rf"\*\*{re.escape(words)}\*\*\s+(.*)", paragraph, flags=re.S)
        if found:
            return " ".join(found[1].split())
    name = page.relative_to(bookmeta.ROOT).as_posix()
    raise ValueError(f"{name} has no paragraph with **{words}**")


def objectives(slug: str) -> list[str]:
    """What a reader can do after each of a chapter's pages, a paragraph a page."""
    first, *further = pages_of(slug)
    found = [f"**Objectives.** The reader can {lead(first, 'After this chapter you can')}"]
    for page in further:
        can = lead(page, "After this page you can")
        target = "/" + page.relative_to(bookmeta.ROOT).with_suffix("").as_posix()
        found.append(f"After {{doc}}`{target}` (a further page): {can}")
    return found


def failures(slug: str) -> list[str]:
    """The names of what goes wrong, as the sections of that title set them in bold."""
    names = []
    for page in pages_of(slug):
        text = page.read_text("utf8")
        section = re.search(r"^## What goes wrong$(.*?)^## ", text, flags=re.M | re.S)
        if section:
            names += re.findall(r"^\*\*(.+?)\.\*\*", section[1], flags=re.M)
    return names


def mistakes(lab: Lab) -> dict[str, list[str]]:
    """What is wrong with the mutants that change one task, by task."""
    found = defaultdict(list)
    for path in sorted((lab.folder / "mutants").glob("*.toml")):
        raw = tomllib.loads(path.read_text("utf8"))
        if "task" in raw:
            found[raw["task"]].append(" ".join(raw["bug"].split()))
    return found


def task_rows(lab: Lab) -> list[str]:
    rows = [
        f"| `{t.name}` | {t.title} | {t.tier} | {t.points:g} | {t.minutes} |" for t in lab.tasks
    ]
    rows += [
        f"| `{q.name}` | {q.title} (written) | {q.tier} | {q.points:g} | with the task |"
        for q in lab.written
    ]
    points = lab.automatic_points + lab.written_points
    minutes = sum(task.minutes for task in lab.tasks)
    return [*rows, f"| | **together** | | **{points:g}** | **{minutes}** |"]


def minutes(words: str) -> int:
    """Minutes of a lab, or of tasks in it: `slug` or `slug/task+task`.

    Raises:
        ValueError: not of that form.
        LabError: no such lab or task.
    """
    form = TASK_OR_MORE.fullmatch(words)
    if form is None:
        raise ValueError(f"{words!r} is not `slug` or `slug/task+task`")
    lab = lab_of(form[1])
    tasks = lab.tasks if form[2] is None else [lab.task(name) for name in form[2].split("+")]
    return sum(task.minutes for task in tasks)


def sheet(slug: str) -> str:
    """The sheet of a chapter, in Markdown."""
    lab = lab_of(slug)
    wrong = mistakes(lab)
    lines = [
        *(line for words in objectives(slug) for line in (words, "")),
        f"**Time.** {lead(pages_of(slug)[0], 'Time:')}",
        "",
        "| task | what | tier | points | minutes |",
        "|---|---|---|--:|--:|",
        *task_rows(lab),
        "",
        "**Variants.** "
        + " ".join(f"`{name}`: {words.rstrip('.')}." for name, words in lab.variants.items())
        + f" The public default is `{lab.default_variant}`.",
        "",
        "**Failures that the pages reproduce.** " + "; ".join(failures(slug)) + ".",
        "",
        "**Common mistakes.** Each is a wrong solution that ships with the lab, and the hidden "
        "tests must take points from it.",
        "",
    ]
    for task in lab.tasks:
        if wrong[task.name]:
            count = f"{len(wrong[task.name])} mistake{'s' if len(wrong[task.name]) > 1 else ''}"
            lines += [f":::{{dropdown}} {task.title}: {count}", ""]
            lines += [f"- {words}" for words in wrong[task.name]]
            lines += ["", ":::", ""]
    return "\n".join(lines)


class LabSheet(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        slug = self.arguments[0]
        if slug not in bookmeta.slugs():
            raise self.error(f"lab-sheet: no chapter {slug!r} in _toc.yml")
        sources = [*pages_of(slug), *sorted((bookmeta.ROOT / "labs" / slug).rglob("*.toml"))]
        for path in sources:
            self.env.note_dependency(str(path))
        container = nodes.container()
        lines = StringList(sheet(slug).splitlines(), source=f"lab-sheet {slug}")
        self.state.nested_parse(lines, 0, container)
        return container.children


class ChapterRole(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        self.env.note_dependency(str(ROADMAP))
        if self.text in bookmeta.slugs():
            link = addnodes.pending_xref(
                "",
                nodes.inline(),
                refdomain="std",
                reftype="doc",
                reftarget=f"/chapters/{self.text}",
                refexplicit=False,
                refwarn=True,
                refdoc=self.env.docname,
            )
            return [link], []
        title = planned().get(self.text)
        if title is None:
            message = self.inliner.reporter.error(
                f"chapter `{self.text}` is neither in _toc.yml nor on the roadmap",
                line=self.lineno,
            )
            return [], [message]
        return [nodes.inline("", title)], []


class LabMinutesRole(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        self.env.note_dependency(str(bookmeta.ROOT / "labs" / self.text.split("/")[0] / "lab.toml"))
        return [nodes.Text(str(minutes(self.text)))], []


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("lab-sheet", LabSheet)
    app.add_role("chapter", ChapterRole())
    app.add_role("lab-minutes", LabMinutesRole())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
