"""The metadata by which nbgrader knows the cells, held to what its version 3 demands.

nbgrader 0.9.6 itself was run on these notebooks: `generate_assignment` on the source,
`autograde` on the solved notebook (95 of 100, the written answer by hand) and on the starter
(0), `export`; on the lab on quantization so again since code cells carry a tag. The rules below
are those that it checks on the way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nbclient import NotebookClient

from labkit.author.build import build_notebook, nbgrader_source, notebook_text
from labkit.course.gradebook import NBGRADER
from labkit.reader.cells import frontier_of
from labkit.reader.lab import Lab, labs_folder, load_lab
from labkit.reader.work import untouched

FORMS: list[Callable[[Lab], Any]] = [
    build_notebook,
    lambda lab: build_notebook(lab, solution=True),
    nbgrader_source,
]


@pytest.fixture(params=FORMS, ids=["starter", "solution", "source"])
def notebook(request: pytest.FixtureRequest, lab: Lab) -> Any:
    return request.param(lab)


def test_every_cell_has_whole_metadata_of_version_3(notebook: Any) -> None:
    for cell in notebook.cells:
        metadata = cell.metadata["nbgrader"]
        assert metadata["schema_version"] == 3
        assert {"grade_id", "grade", "solution", "locked", "task"} <= set(metadata)
        assert re.fullmatch(r"[a-zA-Z0-9_\-]+", metadata["grade_id"])
        assert ("points" in metadata) == metadata["grade"]
        assert all(type(metadata[key]) is bool for key in ("grade", "solution", "locked", "task"))
        if metadata["grade"]:
            assert metadata["points"] >= 0
        if metadata["solution"]:
            assert not metadata["locked"]
        if cell.cell_type == "markdown" and metadata["grade"]:
            assert metadata["solution"]  # else nbgrader finds nothing to mark


@pytest.mark.parametrize(
    "slug", [path.parent.name for path in sorted(labs_folder().glob("*/lab.toml"))]
)
def test_what_a_reader_writes_is_not_locked(slug: str) -> None:
    """nbgrader overwrites locked cells with the release's."""
    lab = load_lab(slug)
    cells = build_notebook(lab).cells
    frontier = [cell for cell in cells if cell.cell_type == "code" and frontier_of(cell.source)]
    assert len(frontier) == len(lab.frontier)
    tasks = [cell for cell in cells if "labkit" in cell.metadata]
    assert not any(cell.metadata["nbgrader"]["locked"] for cell in [*frontier, *tasks])


def test_ids_are_unique_and_points_are_the_labs(notebook: Any, lab: Lab) -> None:
    ids = [cell.metadata["nbgrader"]["grade_id"] for cell in notebook.cells]
    assert len(ids) == len(set(ids))
    points = [cell.metadata["nbgrader"].get("points", 0) for cell in notebook.cells]
    assert sum(points) == lab.automatic_points + lab.written_points


def test_run_all_goes_on_behind_every_code_cell_that_fails(notebook: Any) -> None:
    """Notebooks do not stop at a cell with this tag; a failing check raises, so the cell grades."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[-1].source == "labkit.submit()"
    assert "tags" not in code[-1].metadata
    assert all(cell.metadata["tags"] == ["raises-exception"] for cell in code[:-1])
    assert not any("tags" in cell.metadata for cell in notebook.cells if cell not in code)


def test_run_all_hands_in_what_an_unfinished_notebook_holds(lab: Lab, folder: Path) -> None:
    """The starter in a kernel: no task is written, every check fails, and the file is there."""
    starter = build_notebook(lab)
    (folder / f"{lab.slug}.ipynb").write_text(notebook_text(starter), "utf8")
    NotebookClient(starter, timeout=120, kernel_name="python3").execute(cwd=str(folder))
    code = [cell for cell in starter.cells if cell.cell_type == "code"]
    failed = [cell for cell in code if any(out.output_type == "error" for out in cell.outputs)]
    checks = [cell for cell in code if cell.source.startswith("labkit.check(")]
    assert len(checks) == len(lab.tasks)
    assert all(cell in failed for cell in checks)
    assert code[-1] not in failed
    assert (folder / f"{lab.slug}.submit.json").is_file()


def test_each_check_follows_its_task(notebook: Any, lab: Lab) -> None:
    ids = [cell.metadata["nbgrader"]["grade_id"] for cell in notebook.cells]
    for task in lab.tasks:
        assert ids.index(f"check-{task.name}") == ids.index(f"task-{task.name}") + 1


def test_the_sources_markers_are_closed_and_in_solution_cells_only(lab: Lab) -> None:
    for cell in nbgrader_source(lab).cells:
        lines = [line.strip() for line in cell.source.split("\n")]
        marks = [line for line in lines if line.startswith(("### BEGIN", "### END"))]
        if cell.metadata["nbgrader"]["solution"]:
            pairs = len(marks) // 2
            assert pairs >= 1
            assert marks == ["### BEGIN SOLUTION", "### END SOLUTION"] * pairs
        else:
            assert marks == []


def test_what_nbgrader_puts_in_a_solutions_place_counts_as_unwritten() -> None:
    stub = "# task: sampler\ndef draw(p, u):\n    # YOUR CODE HERE\n    raise NotImplementedError()"
    assert untouched("sampler", stub)
    assert not untouched("sampler", "# task: sampler\ndef draw(p, u):\n    return 1")


def test_the_class_table_has_the_columns_of_nbgraders_export() -> None:
    assert ",".join(NBGRADER) == (
        "assignment,duedate,timestamp,student_id,last_name,first_name,email,raw_score,"
        "late_submission_penalty,score,max_score"
    )
