"""A notebook as a Colab user has it: quire from its wheel, no clone in sight.

The wheel is built from this tree and installed into an environment of its own, which
borrows only the third-party packages of the one that runs the tests. nbval executes the
notebooks there, from an empty folder, with no way to the network, and compares what they print.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import bookmeta
import nbformat
import pytest
from parsed_notebook import IGNORES_OUTPUT, Notebook

from labkit.reader.lab import READERS

SHIPPED = {path.parent.name for path in (bookmeta.ROOT / "models").glob("*/config.json")}

PROBE = """
import json, sys
from pathlib import Path
import quire, labkit
from labkit.reader.lab import import_checks, load_lab
from quire.resources import data_dir, shipped_models
Path("origin.json").write_text(json.dumps({
    "python": sys.prefix,
    "quire": quire.__file__,
    "labkit": labkit.__file__,
    "models": {name: str(path) for name, path in shipped_models().items()},
    "measurements": sorted(p.name for p in (data_dir() / "measurements").glob("*.json")),
    "checks": {slug: sorted(import_checks(load_lab(slug)).CHECKS) for slug in SLUGS},
}), "utf8")
"""

# nbval leaves warnings alone in a cell whose output it ignores.
SILENT = """
def pytest_runtest_teardown(item):
    said = [output for output in item.test_outputs or () if output.get("name") == "stderr"]
    assert not said, f"{item.cell.source}\\nprinted {said}"
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    _run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)],
        cwd=bookmeta.ROOT,
    )
    (built,) = folder.glob("quire-*.whl")
    return built


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment that has the wheel, and the clone's dependencies but not the clone.

    A `.pth` file puts our site-packages behind its own. `.pth` files inside a folder that
    was itself added by one are not read, so the editable install stays out.
    """
    folder = tmp_path_factory.mktemp("colab") / "env"
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    python = folder / "bin/python"
    site = Path(
        _run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    )
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf8")
    _run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--no-compile", "--disable-pip-version-check", "--target", str(site), str(wheel)]
    )  # fmt: skip
    return folder


def _run(
    command: list[str], cwd: Path | None = None, extra_env: dict[str, str] | None = None
) -> str:
    removed = ("PYTHONPATH", "VIRTUAL_ENV", "JUPYTER_PATH")
    env = {key: value for key, value in os.environ.items() if key not in removed}
    done = subprocess.run(
        command, cwd=cwd, env=env | (extra_env or {}), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_wheel_carries_models_measurements_and_public_checks(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for model in SHIPPED:
        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            assert f"quire/_data/models/{model}/{file}" in names
    for path in (bookmeta.ROOT / "measurements").glob("*.json"):
        assert f"quire/_data/measurements/{path.name}" in names
    for slug in bookmeta.slugs():
        needed = [name for name in READERS if (bookmeta.ROOT / "labs" / slug / name).is_file()]
        assert {"lab.toml", "checks.py"} <= set(needed)
        assert {f"labkit/_data/{slug}/{name}" for name in needed} <= names
    # Solutions, hidden tests and the training corpus are no reader's download.
    skeleton = "labkit/author/templates/"  # of a new lab
    ours = [n for n in names if not n.startswith(skeleton)]
    assert not [n for n in ours if "/hidden/" in n or "/mutants/" in n or n.endswith("master.py")]
    assert not [n for n in names if "/corpus/" in n]


def test_the_notebook_runs_from_the_wheel(
    notebook: Notebook, environment: Path, tmp_path: Path
) -> None:
    probe = f"SLUGS = {[notebook.slug]!r}\n{PROBE}"
    cell = nbformat.v4.new_code_cell(probe, metadata={"tags": [IGNORES_OUTPUT]})
    read = nbformat.read(notebook.path, as_version=4)
    read.cells.append(cell)
    nbformat.write(read, tmp_path / notebook.path.name)
    (tmp_path / "conftest.py").write_text(SILENT, "utf8")
    _run(
        [str(environment / "bin/python"), "-m", "pytest", "--nbval", "--nbval-current-env",
         "--nbval-cell-timeout=300", "-q", "-p", "no:cacheprovider", notebook.path.name],
        cwd=tmp_path,
        extra_env={
            "PYTHONNOUSERSITE": "1",
            "HF_HUB_OFFLINE": "1",
            # Nothing answers there, so a cell that needs a download fails.
            "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9",
        },
    )  # fmt: skip
    found = json.loads((tmp_path / "origin.json").read_text("utf8"))
    _check_origin(found, environment, notebook.slug)


def _check_origin(found: dict[str, Any], environment: Path, slug: str) -> None:
    """Everything came from the wheel: the code, the weights, the figures, the checks."""
    inside = [found["python"], found["quire"], found["labkit"], *found["models"].values()]
    for place in inside:
        assert Path(place).resolve().is_relative_to(environment.resolve()), place
    assert set(found["models"]) == SHIPPED
    assert found["measurements"] == sorted(
        path.name for path in (bookmeta.ROOT / "measurements").glob("*.json")
    )
    assert found["checks"][slug]
