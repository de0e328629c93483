"""What the lab tests share: the lab, its reference, and a notebook to spoil."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shared_children import Children, shared_children

from labkit.author.build import build_notebook, notebook_text
from labkit.author.new import scaffold
from labkit.grading.grade import Grader
from labkit.grading.report import Report
from labkit.reader.lab import Lab, load_lab
from labkit.reader.notebook import Submission, read_submission

SLUG = "autoregressive-decoding"


@pytest.fixture(scope="session")
def lab() -> Lab:
    return load_lab(SLUG)


@pytest.fixture
def solved(lab: Lab) -> dict[str, Any]:
    """The solved notebook's JSON, fresh for every test."""
    notebook: dict[str, Any] = json.loads(notebook_text(build_notebook(lab, solution=True)))
    return notebook


@pytest.fixture
def starter(lab: Lab) -> dict[str, Any]:
    """The starter's JSON, fresh for every test."""
    made: dict[str, Any] = json.loads(notebook_text(build_notebook(lab)))
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with no notebook server around."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    return tmp_path


@pytest.fixture
def call(lab: Lab) -> Callable[..., Any]:
    """Call a function of labkit as a cell of a notebook `of` a lab does, after the cells `ran`."""

    def run(
        function: Callable[..., Any], *args: Any, ran: list[str] | None = None, of: Lab = lab,
        **k: Any,
    ) -> Any:  # fmt: skip
        declared = f"{of.slug}/{of.default_variant}"
        namespace = {"LAB": declared, "In": ["", *(ran or [])], "f": function}
        exec("def here(*a, **k): return f(*a, **k)", namespace)
        return namespace["here"](*args, **k)  # type: ignore[operator]

    return run


@pytest.fixture
def submit(lab: Lab, tmp_path: Path) -> Callable[[Any], Submission]:
    """Write a notebook to disk and read it as a submission."""

    def read(content: Any) -> Submission:
        path = tmp_path / "submission.ipynb"
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf8")
        return read_submission(path, lab)

    return read


@pytest.fixture(scope="session")
def grade_cell(lab: Lab) -> Callable[..., Report]:
    """Grade one task with the source given, in the sandbox."""
    grader = Grader(lab)

    def grade(task: str, source: str) -> Report:
        return grader.grade(Submission(cells={task: source}), [lab.task(task)])

    return grade


@pytest.fixture(scope="class")
def children() -> Iterator[Children]:
    """Children that the mutants of one lab share."""
    with shared_children() as shared:
        yield shared


@pytest.fixture(scope="session")
def small_lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The lab that `labkit new` writes: two tasks that run in milliseconds."""
    return load_lab(scaffold("step-filling", tmp_path_factory.mktemp("labs")))
