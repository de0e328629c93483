"""The Gradescope bundle, unpacked and run the way Gradescope's machine does it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from labkit.author.build import build_notebook, notebook_text
from labkit.author.bundle import bundle, bundle_files, requirements, runs_engine
from labkit.cli import main
from labkit.course.autograde import choose as choose_file
from labkit.grading.variants import Choice, choose, new_key
from labkit.reader.lab import Lab


@pytest.fixture
def autograder(small_lab: Lab, tmp_path: Path) -> Path:
    """`/autograder` as Gradescope makes it, with the environment that `setup.sh` would make."""
    root = tmp_path / "autograder"
    archive = tmp_path / "bundle.zip"
    bundle(small_lab, archive, choose(small_lab, None))
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(root / "source")
    for name in ("submission", "results"):
        (root / name).mkdir()
    shutil.copy(root / "source" / "run_autograder", root / "run_autograder")
    (root / "run_autograder").chmod(0o755)
    (root / "venv").symlink_to(sys.prefix)
    return root


def _run(root: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(root)}  # nothing of this process
    return subprocess.run(
        [root / "run_autograder"],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )


def _results(root: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((root / "results" / "results.json").read_text("utf8"))
    return made


def test_it_grades_as_gradescope_runs_it(autograder: Path, small_lab: Lab) -> None:
    solved = notebook_text(build_notebook(small_lab, solution=True))
    (autograder / "submission" / "my homework.ipynb").write_text(solved, "utf8")
    done = _run(autograder)
    assert done.returncode == 0, done.stderr
    results = _results(autograder)
    assert results["score"] == 90
    assert sum(test["max_score"] for test in results["tests"]) == 90
    for key in ("output_format", "test_output_format", "test_name_format"):
        assert results[key] == "text"
    assert "The rule explained: handed in" in results["output"]


def test_the_unpacked_labkit_runs_and_no_other(autograder: Path, small_lab: Lab) -> None:
    (autograder / "submission" / "x.ipynb").write_text("", "utf8")
    report = autograder / "source" / "src" / "labkit" / "grading" / "report.py"
    report.write_text(report.read_text("utf8") + "\nprint('of the bundle')\n")
    done = _run(autograder)
    assert "of the bundle" in done.stdout
    assert _results(autograder)["score"] == 0
    assert "the file is empty" in json.dumps(_results(autograder))


def test_it_grades_the_tiers_that_it_was_made_for(autograder: Path, small_lab: Lab) -> None:
    archive = autograder.parent / "core.zip"
    command = ["bundle", str(small_lab.folder), "--out", str(archive), "--tiers", "core"]
    assert main(command) == 0
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(autograder / "source")
    solved = notebook_text(build_notebook(small_lab, solution=True))
    (autograder / "submission" / "x.ipynb").write_text(solved, "utf8")
    assert _run(autograder).returncode == 0
    assert _results(autograder)["score"] == 60
    assert sum(test["max_score"] for test in _results(autograder)["tests"]) == 60


def test_a_failure_of_the_grader_is_no_score(autograder: Path) -> None:
    (autograder / "source" / "autograde.json").unlink()
    done = _run(autograder)
    assert done.returncode != 0
    assert not (autograder / "results" / "results.json").exists()


def test_the_file_with_most_cells_counts(small_lab: Lab, tmp_path: Path) -> None:
    assert "neither a notebook" in choose_file(tmp_path, small_lab).problems["fit"]
    (tmp_path / "empty.json").write_text("{}")
    words = "no task of this lab found in these files: empty.json"
    assert words in choose_file(tmp_path, small_lab).notes
    (tmp_path / "sub").mkdir()
    solved = notebook_text(build_notebook(small_lab, solution=True))
    (tmp_path / "sub" / "work.ipynb").write_text(solved, "utf8")
    submission = choose_file(tmp_path, small_lab)
    assert set(submission.cells) == {"fit", "admit"}
    assert "work.ipynb is graded, not: empty.json" in submission.notes
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.json")).write_text("{}")
    note = choose_file(tmp_path, small_lab).notes[-1]
    assert note == "work.ipynb is graded, not: empty.json, \\udcff\\n.json"


def test_what_the_zip_holds(lab: Lab, small_lab: Lab, tmp_path: Path) -> None:
    archive = tmp_path / "b.zip"
    assert main(["bundle", lab.slug, "--out", str(archive)]) == 0
    with zipfile.ZipFile(archive) as opened:
        modes = {entry.filename: entry.external_attr >> 16 for entry in opened.infolist()}
    assert {"setup.sh", "run_autograder"} <= set(modes)  # at the root, or Gradescope finds none
    assert modes["run_autograder"] == 0o100755
    assert "src/quire/__init__.py" in modes
    assert f"labs/{lab.slug}/hidden/test_engine.py" in modes
    assert not [name for name in modes if name.startswith(f"labs/{lab.slug}/mutants")]
    assert not [name for name in modes if "__pycache__" in name]
    assert archive.stat().st_size < 40e6
    assert runs_engine(lab)
    assert not runs_engine(small_lab)
    small = bundle_files(small_lab, choose(small_lab, None), unsafe_local=False)
    assert not [name for name in small if name.startswith(("src/quire", "models"))]


def test_requirements_are_ranges_of_the_project(lab: Lab, small_lab: Lab) -> None:
    names = {line.split(">")[0] for line in requirements(lab)}
    assert {"hypothesis", "jupytext", "nbformat", "numpy", "torch", "transformers"} <= names
    assert {line.split(">")[0] for line in requirements(small_lab)} == {
        "hypothesis", "jupytext", "nbformat", "numpy",
    }  # fmt: skip
    assert all(">=" in line and "==" not in line for line in requirements(lab))


def test_the_key_stays_at_home(lab: Lab, tmp_path: Path) -> None:
    key = new_key(tmp_path / "key")
    choice = key.choose(lab)
    files = bundle_files(lab, choice, unsafe_local=True)
    assert json.loads(files["autograde.json"]) == {
        "lab": lab.slug, "variant": choice.variant, "seed": choice.seed, "unsafe_local": True,
        "tiers": [],
    }  # fmt: skip
    secret = (tmp_path / "key").read_text().split()[-1].encode()
    assert not [name for name, data in files.items() if secret in data or key.secret in data]
    with pytest.raises(ValueError, match="no variant 'x'"):
        bundle_files(lab, Choice("x", 0), unsafe_local=False)


def test_set_up_is_plain(autograder: Path) -> None:
    """apt and pip, stopped at the first failure; played with stand-ins for both."""
    script = autograder / "source" / "setup.sh"
    text = script.read_text("utf8")
    for distribution in ("conda", "curl", "wget", "git clone"):
        assert distribution not in text
    tools, log = autograder / "bin", autograder / "log"
    tools.mkdir()
    for name, body in {
        "apt-get": 'case "$*" in *python3.13*|*python3.12*) exit 100;; esac',
        "python3.11": 'if [ "$2" = venv ]; then cp "$0" "$3/bin/python"; fi',
        "bwrap": "exit 1",
    }.items():
        path = tools / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> "{log}"\n{body}\n')
        path.chmod(0o755)
    root = autograder / "fresh"
    (root / "venv" / "bin").mkdir(parents=True)
    shutil.copytree(autograder / "source", root / "source")
    done = subprocess.run(
        ["bash", script],
        env={"PATH": f"{tools}:{os.environ['PATH']}", "AUTOGRADER_ROOT": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = log.read_text().split("\n")
    assert "apt-get install -y --no-install-recommends bubblewrap ca-certificates" in said
    assert f"python3.11 -m venv {root}/venv" in said
    assert any("-m pip install" in line and "requirements.txt" in line for line in said)
    assert "bubblewrap cannot make namespaces on this machine" in done.stderr
    assert (root / "source").stat().st_mode & 0o077 == 0
