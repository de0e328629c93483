"""What the build, the scripts and the tests all ask about this repository.

One place each: the repository address is `[project.urls]` in `pyproject.toml`, the table
of slugs is `_toc.yml`. This module reads both and imports neither Sphinx nor quire.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[2]
BRANCH = "main"

# Whatever an executed cell can read. A change in any of them makes the cached outputs stale.
EXECUTION_INPUTS = (
    "src/quire/**/*.py",
    "src/quire/**/*.toml",
    "models/**/*.json",
    "models/**/*.safetensors",
    "models/*.gz",
    "measurements/*.json",
    "requirements.lock",
)


def repository_url(root: Path = ROOT) -> str:
    """The address of the repository, without a trailing slash."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf8"))["project"]
    return str(project["urls"]["Repository"]).rstrip("/")


def site_url(root: Path = ROOT) -> str:
    """The address where GitHub Pages publishes the site, with a trailing slash."""
    owner, name = urlsplit(repository_url(root)).path.strip("/").split("/")
    return f"https://{owner}.github.io/{name}/"


def blob_url(path: str) -> str:
    """A file of the repository, as its host shows it."""
    return f"{repository_url()}/blob/{BRANCH}/{path}"


def tree_url(path: str) -> str:
    """A folder of the repository, as its host shows it."""
    return f"{repository_url()}/tree/{BRANCH}/{path}"


def colab_url(path: str) -> str:
    """A notebook of the repository, opened in Colab."""
    return f"https://colab.research.google.com/github{urlsplit(blob_url(path)).path}"


def pages(root: Path = ROOT) -> list[str]:
    """Every page of `_toc.yml`, in reading order, the root page first."""
    toc = yaml.safe_load((root / "_toc.yml").read_text("utf8"))
    return [toc["root"], *_files(toc.get("parts", []))]


def _files(entries: list[dict[str, object]]) -> Iterator[str]:
    for entry in entries:
        if "file" in entry:
            yield str(entry["file"])
        for key in ("chapters", "sections"):
            children = entry.get(key, [])
            assert isinstance(children, list), f"_toc.yml: `{key}` is not a list"
            yield from _files(children)


def slugs(root: Path = ROOT) -> list[str]:
    """The slugs of the chapters, in reading order.

    `chapters/memory/offload` is a second page of the slug `memory`, not a slug of its own.
    """
    parts = [page.split("/") for page in pages(root)]
    return [part[1] for part in parts if part[0] == "chapters" and len(part) == 2]


def execution_hash(root: Path = ROOT) -> str:
    """Twelve hexadecimal digits that change with everything an executed cell can read."""
    digest = hashlib.sha256()
    for pattern in EXECUTION_INPUTS:
        for path in sorted(root.glob(pattern)):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]
