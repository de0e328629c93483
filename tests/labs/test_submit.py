"""The file to hand in: what it holds, and what it says is missing or would be lost in grading."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reader_notebooks import Notebook, cell, source, write

import labkit
from labkit.author.build import build_notebook, notebook_text
from labkit.cli import main
from labkit.gpu.frontier import KERNEL_MARK, MARK, cell_of
from labkit.reader.lab import Lab, load_lab
from labkit.reader.notebook import read_submission
from labkit.reader.work import read_work


def test_submit_says_what_is_missing(
    solved: Notebook, folder: Path, call: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    cell(solved, "sampler")["source"] = "# task: sampler\ndef draw(:\n"
    cell(solved, "stream")["source"] = '# task: stream\nraise NotImplementedError("write stream")'
    solved["cells"].remove(cell(solved, "latency"))
    cell(solved, "explain")["source"] = "<!-- written: explain -->\n*Your answer here.*"
    write(folder, solved)
    path = call(labkit.submit)
    assert path.name == "autoregressive-decoding.submit.json"
    printed = capsys.readouterr().out.split("\n")
    assert "  - sampler: syntax error in line 2: invalid syntax" in printed
    assert "  - stream: not written yet (15 points)" in printed
    assert "  - latency: no cell says `# task: latency` (30 points)" in printed
    assert "  - explain: no written answer (5 points)" in printed
    assert (
        '  - engine: its public check has not run since the cell changed: labkit.check("engine")'
    ) in printed


def test_submit_is_content_when_all_is_there(
    solved: Notebook, folder: Path, lab: Lab, call: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write(folder, solved)
    call(labkit.save)
    path = folder / "autoregressive-decoding.save.json"
    content = json.loads(path.read_text("utf8"))
    content["progress"] = {task.name: [3, 3] for task in lab.tasks}
    path.write_text(json.dumps(content), "utf8")
    capsys.readouterr()
    submitted = call(labkit.submit)
    assert "nothing is missing: hand in this file" in capsys.readouterr().out
    assert read_submission(submitted, lab).problems == {}


def test_submit_knows_that_a_cell_has_changed_since_its_check(
    solved: Notebook, folder: Path, call: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, solved)
    saved = call(labkit.save)
    content = json.loads(saved.read_text("utf8"))
    content["progress"] = {"sampler": [4, 4], "stream": [3, 3]}
    saved.write_text(json.dumps(content), "utf8")
    changed = cell(solved, "sampler")
    changed["source"] = source(changed) + "\n# one line more"
    write(folder, solved)
    capsys.readouterr()
    call(labkit.submit)
    printed = capsys.readouterr().out
    assert "sampler: its public check has not run since the cell changed" in printed
    assert "stream: its" not in printed


FAULTS = {
    "a forbidden import": (
        lambda text: text.replace("\n", "\nimport torch\n", 1),
        "  - sampler: line 2 imports torch, which grading does not have: a task cell may import",
    ),
    "a helper of another cell": (
        lambda text: text + "\n\ndef more():\n    return helper(1)\n",
        "uses `helper`, which another cell defines: grading takes this cell alone, so define or",
    ),
    "a name of another task": (
        lambda text: text + "\nBOTH = penalise\n",
        "uses `penalise`, which another cell defines",
    ),
    "a function that is gone": (
        lambda text: text.replace("def draw", "def drew"),
        "  - sampler: it does not define `draw`",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_submit_says_what_grading_would_miss(
    solved: Notebook, folder: Path, call: Callable[..., Any], capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:  # fmt: skip
    change, words = FAULTS[name]
    changed = cell(solved, "sampler")
    changed["source"] = change(source(changed))
    helper = {"cell_type": "code", "metadata": {}, "source": "def helper(x):\n    return x\n"}
    solved["cells"].insert(3, helper)
    write(folder, solved)
    call(labkit.submit)
    assert words in capsys.readouterr().out


def test_a_cell_that_lost_its_line_is_handed_in_as_it_was_run_last_and_said(
    solved: Notebook, folder: Path, call: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the version that still had the line."""
    changed = cell(solved, "sampler")
    old = source(changed)
    changed["source"] = old.replace("# task: sampler\n", "") + "\nNEWER = 1"
    write(folder, solved)
    submitted = call(labkit.submit, ran=[old, changed["source"]])
    assert "NEWER" in read_work(submitted).cells["sampler"]
    assert "sampler: found by its metadata, its `# task:` line is gone" in capsys.readouterr().out


def test_a_line_edited_where_no_metadata_is_left_is_said(
    solved: Notebook, folder: Path, call: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    changed = cell(solved, "sampler")
    old = source(changed)
    changed |= {"source": old.replace("# task: sampler", "# my sampler"), "metadata": {}, "id": "x"}
    write(folder, solved)
    call(labkit.submit, ran=[old, changed["source"]])
    assert "sampler: `distribution` was defined again by a cell without" in capsys.readouterr().out


def test_the_frontier_cells_are_handed_in_and_come_back(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = load_lab("paged-kv-cache")
    notebook: Notebook = json.loads(notebook_text(build_notebook(lab, solution=True)))
    policy = "# Frontier: policy  # LRU, twice\nclass Policy(LeastRecent):\n    MINE = 1\n"
    (changed,) = [c for c in notebook["cells"] if source(c).startswith("# frontier: policy")]
    changed["source"] = policy
    mine = write(folder, notebook)
    assert main(["submit", str(mine)]) == 0
    assert "frontier: policy\n" in capsys.readouterr().out
    submitted = folder / "paged-kv-cache.submit.json"
    assert cell_of(submitted, MARK) == policy
    with pytest.raises(SystemExit, match="has no written cell with the line '# frontier: kernel'"):
        cell_of(submitted, KERNEL_MARK)
    assert "def cache_write" in cell_of(mine, KERNEL_MARK)
    assert cell_of(mine, MARK) == policy
    fresh = write(folder, json.loads(notebook_text(build_notebook(lab))), "fresh.ipynb")
    assert main(["restore", str(fresh), str(submitted)]) == 0
    assert cell_of(folder / "fresh-restored.ipynb", MARK) == policy


@pytest.mark.parametrize("slug", ["batching", "paged-kv-cache", "parallelism"])
def test_a_frontier_cell_of_the_starter_is_not_handed_in(
    folder: Path, call: Callable[..., Any], capsys: pytest.CaptureFixture[str], slug: str
) -> None:
    """Nor when it was run; one character more makes it the reader's."""
    of = load_lab(slug)
    untouched: Notebook = json.loads(notebook_text(build_notebook(of)))
    mine = write(folder, untouched)
    cells = [c for c in untouched["cells"] if c["cell_type"] == "code"]
    submitted = call(labkit.submit, of=of, notebook=mine, ran=[source(c) + "\n" for c in cells])
    assert "frontier: " not in capsys.readouterr().out
    assert json.loads(submitted.read_text("utf8"))["frontier"] == {}
    for name in of.frontier:
        (cell,) = [c for c in cells if source(c).startswith(f"# frontier: {name}\n")]
        cell["source"] = source(cell) + "."
        mine = write(folder, untouched)
        call(labkit.submit, of=of, notebook=mine)
        assert name in capsys.readouterr().out.partition("frontier: ")[2].split("\n")[0].split(", ")


POLICY = "# frontier: policy\nclass Policy(LeastRecent):\n    def victim(self, blocks):\n        "
TRIED = {
    "another name": (
        "# frontier: policy\nclass Polisy:\n    pass\n",
        "it does not define `Policy`",
    ),
    "a stranger": (POLICY + "return -1\n", "ValueError: victim returned -1, which is not one of"),
    "a fault": (POLICY + "return 1 / 0\n", "ZeroDivisionError: division by zero (line 4 of the"),
    "an exit": (POLICY + "raise SystemExit\n", "SystemExit"),
    "what grading has not": (POLICY + "import torch\n", "ModuleNotFoundError"),
    "no Python": ("# frontier: policy\nclass Policy(:\n", "syntax error in line 2"),
    "a helper of another cell": (POLICY + "return chosen(blocks)\n", "NameError"),
}


@pytest.mark.parametrize("name", TRIED)
def test_submit_tries_a_policy_and_says_what_its_judge_would(
    folder: Path, call: Callable[..., Any], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """The cell runs alone, whatever the notebook remembers of an older one."""
    of = load_lab("paged-kv-cache")
    notebook: Notebook = json.loads(notebook_text(build_notebook(of)))
    text, words = TRIED[name]
    (changed,) = [c for c in notebook["cells"] if source(c).startswith("# frontier: policy")]
    older, changed["source"] = source(changed), text
    helper = "def chosen(blocks):\n    return blocks[0]\n"
    submitted = call(labkit.submit, of=of, notebook=write(folder, notebook), ran=[older, helper])
    assert f"  - frontier policy: {words}" not in capsys.readouterr().out  # the one that ran last
    call(labkit.submit, of=of, notebook=write(folder, notebook), ran=[older, helper, text])
    assert capsys.readouterr().out.count(f"  - frontier policy: {words}") == 1
    assert read_work(submitted).frontier == {"policy": text}


def test_submit_has_no_doubt_about_a_policy_that_plays(
    folder: Path, call: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    of = load_lab("paged-kv-cache")
    notebook: Notebook = json.loads(notebook_text(build_notebook(of)))
    (changed,) = [c for c in notebook["cells"] if source(c).startswith("# frontier: policy")]
    changed["source"] = POLICY + "print(len(blocks))\n        return blocks[0]\n"
    call(labkit.submit, of=of, notebook=write(folder, notebook))
    printed = capsys.readouterr().out
    assert "frontier: policy\n" in printed
    assert "frontier policy" not in printed
    (given,) = [c for c in notebook["cells"] if "def make_trace" in source(c)]
    notebook["cells"].remove(given)
    call(labkit.submit, of=of, notebook=write(folder, notebook))
    words = "  - frontier policy: not tried, for no cell defines `make_trace`\n"
    assert words in capsys.readouterr().out


def test_submit_names_a_frontier_cell_that_it_does_not_hand_in(
    folder: Path, call: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its line a cell is lost; of two that were not both written one is missing."""
    of = load_lab("paged-kv-cache")
    notebook: Notebook = json.loads(notebook_text(build_notebook(of)))

    def said() -> list[str]:
        call(labkit.submit, of=of, notebook=write(folder, notebook))
        lines = capsys.readouterr().out.splitlines()
        return [line.strip(" -") for line in lines if line.startswith("  - frontier")]

    assert said() == []
    (policy,) = [c for c in notebook["cells"] if source(c).startswith("# frontier: policy")]
    policy["source"] = POLICY + "return blocks[0]\n"
    assert said() == ["frontier kernel: as in the starter"]
    policy["source"] = policy["source"].replace("# frontier: policy", "")
    assert said() == ["frontier policy: no cell says `# frontier: policy`"]


def test_a_frontier_cell_handed_in_is_known_to_grading(
    folder: Path, call: Callable[..., Any]
) -> None:
    of = load_lab("paged-kv-cache")
    notebook: Notebook = json.loads(notebook_text(build_notebook(of)))
    mine = write(folder, notebook)
    assert read_submission(mine, of).frontier == []
    assert read_submission(call(labkit.submit, of=of, notebook=mine), of).frontier == []
    (changed,) = [c for c in notebook["cells"] if source(c).startswith("# frontier: policy")]
    changed["source"] = POLICY + "return blocks[0]\n"
    notebook["cells"].append({"cell_type": "code", "source": "# frontier: other\n1"})
    mine = write(folder, notebook)
    assert read_submission(mine, of).frontier == ["policy"]
    assert read_submission(call(labkit.submit, of=of, notebook=mine), of).frontier == ["policy"]


def test_submit_hands_in_no_older_version_behind_a_syntax_error(
    solved: Notebook, folder: Path, call: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, solved)
    good, broken = source(cell(solved, "sampler")), "# task: sampler\ndef draw(:\n"
    submitted = call(labkit.submit, ran=[good, broken])
    assert read_work(submitted).cells["sampler"] == broken
    assert "  - sampler: syntax error in line 2: invalid syntax" in capsys.readouterr().out
