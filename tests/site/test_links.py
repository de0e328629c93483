"""What the built files say about each other: links, sitemap, the chapters' trios, weight."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import bookmeta
import pytest


class Links(HTMLParser):
    """The addresses a page refers to and the anchors it offers."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[tuple[str, str]] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src", "data-src") and value:
                for part in value.split() if name == "data-src" else [value]:
                    self.targets.append((tag, part))


@cache
def read(path: Path) -> Links:
    links = Links()
    links.feed(path.read_text("utf8"))
    return links


def test_every_internal_link_resolves(site: Path) -> None:
    broken = []
    for page in site.rglob("*.html"):
        here = page.relative_to(site).as_posix()
        for _, target in read(page).targets:
            parts = urlsplit(unquote(urljoin(f"http://site/{here}", target)))
            if parts.scheme not in ("http", "https") or parts.netloc != "site":
                continue
            file = site / parts.path.lstrip("/")
            if file.is_dir():
                file /= "index.html"
            if not file.is_file():
                broken.append(f"{here} → {target}")
            elif file.suffix == ".html" and parts.fragment not in {"", *read(file).anchors}:
                broken.append(f"{here} → {target} (no such anchor)")
    assert not broken, "\n".join(broken)


def test_a_link_to_a_file_of_the_repository_names_one_that_exists(site: Path) -> None:
    prefixes = [bookmeta.blob_url(""), bookmeta.tree_url(""), bookmeta.colab_url("")]
    seen, broken = 0, []
    for page in site.rglob("*.html"):
        for _, target in read(page).targets:
            for prefix in prefixes:
                if target.startswith(prefix):
                    seen += 1
                    path = unquote(urlsplit(target.removeprefix(prefix)).path)
                    if not (bookmeta.ROOT / path).exists():
                        broken.append(f"{page.relative_to(site)} → {path}")
    assert seen >= 5 * len(bookmeta.slugs())
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("slug", bookmeta.slugs())
def test_a_chapter_opens_its_notebook_and_its_lab(slug: str, site: Path) -> None:
    targets = [target for _, target in read(site / "chapters" / f"{slug}.html").targets]
    notebook = bookmeta.colab_url(f"notebooks/{slug}.ipynb")
    assert targets.count(notebook) >= 2, "the top bar and the chapter's header both open it"
    assert bookmeta.colab_url(f"labs/{slug}/{slug}.ipynb") in targets
    assert bookmeta.tree_url(f"labs/{slug}") in targets
    assert not [target for target in targets if "colab" in target and target.endswith(".md")]


def test_the_sitemap_lists_every_page_once(site: Path) -> None:
    root = ET.parse(site / "sitemap.xml").getroot()
    listed = sorted(str(loc.text) for loc in root.iter() if loc.tag.endswith("loc"))
    pages = [f"{bookmeta.site_url()}{page}.html" for page in bookmeta.pages()]
    assert set(pages) <= set(listed)
    assert len(listed) == len(set(listed))
    extra = set(listed) - set(pages)
    assert extra <= {f"{bookmeta.site_url()}{name}.html" for name in ("genindex", "search")}


def test_the_site_holds_this_toc_and_nothing_left_over(site: Path) -> None:
    found = {page.relative_to(site).as_posix() for page in site.rglob("*.html")}
    wanted = {f"{page}.html" for page in bookmeta.pages()}
    assert found == wanted | {"index.html", "genindex.html", "search.html"}
    assert not (site / "_sources").exists()
    assert not (site / "reports").exists()
    assert bookmeta.pages()[0] in (site / "index.html").read_text("utf8")
