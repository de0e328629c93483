"""labkit's packages know only those below them, and no two modules import each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import labkit

HOME = Path(labkit.__file__).parent
# What each package may import beside itself. `labkit.cli` stands above all of them, and
# `labkit/__init__.py` hands a notebook what it calls.
BELOW = {
    "sandbox": set(),
    "reader": {"sandbox"},
    "grading": {"sandbox", "reader"},
    "author": {"sandbox", "reader", "grading"},
    "course": {"sandbox", "reader", "grading"},
    "gpu": {"sandbox", "reader", "grading"},
}


def _imports(path: Path) -> set[str]:
    """The modules of labkit that a file imports, at its top or in a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = HOME.parent.joinpath(*node.module.split("."))
            if module.is_dir():  # from a package: its modules
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return {name for name in found if name.startswith("labkit.")}


def _graph() -> dict[str, set[str]]:
    paths = [path for path in HOME.rglob("*.py") if "_data" not in path.parts]
    return {
        ".".join(path.relative_to(HOME.parent).with_suffix("").parts): _imports(path)
        for path in paths
    }


def test_every_module_lies_in_a_package_that_imports_downward() -> None:
    for module, imported in _graph().items():
        parts = module.split(".")
        if parts[1] in ("__init__", "cli"):
            continue
        assert parts[1] in BELOW, f"{module} lies in none of the six packages"
        packages = {name.split(".")[1] for name in imported} - {parts[1]}
        assert packages <= BELOW[parts[1]], f"{module} imports from {packages}"


def test_no_import_goes_in_a_circle() -> None:
    graph = _graph()
    assert set().union(*graph.values()) <= set(graph)
    TopologicalSorter(graph).prepare()


def test_a_notebook_imports_labkit_where_there_is_no_unix() -> None:
    """As on Windows: what limits a child is imported where a child is started."""
    code = "import sys; sys.modules.update(fcntl=None, resource=None, grp=None); import labkit"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
