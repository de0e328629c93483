"""The further page of a chapter is numbered as a page of its own, 2b, and not as a section."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from bookmeta import ROOT

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf8"))
FIGURE = ".. _fig-{0}:\n\n.. figure:: dot.svg\n\n   {0}\n"


def test_a_page_below_a_chapter_is_in_its_folder() -> None:
    chapters = [chapter for part in TOC["parts"] for chapter in part["chapters"]]
    below = [(c["file"], page) for c in chapters for page in c.get("sections", [])]
    assert below
    for chapter, page in below:
        assert Path(page["file"]).parent.as_posix() == chapter
        assert "sections" not in page, f"{page['file']}: a chapter has one level of further pages"


def test_the_book_numbers_its_further_pages() -> None:
    sphinx = CONFIG["sphinx"]
    assert sphinx["local_extensions"]["page_numbers"] == "book/_ext"
    assert "page_numbers" in sphinx["config"]["extensions"]
    assert CONFIG["html"]["use_multitoc_numbering"]


def headings(page: Path) -> list[str]:
    """The headings of a built page, each with its number."""
    found = re.findall(r'<h[1-6]>(.*?)<a class="headerlink', page.read_text("utf8"))
    return [re.sub(r"<[^>]*>", "", heading) for heading in found]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three chapters in two parts, the second with two further pages, built by Sphinx."""
    source = tmp_path_factory.mktemp("numbering")
    parts = ("One", ("first", "second")), ("Two", ("third",))
    toc = "".join(
        f".. toctree::\n   :caption: {caption}\n   :numbered:\n\n"
        + "".join(f"   chapters/{name}\n" for name in names)
        + "\n"
        for caption, names in parts
    )
    pages = {
        "index": f"Book\n====\n\n{toc}",
        "chapters/first": "First\n=====\n\nIntro\n-----\n",
        "chapters/second": "Second\n======\n\nWhy\n---\n\n" + FIGURE.format("one")
        + "\nHow\n---\n\n.. toctree::\n\n   second/more\n   second/most\n",
        "chapters/second/more": "More\n====\n\nBits\n----\n\nDeep\n~~~~\n\n"
        + FIGURE.format("two").replace("dot", "../dot") + "\nSee :numref:`fig-two`.\n",
        "chapters/second/most": "Most\n====\n\nLast\n----\n",
        "chapters/third": "Third\n=====\n\nEnd\n---\n",
    }  # fmt: skip
    for name, text in pages.items():
        path = source / f"{name}.rst"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf8")
    (source / "chapters" / "dot.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})\nnumfig = True\n"
        "extensions = ['sphinx_multitoc_numbering', 'page_numbers']\nhtml_theme = 'basic'\n"
    )
    built = source / "built"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(source), str(built)]
    subprocess.run(command, check=True, timeout=120)
    return built


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("first", ["1. First", "1.1. Intro"]),
        ("second", ["2. Second", "2.1. Why", "2.2. How"]),
        ("second/more", ["2b. More", "2b.1. Bits", "2b.1.1. Deep"]),
        ("second/most", ["2c. Most", "2c.1. Last"]),
        ("third", ["3. Third", "3.1. End"]),  # the chapters after it keep their count
    ],
)
def test_headings(site: Path, name: str, expected: list[str]) -> None:
    assert headings(site / "chapters" / f"{name}.html") == expected


def test_figures_keep_the_chapters_count(site: Path) -> None:
    assert "Fig. 2.1" in (site / "chapters/second.html").read_text("utf8")
    more = (site / "chapters/second/more.html").read_text("utf8")
    assert set(re.findall(r"Fig\. [\w.]+\d", more)) == {"Fig. 2.2"}


def test_the_contents_say_the_same(site: Path) -> None:
    contents = re.sub(r"<[^>]*>", "", (site / "index.html").read_text("utf8"))
    assert re.search(r"2\.2\. How.*2b\. More.*2b\.1\. Bits.*2c\. Most.*3\. Third", contents, re.S)
    assert "2.3" not in contents
