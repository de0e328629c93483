"""What must hold of the tree as a whole: trios, one address, no words of work in progress."""

from __future__ import annotations

import re
from pathlib import Path

import bookmeta
import pytest
import sources
from bookmeta import ROOT


@pytest.mark.parametrize("slug", bookmeta.slugs())
def test_a_chapter_is_a_trio(slug: str) -> None:
    parts = [
        f"chapters/{slug}.md",
        f"notebooks/{slug}.ipynb",
        *(f"labs/{slug}/{name}" for name in ("lab.toml", "master.py", f"{slug}.ipynb")),
    ]
    missing = [part for part in parts if not (ROOT / part).is_file()]
    assert not missing
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", slug), "a slug has no numbers: _toc.yml has the order"


def test_nothing_is_outside_the_table_of_slugs() -> None:
    slugs = set(bookmeta.slugs())
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == slugs
    assert {path.parent.name for path in (ROOT / "labs").glob("*/lab.toml")} == slugs
    assert {path.stem for path in (ROOT / "chapters").glob("*.md")} == slugs


def test_every_page_of_the_toc_exists_and_every_page_is_in_it() -> None:
    listed = set(bookmeta.pages())
    written = {
        path.relative_to(ROOT).with_suffix("").as_posix()
        for path in sources.pages()
        if path.parent != ROOT
    }
    assert listed == written


def test_the_repository_has_one_address() -> None:
    """An address that speaks of this project is the one in pyproject.toml."""
    url = bookmeta.repository_url()
    owner_name = url.removeprefix("https://github.com/")
    hosts = r"(?:github\.com|colab\.research\.google\.com/github|raw\.githubusercontent\.com)"
    wrong, right = [], 0
    for path in sources.files():
        for match in re.finditer(rf"{hosts}/([\w.-]+/[\w.-]+)", path.read_text("utf8")):
            found = match[1].removesuffix(".git").rstrip(".")
            if found == owner_name:
                right += 1
            elif set(found.split("/")) & set(owner_name.split("/")):
                wrong.append(f"{path.relative_to(ROOT)}: {match[0]}")
    assert not wrong
    assert right > 1


def test_no_work_in_progress_and_no_machine_in_the_tree() -> None:
    # Written in halves, so that this file does not find itself.
    words = [
        ("coming", " soon"), ("TO", "DO"), ("FIX", "ME"), ("placeholder", " text"),
        ("lorem", " ipsum"), ("/", "root/"), ("/", "work/"),
    ]  # fmt: skip
    pattern = re.compile("|".join(rf"(?<![\w.]){a}{b}" for a, b in words))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in sources.files()
        for number, line in enumerate(path.read_text("utf8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


# A file of each kind that an executed cell reads.
INPUTS = {
    "src/quire/**/*.py": "src/quire/layers/linear.py",
    "src/quire/**/*.toml": "src/quire/analysis/hardware.toml",
    "models/**/*.json": "models/quire-mini/config.json",
    "models/**/*.safetensors": "models/quire-mini/model.safetensors",
    "models/*.gz": "models/heldout.jsonl.gz",
    "measurements/*.json": "measurements/linear-cpu.json",
    "requirements.lock": "requirements.lock",
}


@pytest.mark.parametrize("pattern", bookmeta.EXECUTION_INPUTS)
def test_what_a_cell_reads_decides_whether_it_runs_again(pattern: str, tmp_path: Path) -> None:
    assert (ROOT / INPUTS[pattern]).is_file()
    for name in INPUTS.values():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    before = bookmeta.execution_hash(tmp_path)
    assert bookmeta.execution_hash(tmp_path) == before
    changed = tmp_path / INPUTS[pattern]
    changed.write_text("two")
    contents = bookmeta.execution_hash(tmp_path)
    changed.rename(changed.with_name(f"another-{changed.name}"))
    assert len({before, contents, bookmeta.execution_hash(tmp_path)}) == 3


def test_the_files_that_pages_open_are_inputs_of_their_execution() -> None:
    """A file named in a page's code or the engine's, such as `heldout.jsonl.gz`."""
    covered = {path for pattern in bookmeta.EXECUTION_INPUTS for path in ROOT.glob(pattern)}
    readers = [*sources.pages(), *(ROOT / "src" / "quire").rglob("*.py")]
    named = {
        name
        for path in readers
        for name in re.findall(r"\"([\w-]+\.[\w.]+)\"", path.read_text("utf8"))
    }
    opened = {path for path in (ROOT / "models").glob("*.*") if path.name in named}
    assert opened
    assert opened <= covered


def test_a_benchmark_that_is_named_exists() -> None:
    from quire.bench.command import TITLES

    named = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in sources.files()
        if path.suffix in {".md", ".ipynb", ".json", ".toml"} or path.name == "master.py"
        for name in re.findall(r"quire bench ([a-z][a-z-]*)", path.read_text("utf8"))
    }
    assert named
    assert not {(path, name) for path, name in named if name not in TITLES}
