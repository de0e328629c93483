"""`labkit.check` in a notebook: the task's cell runs alone, and what grading would miss is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import labkit
from labkit.grading.cells import reference_cells
from labkit.reader.alone import faults
from labkit.reader.cells import task_of
from labkit.reader.lab import Lab, load_lab
from labkit.reader.notebook import read_submission
from labkit.reader.work import read_work


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the check keeps progress."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cells(lab: Lab) -> dict[str, str]:
    """The reference's cells."""
    return reference_cells(lab)


def _check(task: str, ran: list[str], namespace: dict[str, Any] | None = None) -> str:
    """Check after the cells `ran`; return the words of a failure, or "" where all is well."""
    try:
        labkit.check(
            task, {"LAB": "autoregressive-decoding", "In": ["", *ran], **(namespace or {})}
        )
    except labkit.CheckFailed as failed:
        return str(failed)
    return ""


def test_a_cell_that_stands_alone_passes_whatever_the_notebook_holds(cells: dict[str, str]) -> None:
    assert _check("sampler", [cells["sampler"]], {"distribution": None, "draw": None}) == ""


def test_a_forbidden_import_is_said_with_its_line(cells: dict[str, str]) -> None:
    source = cells["sampler"].replace("\n", "\nfrom torch.nn import functional\n", 1)
    words = _check("sampler", [source])
    assert "✗ line 2 imports torch.nn, which grading does not have: a task cell may import" in words
    assert "the standard library, numpy" in words
    assert "✗ the cell, run alone: ModuleNotFoundError: No module named 'torch.nn'" in words


def test_an_import_inside_a_function_is_said_too(cells: dict[str, str]) -> None:
    source = cells["sampler"].replace(
        "    possible = ", "    import torch\n\n    possible = torch and "
    )
    words = _check("sampler", [source])
    assert "imports torch, which grading does not have" in words
    assert "ModuleNotFoundError: No module named 'torch' in grading" in words


def test_an_import_that_may_fail_is_no_fault(cells: dict[str, str]) -> None:
    source = (
        f"{cells['sampler']}\n\ntry:\n    import torch\nexcept ImportError:\n    torch = None\n"
    )
    assert _check("sampler", [source]) == ""


HELPER = "def largest(order, k):\n    return order[:k]\n"


@pytest.mark.parametrize("another", [HELPER, "# task: stream\n" + HELPER])
def test_a_helper_of_another_cell_is_named(cells: dict[str, str], another: str) -> None:
    source = cells["sampler"].replace(
        'weights[: params["top_k"]]', 'largest(weights, params["top_k"])'
    )
    assert source != cells["sampler"]
    line = next(i for i, text in enumerate(source.split("\n"), 1) if "largest" in text)
    words = _check("sampler", [another, source], {"largest": lambda order, k: order[:k]})
    assert f"✗ line {line} uses `largest`, which another cell defines: grading takes this" in words
    assert "NameError: name 'largest' is not defined" in words
    assert _check("sampler", [another, f"{source}\n\n{HELPER}"]) == ""


def test_help_that_was_changed_is_said_where_it_is_used(lab: Lab, cells: dict[str, str]) -> None:
    changed = lab.given.replace("return int.from_bytes", "return 1 - int.from_bytes")
    earlier = [cells["sampler"], cells["stream"]]
    words = _check("engine", [changed, *earlier, cells["engine"]])
    assert "uses `noise`, the lab's help, which another cell defines anew: grading takes" in words
    assert _check("engine", [lab.given, *earlier, cells["engine"]]) == ""
    assert _check("sampler", [changed, cells["sampler"]]) == ""


def test_names_that_only_a_notebook_has_are_said(cells: dict[str, str]) -> None:
    words = _check("sampler", [cells["sampler"] + "\ndisplay(1)\n"])
    assert "uses `display`, which another cell defines" in words
    assert "NameError: name 'display' is not defined" in words


def test_a_function_that_the_cell_lost_is_missed_at_once(cells: dict[str, str]) -> None:
    """Its older self in the notebook's memory does not count."""
    source = cells["sampler"].replace("def draw(", "def drew(")
    words = _check("sampler", [cells["sampler"], source], {"draw": lambda p, u: 1})
    assert "✗ it does not define `draw`" in words


def test_a_syntax_error_hides_behind_no_older_version(cells: dict[str, str]) -> None:
    words = _check("sampler", [cells["sampler"], "# task: sampler\ndef distribution(:\n"])
    assert words.startswith("sampler: 0 of ")
    assert "✗ syntax error in line 2: invalid syntax" in words


def test_a_cell_whose_line_was_edited_is_said(cells: dict[str, str]) -> None:
    edited = cells["sampler"].replace("# task: sampler", "# my sampler")
    words = _check("sampler", [edited])
    assert "no cell with the line `# task: sampler` has been run: grading finds it by that" in words
    words = _check("sampler", [cells["sampler"], edited])
    assert "`distribution` was defined again by a cell without the line `# task: sampler`" in words
    slip = cells["sampler"].replace("# task: sampler", "# task: smapler")
    assert "a cell says `# task: smapler`, which is no task here" in _check("sampler", [slip])
    assert _check("sampler", [edited, cells["sampler"]]) == ""


def test_another_cell_may_define_what_the_starter_does_not(cells: dict[str, str]) -> None:
    """Trying out things beside the task is nobody's fault."""
    assert _check("sampler", [f"{cells['sampler']}\n{HELPER}", HELPER, "banned = params = 1"]) == ""


def test_an_earlier_task_whose_fault_shows_is_named(cells: dict[str, str]) -> None:
    wrong = (
        cells["sampler"]
        .replace('side="right"', 'side="left"')
        .replace('if params["temperature"] == 0', "if False")
    )
    words = _check("engine", [cells["stream"], wrong, cells["engine"]])
    assert "→ sampler, whose code runs here, passes " in words
    assert "stream, whose code" not in words
    words = _check("engine", [cells["sampler"], cells["engine"]])
    assert "→ stream, whose code runs here, has no cell that was run" in words
    broken = "# task: stream\ndef penalise(:\n"
    words = _check("engine", [cells["sampler"], broken, cells["engine"]])
    assert "→ stream, whose code runs here, passes 0 of " in words
    assert "(syntax error in line 2" in words
    starter = '# task: stream\ndef penalise(*a):\n    raise NotImplementedError("write stream")\n'
    words = _check("engine", [cells["sampler"], starter, cells["engine"]])
    assert "→ stream, whose code runs here, is not written yet" in words


def test_an_error_names_the_cell_it_comes_from(cells: dict[str, str]) -> None:
    wrong = cells["sampler"].replace(
        "    possible = ", "    probabilities.nothing\n    possible = "
    )
    words = _check("engine", [cells["stream"], wrong, cells["engine"]])
    line = next(i for i, text in enumerate(wrong.split("\n"), 1) if ".nothing" in text)
    assert f"has no attribute 'nothing' (line {line} of the cell sampler)" in words


def test_an_endless_cell_is_stopped(cells: dict[str, str]) -> None:
    words = _check("sampler", [cells["sampler"] + "\nwhile True:\n    pass\n"])
    assert "✗ the cell, run alone: no answer within 5 s: is there an endless loop?" in words


def test_a_cell_that_ends_the_kernel_is_told(cells: dict[str, str]) -> None:
    words = _check("sampler", [cells["sampler"] + "\nraise SystemExit(3)\n"])
    assert "the cell, run alone: SystemExit: 3 (line " in words
    assert "of the cell sampler)" in words


def test_what_would_fail_in_grading_is_no_progress(cells: dict[str, str], folder: Path) -> None:
    _check("sampler", [cells["sampler"].replace("\n", "\nimport torch\n", 1)])
    progress = read_work(folder / "autoregressive-decoding.save.json").progress
    assert progress["sampler"][0] == 0


def test_a_call_is_shown_whole() -> None:
    """Every argument and every call, so that a reader can make them."""
    wrong = "# task: continuous\nclass Scheduler:\n" + "".join(
        f"    def {name}(self, *a):\n        return {value}\n"
        for name, value in (("__init__", None), ("add", None), ("schedule", []))
    )
    with pytest.raises(labkit.CheckFailed) as failed:
        labkit.check("continuous", {"LAB": "batching", "In": [wrong]})
    words = str(failed.value)
    assert "…" not in words
    assert "called Scheduler(2, 9, 9); .add('a', 'ada', 0, 4, 2, 0); .add('b'" in words


IN_A_NOTEBOOK = """
import sys
from traitlets.config import Config
from IPython.core.interactiveshell import InteractiveShell

config = Config()
config.HistoryManager.enabled = False
shell = InteractiveShell(config=config)
task = "# task: sampler\\ndef distribution(*a): pass\\ndef draw(p, u): return 0\\n"
for cell in (
    "import labkit\\nLAB = 'autoregressive-decoding'", "%%time\\n" + task,
    "labkit.check('sampler')", "# task: sampler\\ndef draw(:\\n", "labkit.check('sampler')",
):
    shell.run_cell(cell, store_history=True)
"""


def test_it_knows_what_a_real_session_ran(tmp_path: Path) -> None:
    """Magics as they were typed, and a cell that did not compile."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_NOTEBOOK], capture_output=True, text=True, cwd=tmp_path,
        timeout=60, check=True,
    )  # fmt: skip
    first, _, second = done.stdout.partition("SyntaxError")
    assert "called draw([0. , 0.25, 0. , 0.75], 0.0)" in first
    assert "get_ipython" not in first
    assert "✗ syntax error in line 2" in second
    assert (
        read_work(tmp_path / "autoregressive-decoding.save.json").cells["sampler"].startswith("#")
    )


@pytest.mark.parametrize(
    ("line", "task"),
    [
        ("# task: sampler", "sampler"),
        ("# Task: sampler", "sampler"),
        ("# task : sampler", "sampler"),
        ("#task:sampler", "sampler"),
        ("  ## TASK:  Sampler  # my second try", "sampler"),
        ("# task: decode-step (done)", "decode-step"),
        ("# task: sampler - mine", "sampler"),
        ("# task: sampler\r", "sampler"),
        ("# task: homework", "homework"),
        ("# task: sampler calls this helper", None),
        ("# this task: sampler", None),
        ("task: sampler", None),
    ],
)
def test_a_task_line_may_be_written_in_several_ways(lab: Lab, line: str, task: str | None) -> None:
    assert task_of(f"import math\n{line}\ndef draw(): pass\n", lab) == task


@pytest.mark.parametrize("line", ["# Task: sampler", "# task :  sampler  # my second try"])
def test_reader_and_grader_find_the_same_cell(
    lab: Lab, cells: dict[str, str], line: str, folder: Path
) -> None:
    source = cells["sampler"].replace("# task: sampler", line)
    assert _check("sampler", [source]) == ""
    path = folder / "mine.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": source}]}), "utf8")
    submission = read_submission(path, lab)
    assert submission.cells == {"sampler": source}
    assert not [note for note in submission.notes if "sampler" in note]


def test_a_task_line_of_any_length_is_read_in_no_time(lab: Lab) -> None:
    """Each of these takes minutes where the expression goes back over what it has read."""
    for line in ("#" * 100_000, "# " + " " * 100_000, "# task: sampler" + " " * 100_000 + "x"):
        assert task_of("\n" * 100_000 + line, lab) is None


@pytest.mark.parametrize(
    "slug",
    [
        "autoregressive-decoding",
        "paged-kv-cache",
        "batching",
        "parallelism",
        "quantization",
        "speculative-decoding",
    ],
)
@pytest.mark.parametrize("file", ["master.py", "second.py"])
def test_no_solution_has_a_fault(slug: str, file: str) -> None:
    lab = load_lab(slug)
    for variant in lab.variants:
        cells = reference_cells(lab, variant, file)
        for task in lab.tasks:
            assert (
                faults(lab, task, cells, ["import labkit, quire\nnp = helper = params = 1"]) == []
            )
