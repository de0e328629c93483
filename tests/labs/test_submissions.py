"""Notebooks as they come in: damaged, incomplete, or marked up by other tools."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labkit.cli import main
from labkit.grading.grade import Grader
from labkit.reader.lab import Lab
from labkit.reader.notebook import Submission, read_submission

Notebook = dict[str, Any]
Submit = Callable[[Any], Submission]
TASKS = ("decode-step", "sampler", "stream", "latency", "engine")


def _cell(notebook: Notebook, task: str) -> dict[str, Any]:
    (found,) = [c for c in notebook["cells"] if f"# task: {task}\n" in _text(c)]
    return found


def _text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_an_untouched_copy_gives_every_cell(solved: Notebook, submit: Submit) -> None:
    submission = submit(solved)
    assert tuple(submission.cells) == TASKS
    assert submission.problems == {}
    assert submission.notes == []
    assert submission.variant == "window"
    assert submission.written["explain"].startswith("With 1 request")


def test_lost_metadata_loses_nothing(solved: Notebook, submit: Submit) -> None:
    whole = submit(solved)
    solved["metadata"] = {}
    for cell in solved["cells"]:
        cell["metadata"] = {}
        del cell["id"]
    stripped = submit(solved)
    assert stripped.cells == whole.cells
    assert stripped.written == whole.written
    assert stripped.problems == {}


@pytest.mark.parametrize("lost", ["nothing", "labkit", "all metadata"])
def test_a_lost_task_line_is_found_by_metadata_or_id(
    solved: Notebook, submit: Submit, lost: str
) -> None:
    cell = _cell(solved, "sampler")
    cell["source"] = _text(cell).replace("# task: sampler\n", "")
    if lost == "labkit":
        del cell["metadata"]["labkit"]
    elif lost == "all metadata":
        cell["metadata"] = {}
    submission = submit(solved)
    assert "def draw" in submission.cells["sampler"]
    assert submission.notes == ["sampler: found by its metadata, its `# task:` line is gone"]


def test_a_deleted_cell_costs_its_task_and_no_other(
    solved: Notebook, submit: Submit, lab: Lab
) -> None:
    solved["cells"].remove(_cell(solved, "sampler"))
    submission = submit(solved)
    tasks = [lab.task(name) for name in ("decode-step", "sampler", "stream", "engine")]
    report = Grader(lab).grade(submission, tasks)
    assert report.task_score("sampler") == 0
    assert report.reasons("sampler") == ["no cell with the line `# task: sampler` in the notebook"]
    assert report.task_score("decode-step") == 20
    assert report.task_score("stream") == 15
    # The reference stands in for the sampler; only the run on the reader's own cells is lost.
    assert report.task_score("engine") == 7
    assert report.reasons("engine")[0].startswith("your sampler is needed here: no cell")


def test_a_syntax_error_costs_its_task_and_names_the_line(solved: Notebook, submit: Submit) -> None:
    cell = _cell(solved, "stream")
    cell["source"] = "# task: stream\ndef penalise(:\n"
    submission = submit(solved)
    assert submission.problems == {"stream": "syntax error in line 2: invalid syntax"}
    assert set(submission.cells) == set(TASKS) - {"stream"}


def test_magics_are_left_out_and_copies_resolved(solved: Notebook, submit: Submit) -> None:
    cell = _cell(solved, "engine")
    copy = json.loads(json.dumps(cell))
    copy["source"] = "%%time\n" + _text(cell) + "\n!ls\nMARK = 1"
    solved["cells"].append(copy)
    submission = submit(solved)
    assert "MARK = 1" in submission.cells["engine"]
    assert any("several cells say `# task: engine`" in note for note in submission.notes)
    assert any("2 line(s) starting with % or !" in note for note in submission.notes)
    assert submission.problems == {}


def test_an_unknown_task_line_is_mentioned(solved: Notebook, submit: Submit) -> None:
    cell = _cell(solved, "sampler")
    cell["source"] = _text(cell).replace("# task: sampler", "# task: homework")
    cell["metadata"] = {}
    del cell["id"]
    submission = submit(solved)
    assert "sampler" in submission.problems
    assert "a cell says `# task: homework`, which is no task here" in submission.notes


def test_a_slip_in_the_task_line_is_forgiven_and_mentioned(
    solved: Notebook, submit: Submit
) -> None:
    cell = _cell(solved, "sampler")
    cell["source"] = _text(cell).replace("# task: sampler", "# task: smapler")
    cell["metadata"] = {}
    del cell["id"]
    submission = submit(solved)
    assert "def draw" in submission.cells["sampler"]
    assert submission.notes == [
        "a cell says `# task: smapler`, which is no task here: taken for sampler"
    ]


@pytest.mark.parametrize("more", ["REST = (7\n    % 4)", "TEXT = '''\n%% of'''", "TEXT = '\\d'"])
def test_a_percent_inside_a_statement_is_no_magic(
    solved: Notebook, submit: Submit, more: str
) -> None:
    cell = _cell(solved, "engine")
    cell["source"] = f"{_text(cell)}\n{more}"
    submission = submit(solved)
    assert submission.cells["engine"] == cell["source"]
    assert submission.notes == []


def test_a_truncated_notebook_gives_the_cells_before_the_break(
    solved: Notebook, submit: Submit
) -> None:
    text = json.dumps(solved)
    submission = submit(text[: text.index("# task: latency")])
    assert set(submission.cells) == {"decode-step", "sampler", "stream"}
    assert set(submission.problems) == {"latency", "engine"}
    assert "the file is damaged: its first 16 cells could be read" in submission.notes[0]


def test_half_of_a_surrogate_pair_can_be_written_to_a_file(
    solved: Notebook, submit: Submit
) -> None:
    cell = _cell(solved, "engine")
    cell["source"] = _text(cell) + "\n# \ud800"
    submission = submit(solved)
    assert submission.cells["engine"].endswith("# ?")
    submission.cells["engine"].encode("utf8")


def test_a_submit_file_is_read_like_the_notebook(solved: Notebook, submit: Submit) -> None:
    whole = submit(solved)
    small = submit(
        {
            "labkit": 1,
            "lab": "autoregressive-decoding",
            "variant": "window",
            "cells": whole.cells,
            "written": whole.written,
        }
    )
    assert small.cells == whole.cells
    assert small.written == whole.written
    assert (small.problems, small.notes, small.variant) == ({}, [], "window")


def test_a_submit_file_with_wrong_types_says_what_is_missing(submit: Submit) -> None:
    submission = submit({"labkit": 2, "lab": 7, "cells": {"sampler": 3, "stream": "x = ("}})
    assert submission.problems["sampler"].startswith("no cell with the line")
    assert submission.problems["stream"] == "syntax error in line 1: '(' was never closed"
    assert submission.notes == [
        "the file says format 2, read as format 1",
        "the file is of the lab 7, not autoregressive-decoding",
        "no answer to `explain` in the file",
    ]


def test_the_starters_empty_answer_is_none(solved: Notebook, submit: Submit) -> None:
    (cell,) = [c for c in solved["cells"] if "written: explain" in _text(c)]
    cell["source"] = "<!-- written: explain -->\n*Your answer here.*"
    submission = submit(solved)
    assert submission.written == {}
    assert submission.notes == ["no answer to `explain` in the notebook"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "the file is empty"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "holds no list of cells"),
        ('{"cells": {"sampler": "x"}}', "holds no list of cells"),
        ('{"cells": 3}', "holds no list of cells"),
        ('{"cells": [1, null, {"cell_type": "code"}, {"source": 5}]}', "no cell with the line"),
    ],
)
def test_what_is_no_notebook_gets_a_reason(
    lab: Lab, submit: Submit, content: str, reason: str
) -> None:
    submission = submit(content)
    assert set(submission.problems) == set(TASKS)
    assert all(reason in words for words in submission.problems.values())
    assert Grader(lab).grade(submission).score == 0


def test_a_file_that_is_not_there(lab: Lab, tmp_path: Path) -> None:
    submission = read_submission(tmp_path / "none.ipynb", lab)
    assert "cannot be read: No such file" in submission.problems["sampler"]


def test_the_command_grades_and_writes_results(
    solved: Notebook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task in ("decode-step", "stream", "latency", "engine"):
        solved["cells"].remove(_cell(solved, task))
    good, bad = tmp_path / "ada.ipynb", tmp_path / "empty.ipynb"
    good.write_text(json.dumps(solved), "utf8")
    bad.write_text("", "utf8")
    out = tmp_path / "out"
    files = [str(bad), str(good)]
    command = ["grade", "autoregressive-decoding", *files, "--out", str(out), "--jobs", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ada +0 +20 +0 +0 +0 +to mark +20$", printed, re.M)
    assert re.search(r"^empty +0 +0 +0 +0 +0 +0 +0$", printed, re.M)
    results = json.loads((out / "students" / "ada" / "results.json").read_text("utf8"))
    assert results["score"] == 20
    assert sum(test["max_score"] for test in results["tests"]) == 95
    failed = [test for test in results["tests"] if test["status"] == "failed"]
    assert failed
    assert all(test["output"] and test["score"] == 0 for test in failed)
    assert "5 points to be marked by hand" in results["output"]
    empty = (out / "students" / "empty" / "results.json").read_text("utf8")
    assert json.loads(empty)["score"] == 0
    assert "the file is empty" in empty


def test_an_unknown_lab_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "no-such-lab"]) == 2
    assert "no lab 'no-such-lab'" in capsys.readouterr().err


@pytest.mark.parametrize("task", [True, False])
def test_a_million_empty_lines_are_read_at_once(
    solved: Notebook, submit: Submit, task: bool
) -> None:
    """By a pattern that runs over the ends of lines they took hours; here a second is much."""
    cell = _cell(solved, "engine")
    lines = "\n" * (190_000 if task else 1_000_000)
    if task:
        cell["source"] = f"# task: engine\n{lines}%magic\n("
    else:
        solved["cells"].append({"cell_type": "code", "source": lines})
    start = time.perf_counter()
    submission = submit(solved)
    assert time.perf_counter() - start < 10
    assert ("engine" in submission.problems) == task


def test_what_a_file_says_of_itself_is_quoted_short(submit: Submit) -> None:
    long = "\ud800\x1b[2J" + "x" * 100_000
    for content in ({"labkit": long, "lab": [long]}, {"labkit": {"a": long}, "lab": long}):
        submission = submit({**content, "variant": long, "cells": {}})
        assert submission.variant is None
        assert "names the variant '\\ud800\\x1b[2Jxxx" in submission.notes[0]
        assert "none of: window, quantized, shared" in submission.notes[0]
        assert all(len(note) < 200 for note in submission.notes)
        "".join(submission.notes).encode("utf8")


def test_a_variant_that_is_none_stops_nobody(solved: Notebook, submit: Submit) -> None:
    solved["metadata"]["labkit"]["variant"] = "\ud800"
    assert submit(solved).variant is None


def test_a_sentence_is_said_once_and_a_slip_is_short(solved: Notebook, submit: Submit) -> None:
    cell = _cell(solved, "engine")
    solved["cells"] += [cell] * 5
    solved["cells"].append({"cell_type": "code", "source": f"# task: engine{'e' * 100_000}"})
    notes = submit(solved).notes
    assert notes == ["several cells say `# task: engine`: the last one counts"]


def test_a_notebook_of_another_lab_says_so(lab: Lab, submit: Callable[..., Submission]) -> None:
    notebook = {"metadata": {"labkit": {"lab": "batching", "variant": "fair"}}, "cells": []}
    submission = submit(notebook)
    assert submission.other_lab == "batching"
    assert submission.notes[0] == f"the file is of the lab 'batching', not {lab.slug}"
    assert submit({"cells": []}).other_lab is None
