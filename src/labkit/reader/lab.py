"""`Lab`: what `lab.toml` says about a lab, and where its files lie.

A lab is a folder with `lab.toml`, `master.py`, `checks.py`, `hidden/`, `mutants/`,
`second.py`, `rubric.md` and, where its tasks may call some help, `given.py`. In a clone these are
`labs/<slug>/`; a wheel carries what a reader needs (`READERS`) under `labkit/_data/<slug>/`, and a
course's own lab brings it beside its notebook.
"""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

# What `labkit.check` needs of a lab's folder.
READERS = ("lab.toml", "checks.py", "given.py")


class LabError(ValueError):
    """A lab's files contradict one another, or there is no such lab."""


@dataclass(frozen=True)
class HiddenTest:
    """One hidden test: its points and the sentence of the spec that it judges."""

    name: str
    points: float
    spec: str
    whole: bool = False  # run on the reader's own cells for every task, not the reference's


@dataclass(frozen=True)
class Task:
    """One task: a cell that the reader writes.

    `needs` names the tasks whose code it calls; grading lets the reference answer for them.
    `defines` names the functions and classes that its cell has to define, as the starter shows.
    """

    name: str
    title: str
    tier: str
    minutes: int
    points: float
    needs: tuple[str, ...]
    tests: tuple[HiddenTest, ...]
    defines: tuple[str, ...] = ()

    @property
    def identifier(self) -> str:
        """The name as Python writes it."""
        return self.name.replace("-", "_")


@dataclass(frozen=True)
class Written:
    """A written answer, marked by hand with `rubric.md`."""

    name: str
    title: str
    tier: str
    points: float


@dataclass(frozen=True)
class Lab:
    """A lab as its folder describes it."""

    folder: Path
    slug: str
    title: str
    packages: tuple[str, ...]
    tasks: tuple[Task, ...]
    written: tuple[Written, ...]
    variants: dict[str, str]  # name to one line of what is special
    default_variant: str
    withheld: tuple[str, ...] = ()  # modules of quire that the lab asks the reader to write
    interpreted: bool = False  # its tasks are Triton kernels, run by `labkit.reader.kernel_child`
    # Name of a frontier cell to `digest_of` what the starter puts there: the rest is the reader's.
    frontier: dict[str, str] = field(default_factory=dict)

    @property
    def given(self) -> str:
        """The help that task cells may call, `given.py`; empty where the lab gives none."""
        path = self.folder / "given.py"
        return path.read_text("utf8") if path.is_file() else ""

    @property
    def automatic_points(self) -> float:
        """Points that `labkit grade` can give."""
        return sum(task.points for task in self.tasks)

    @property
    def written_points(self) -> float:
        """Points that a person gives with the rubric."""
        return sum(question.points for question in self.written)

    def task(self, name: str) -> Task:
        """Return a task by name.

        Raises:
            LabError: no such task; the message lists those there are.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        known = ", ".join(task.name for task in self.tasks)
        raise LabError(f"no task {name!r} in the lab {self.slug}; there are: {known}")

    def variant(self, name: str | None) -> str:
        """Return `name`, or the public default for None.

        Raises:
            LabError: no such variant.
        """
        chosen = name or self.default_variant
        if chosen not in self.variants:
            known = ", ".join(self.variants)
            raise LabError(f"no variant {chosen!r} of the lab {self.slug}; there are: {known}")
        return chosen


def labs_folder() -> Path:
    """Return the folder of all labs: the repository's, or the one in the wheel."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "_data"
    return packaged if packaged.is_dir() else package.parents[1] / "labs"


def load_lab(name: str | Path, *beside: Path) -> Lab:
    """Read a lab, given its slug or its folder.

    A slug that labkit does not bring is looked for in the working folder and in `beside`.

    Raises:
        LabError: no such lab, or `lab.toml` contradicts itself.
    """
    folder = _folder_of(name, beside)
    raw = tomllib.loads((folder / "lab.toml").read_text("utf8"))
    tasks = tuple(_task(entry) for entry in raw["tasks"])
    written = tuple(Written(**entry) for entry in raw.get("written", []))
    lab = Lab(
        folder.resolve(),
        raw["slug"],
        raw["title"],
        tuple(raw.get("packages", [])),
        tasks,
        written,
        {key: str(text) for key, text in raw["variants"].items()},
        raw["default_variant"],
        tuple(raw.get("withheld", [])),
        bool(raw.get("interpreted", False)),
        dict(raw.get("frontier", {})),
    )
    lab.variant(None)
    for task in lab.tasks:
        for needed in task.needs:
            lab.task(needed)
        total = sum(test.points for test in task.tests)
        if total != task.points:
            raise LabError(f"the tests of {task.name} give {total:g} of its {task.points:g} points")
    return lab


def _folder_of(name: str | Path, beside: Sequence[Path]) -> Path:
    for folder in (Path(name), labs_folder() / str(name)):
        if (folder / "lab.toml").is_file():
            return folder
    for folder in (Path.cwd(), *beside):
        file = folder / "lab.toml"
        if file.is_file() and tomllib.loads(file.read_text("utf8"))["slug"] == str(name):
            return folder
    known = ", ".join(sorted(p.parent.name for p in labs_folder().glob("*/lab.toml")))
    raise LabError(
        f"no lab {str(name)!r}: give a folder with a lab.toml or one of: {known}; a course's own "
        "lab needs the lab.toml and checks.py that came with its notebook (and given.py, if there "
        "was one), beside it"
    )


def _task(entry: dict[str, Any]) -> Task:
    tests = tuple(HiddenTest(name, **fields) for name, fields in entry["tests"].items())
    return Task(
        name=entry["name"],
        title=entry["title"],
        tier=entry["tier"],
        minutes=entry["minutes"],
        points=entry["points"],
        needs=tuple(entry.get("needs", [])),
        tests=tests,
        defines=tuple(entry.get("defines", [])),
    )


def import_folder(folder: Path, package: str, module: str) -> ModuleType:
    """Import `folder/module.py` as `package.module`; its files may import one another.

    The package's name keeps the files of two labs apart.
    """
    if package not in sys.modules:
        made = ModuleType(package)
        made.__path__ = [str(folder)]
        sys.modules[package] = made
    return importlib.import_module(f"{package}.{module}")


def import_checks(lab: Lab) -> ModuleType:
    """Import a lab's public checks."""
    return import_folder(lab.folder, f"labkit_checks_{lab.slug.replace('-', '_')}", "checks")


def import_hidden(lab: Lab, task: Task) -> ModuleType:
    """Import the hidden tests of a task."""
    package = f"labkit_hidden_{lab.slug.replace('-', '_')}"
    return import_folder(lab.folder / "hidden", package, f"test_{task.identifier}")
