"""A reader's work as one small file: in a notebook, in a Colab that is gone, on the shell."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reader_notebooks import Notebook, cell, write

import labkit
from labkit.author.build import build_notebook, notebook_text
from labkit.cli import main
from labkit.reader.lab import Lab, load_lab
from labkit.reader.notebook import read_submission
from labkit.reader.work import SaveError, read_work, untouched

DRAW = "# task: sampler\ndef draw(probabilities, u):\n    return 1\n"


def test_save_and_restore_carry_everything_over(
    solved: Notebook, starter: Notebook, folder: Path, lab: Lab, call: Callable[..., Any]
) -> None:
    mine = write(folder, solved)
    saved = call(labkit.save)
    assert saved == folder / "autoregressive-decoding.save.json"
    assert saved.stat().st_size < 30_000
    mine.unlink()
    write(folder, starter, "fresh.ipynb")
    restored = call(labkit.restore)
    assert restored.name == "fresh-restored.ipynb"
    before, after = json.loads(notebook_text(build_notebook(lab, solution=True))), None
    (folder / "wanted.ipynb").write_text(json.dumps(before))
    want = read_submission(folder / "wanted.ipynb", lab)
    after = read_submission(restored, lab)
    assert after.cells == want.cells
    assert after.written == want.written
    assert after.problems == {}


def test_the_version_run_last_is_kept_and_said(
    starter: Notebook, folder: Path, call: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, starter)
    saved = call(labkit.save, ran=["# task: sampler\nOLD = 1", DRAW, "draw([1], 0)"])
    assert read_work(saved).cells["sampler"] == DRAW
    printed = capsys.readouterr().out
    assert "sampler: the version you ran last is kept, the notebook's file holds ano" in printed
    assert "1 of 5 tasks, 0 of 1 written answers" in printed


def test_a_fresh_starter_does_not_wipe_out_a_save(
    solved: Notebook, starter: Notebook, folder: Path, call: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = write(folder, solved)
    call(labkit.save)
    path.write_text(json.dumps(starter), "utf8")
    saved = call(labkit.save, ran=[DRAW])
    work = read_work(saved)
    assert work.cells["sampler"] == DRAW
    assert "sinks" in work.cells["decode-step"]
    assert not untouched("decode-step", work.cells["decode-step"])
    printed = capsys.readouterr().out
    assert "decode-step: not written here, so the saved version stays" in printed
    assert "sampler: not written here" not in printed
    assert work.written["explain"].startswith("With 1 request")


def test_a_fresh_starter_does_not_wipe_out_a_frontier_cell(
    folder: Path, call: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither `save` nor a check does, though the starter's cell has been run."""
    of = load_lab("batching")
    fresh: Notebook = json.loads(notebook_text(build_notebook(of)))
    (given,) = [c for c in fresh["cells"] if "".join(c["source"]).startswith("# frontier: policy")]
    starters, mine = "".join(given["source"]), "# frontier: policy\nMINE = 1"
    given["source"] = mine
    call(labkit.save, of=of, notebook=write(folder, fresh))
    given["source"] = starters
    path = write(folder, fresh)
    namespace: dict[str, Any] = {"LAB": of.slug, "In": ["", starters]}
    with pytest.raises(labkit.CheckFailed):
        labkit.check(of.tasks[0].name, namespace)
    assert read_work(folder / "batching.save.json").frontier == {"policy": mine}
    capsys.readouterr()
    saved = call(labkit.save, of=of, notebook=path, ran=[starters])
    assert read_work(saved).frontier == {"policy": mine}
    assert (
        "frontier policy: not written here, so the saved version stays" in capsys.readouterr().out
    )


def test_a_check_keeps_progress_and_what_was_run(
    starter: Notebook, folder: Path, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "# task: engine\ndef choose_tokens(rows): return []"
    namespace: dict[str, Any] = {"LAB": lab.slug, "In": ["", DRAW, source]}
    with pytest.raises(labkit.CheckFailed, match="so far 0 of 5 tasks pass"):
        labkit.check("sampler", namespace)
    work = read_work(folder / "autoregressive-decoding.save.json")
    assert work.progress["sampler"][0] < work.progress["sampler"][1]
    assert work.cells == {"sampler": DRAW, "engine": source}


def test_progress_that_cannot_be_kept_spoils_no_check(
    folder: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "autoregressive-decoding.save.json").mkdir()
    namespace: dict[str, Any] = {"LAB": lab.slug, "In": [DRAW]}
    with pytest.raises(labkit.CheckFailed, match=r"progress is not kept: .* cannot be written"):
        labkit.check("sampler", namespace)


@pytest.mark.parametrize("name", ["save", "submit", "restore"])
def test_the_question_which_notebook_names_the_function_that_was_called(
    starter: Notebook, folder: Path, call: Callable[..., Any], name: str
) -> None:
    write(folder, starter, "a.ipynb")
    write(folder, starter, "b.ipynb")
    with pytest.raises(SaveError, match=rf"as in labkit\.{name}\(notebook="):
        call(getattr(labkit, name))


def test_which_notebook_is_asked_when_several_fit(
    starter: Notebook, folder: Path, call: Callable[..., Any]
) -> None:
    with pytest.raises(SaveError, match="which notebook"):
        call(labkit.save)
    write(folder, starter, "a.ipynb")
    write(folder, starter, "b.ipynb")
    write(folder, {"cells": []}, "notes.ipynb")
    with pytest.raises(SaveError, match=r"a\.ipynb, b\.ipynb in .* fit"):
        call(labkit.save)
    call(labkit.save, notebook="b.ipynb")


def test_the_notebook_of_another_lab_beside_it_is_no_question(
    starter: Notebook, folder: Path, call: Callable[..., Any]
) -> None:
    """Each lab has a task called engine."""
    write(folder, json.loads(notebook_text(build_notebook(load_lab("batching")))), "a.ipynb")
    write(folder, starter, "b.ipynb")
    assert "choose_tokens" in read_work(call(labkit.save)).cells["engine"]


def test_the_server_names_the_notebook(
    starter: Notebook, folder: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, starter, "a.ipynb")
    cell(starter, "sampler")["source"] = DRAW
    write(folder, starter, "b.ipynb")
    monkeypatch.setenv("JPY_SESSION_NAME", "somewhere/on/the/server/b.ipynb")
    assert read_work(call(labkit.save)).cells["sampler"] == DRAW


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not valid JSON"), ("[]", "not a file of `labkit save`"), (None, "cannot be read")],
)
def test_a_saved_file_that_is_none(folder: Path, text: str | None, words: str) -> None:
    path = folder / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SaveError, match=words):
        read_work(path)


def test_a_save_of_another_lab_or_variant(
    solved: Notebook, folder: Path, call: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, solved)
    saved = call(labkit.save)
    content = json.loads(saved.read_text("utf8"))
    saved.write_text(json.dumps(content | {"variant": "shared"}), "utf8")
    call(labkit.restore).unlink()
    assert "the work was saved from variant shared, this notebook is win" in capsys.readouterr().out
    saved.write_text(json.dumps(content | {"lab": "no-such-lab"}), "utf8")
    with pytest.raises(ValueError, match="no lab 'no-such-lab'"):
        call(labkit.restore)


# ---- Colab, played by stand-ins for its modules


@pytest.fixture
def colab(starter: Notebook, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Colab shows the runtime: the notebook in the browser, downloads and uploads."""
    seen: dict[str, Any] = {"notebook": starter, "downloads": [], "upload": {}}
    package, message = types.ModuleType("google.colab"), types.ModuleType("google.colab._message")
    files = types.ModuleType("google.colab.files")

    def blocking_request(kind: str, timeout_sec: float) -> dict[str, Any]:
        assert kind == "get_ipynb"
        return {"ipynb": seen["notebook"]}

    def upload() -> dict[str, bytes]:
        for name, data in seen["upload"].items():
            Path(name).write_bytes(data)
        return dict(seen["upload"])

    message.blocking_request = blocking_request  # type: ignore[attr-defined]
    files.download = seen["downloads"].append  # type: ignore[attr-defined]
    files.upload = upload  # type: ignore[attr-defined]
    package._message, package.files = message, files  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", package)
    monkeypatch.setitem(sys.modules, "google.colab._message", message)
    monkeypatch.setitem(sys.modules, "google.colab.files", files)
    monkeypatch.setattr(importlib.import_module("labkit.reader.save"), "DRIVE", folder / "drive")
    return seen


def test_a_lost_runtime_without_drive(
    colab: dict[str, Any], solved: Notebook, starter: Notebook, folder: Path, lab: Lab,
    call: Callable[..., Any],
) -> None:  # fmt: skip
    colab["notebook"] = solved
    path = call(labkit.save, ran=["# task: sampler\nOLDER = 1"])
    assert colab["downloads"] == [str(path)]
    colab["upload"] = {"downloaded (1).json": path.read_bytes()}
    path.unlink()  # the runtime is gone
    colab["notebook"] = starter
    restored = call(labkit.restore)
    assert colab["downloads"][-1] == str(restored)
    submission = read_submission(restored, lab)
    assert "searchsorted" in submission.cells["sampler"]  # the browser's, not the one run before
    assert submission.written["explain"].startswith("With 1 request")


def test_a_lost_runtime_with_drive(
    colab: dict[str, Any], solved: Notebook, starter: Notebook, folder: Path,
    call: Callable[..., Any],
) -> None:  # fmt: skip
    (folder / "drive").mkdir()
    colab["notebook"] = solved
    path = call(labkit.save)
    assert path == folder / "drive" / "labkit" / "autoregressive-decoding.save.json"
    assert colab["downloads"] == []
    colab["notebook"] = starter
    assert call(labkit.restore).parent == path.parent


def test_no_file_chosen_in_colab(colab: dict[str, Any], call: Callable[..., Any]) -> None:
    with pytest.raises(SaveError, match="no file was chosen"):
        call(labkit.restore)


# ---- the shell


def test_the_commands(
    solved: Notebook, starter: Notebook, folder: Path, lab: Lab,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    mine, fresh = write(folder, solved), write(folder, starter, "fresh.ipynb")
    assert main(["save", str(mine)]) == 0
    saved = folder / "autoregressive-decoding.save.json"
    assert main(["restore", str(fresh), str(saved)]) == 0
    restored = folder / "fresh-restored.ipynb"
    assert read_submission(restored, lab).problems == {}
    assert main(["submit", str(restored), "--to", str(folder / "in.json")]) == 0
    assert "its public check has not run" in capsys.readouterr().out
    assert read_submission(folder / "in.json", lab).written["explain"].startswith("With 1 request")
    assert main(["save", str(folder / "none.ipynb")]) == 2
    assert "none.ipynb cannot be read: No such file" in capsys.readouterr().err


def test_nothing_of_it_imports_torch(folder: Path, starter: Notebook) -> None:
    write(folder, starter)
    code = (
        "import sys, labkit\n"
        "LAB = 'autoregressive-decoding/window'\n"
        "labkit.save(); labkit.submit(); labkit.restore()\n"
        "try: labkit.check('sampler')\n"
        "except labkit.CheckFailed: pass\n"
        "heavy = {'torch', 'quire', 'transformers', 'nbformat', 'jupytext', 'jinja2', 'tqdm'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
