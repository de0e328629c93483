"""`labkit release`: the variant of the key, a tutor's rules, and nothing that gives it away."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import labkit
from labkit.author.build import build_notebook
from labkit.author.release import release_files
from labkit.cli import main
from labkit.grading.cells import reference_cells
from labkit.grading.variants import CourseKey, read_key
from labkit.reader.lab import Lab, LabError, load_lab
from labkit.reader.work import read_work


@pytest.fixture(params=["window", "quantized", "shared"])
def files(request: pytest.FixtureRequest, lab: Lab) -> dict[str, bytes]:
    return release_files(lab, request.param)


def test_no_solution_and_no_hidden_test_is_in_it(files: dict[str, bytes], lab: Lab) -> None:
    text = b"\n".join(files.values()).decode()
    given = json.dumps(build_notebook(lab).cells) + text
    for variant in lab.variants:
        for source in reference_cells(lab, variant).values():
            lines = {line.strip() for line in source.split("\n") if len(line.strip()) > 30}
            starter = {line for line in lines if line in given or line.replace('"', '\\"') in given}
            assert len(starter) < len(lines) / 2
            assert not [line for line in lines - starter if line in text]
    assert "SOLUTION" not in text
    assert "VARIANT" not in text
    for path in [*lab.folder.glob("hidden/*.py"), *lab.folder.glob("mutants/*")]:
        assert path.stem not in text
    assert not [name for name in files if "hidden" in name or "lab.toml" in name]


def test_the_notebook_and_its_rules_are_of_the_variant(lab: Lab) -> None:
    for variant in lab.variants:
        notebook = json.loads(release_files(lab, variant)[f"{lab.slug}/{lab.slug}.ipynb"])
        assert notebook["metadata"]["labkit"] == {"lab": lab.slug, "variant": variant}
        sources = ["".join(cell["source"]) for cell in notebook["cells"]]
        assert sum(f'LAB = "{lab.slug}/{variant}"' in source for source in sources) == 1


def test_an_assistant_is_told_to_be_a_tutor(files: dict[str, bytes], lab: Lab) -> None:
    words = files[f"{lab.slug}/AGENTS.md"].decode()
    assert "Be a tutor" in words
    assert "Write, complete, translate or rewrite a cell that starts with `# task:`" in words
    readme = files[f"{lab.slug}/README.md"].decode()
    assert "AGENTS.md" in readme
    assert "labkit.save()" in readme
    assert "| `sampler`: An exact sampler with a quota | core | 20 | 60 |\n" in readme
    assert "100 points, about 5.2 hours" in readme


def test_the_page_lists_frontier_tasks_as_the_notebook_does() -> None:
    lab = load_lab("paged-kv-cache")
    readme = release_files(lab)[f"{lab.slug}/README.md"].decode()
    rows = [line for line in readme.split("\n") if "| frontier |" in line]
    assert rows == [
        "| An eviction policy | frontier | bonus, up to 10 | open |",
        "| A cache-write kernel, on a GPU | frontier | bonus, up to 10 | open |",
    ]


def test_a_courses_own_lab_brings_its_checks(
    small_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Released from anywhere, worked on in the folder of the release."""
    out = tmp_path / "out"
    assert main(["release", str(small_lab.folder), "--out", str(out)]) == 0
    folder = out / small_lab.slug
    assert {path.name for path in folder.iterdir()} == {
        f"{small_lab.slug}.ipynb", "README.md", "AGENTS.md", "lab.toml", "checks.py",
    }  # fmt: skip
    assert "upload both" in (folder / "README.md").read_text("utf8")
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {"LAB": f"{small_lab.slug}/{small_lab.default_variant}"}
    exec(reference_cells(small_lab)["fit"], namespace)
    labkit.check("fit", namespace)
    with pytest.raises(labkit.CheckFailed, match="fit is not defined"):
        labkit.check("fit", {"LAB": namespace["LAB"]})
    monkeypatch.chdir(tmp_path)  # from elsewhere the notebook's folder says it
    notebook = folder / f"{small_lab.slug}.ipynb"
    assert main(["submit", str(notebook)]) == 0
    assert read_work(folder / f"{small_lab.slug}.submit.json").lab.slug == small_lab.slug
    with pytest.raises(LabError, match=r"needs the lab\.toml and checks\.py that came with"):
        labkit.check("fit", namespace)


def test_the_command_releases_what_the_key_chooses(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key_file = tmp_path / "course.key"
    assert main(["key", str(key_file)]) == 0
    variant = read_key(key_file).choose(lab).variant
    out = tmp_path / "out"
    command = ["release", lab.slug, "--out", str(out), "--course-key-file", str(key_file)]
    assert main(command) == 0
    with zipfile.ZipFile(out / f"{lab.slug}.zip") as archive:
        inside = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    assert inside == release_files(lab, variant)
    first = (out / f"{lab.slug}.zip").read_bytes()
    assert main(command) == 0
    assert (out / f"{lab.slug}.zip").read_bytes() == first
    on_disk = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.*")}
    assert {k: v for k, v in on_disk.items() if not k.endswith(".zip")} == inside


def test_a_key_that_is_none_releases_nothing(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "k"
    path.write_text("secret words")
    out = tmp_path / "out"
    assert main(["release", lab.slug, "--out", str(out), "--course-key-file", str(path)]) == 2
    said = capsys.readouterr().err
    assert "is no course key" in said
    assert "secret words" not in said
    assert not out.exists()


def test_keys_differ_in_what_they_choose(lab: Lab) -> None:
    chosen = {CourseKey(bytes([i] * 32)).choose(lab).variant for i in range(40)}
    assert chosen == set(lab.variants)


def test_release_says_which_variant_and_key_it_is_of(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, out = tmp_path / "k", str(tmp_path / "out")
    assert main(["key", str(key)]) == 0
    capsys.readouterr()
    assert main(["release", lab.slug, "--out", out, "--course-key-file", str(key)]) == 0
    chosen = read_key(key).choose(lab).variant
    said = capsys.readouterr().out
    assert f"variant {chosen}: {lab.variants[chosen]}" in said
    assert f"course key of fingerprint {read_key(key).fingerprint}" in said
    assert main(["release", lab.slug, "--out", out]) == 0
    said = capsys.readouterr().out
    assert f"variant {lab.default_variant}: " in said
    assert "no course key: the public variant and seeds" in said


def test_the_solved_notebook_and_nbgraders_source_follow_the_key(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "k"
    while not key.exists() or read_key(key).choose(lab).variant == lab.default_variant:
        key.unlink(missing_ok=True)
        assert main(["key", str(key)]) == 0
    variant = read_key(key).choose(lab).variant
    starter = lab.folder / f"{lab.slug}.ipynb"
    before = starter.stat().st_mtime_ns
    solved, source = tmp_path / "solved.ipynb", tmp_path / "source.ipynb"
    command = ["build", lab.slug, "--course-key-file", str(key)]
    assert main([*command, "--solution", str(solved), "--nbgrader", str(source)]) == 0
    for path in (solved, source):
        metadata = json.loads(path.read_text("utf8"))["metadata"]
        assert metadata["labkit"] == {"lab": lab.slug, "variant": variant}
    assert starter.stat().st_mtime_ns == before
    capsys.readouterr()
    assert main(command) == 2
    assert "with a course key give --solution or --nbgrader" in capsys.readouterr().err
    assert main(["build", "batching", lab.slug, "--solution", str(solved)]) == 2
    assert "can hold one lab only, not batching, autoregressive-decoding" in capsys.readouterr().err


def test_a_library_that_is_not_installed_is_named(lab: Lab) -> None:
    program = (
        "import sys; sys.modules['tqdm'] = None; from labkit.cli import main; "
        "sys.exit(main(['grade', 'batching', 'x.ipynb', '--out', 'out']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("labkit: labkit grade needs tqdm: install what is needed")
