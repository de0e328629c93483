"""The process that interprets a reader's Triton kernels, and the cells it is given.

The harness is one cell of two files, `labkit.sandbox.guarded_memory` and
`labkit.sandbox.interpreter`, loaded before the reader's. `labkit.gpu.interpreted` is what checks
and hidden tests ask it.
"""

from __future__ import annotations

import ast
import atexit
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.reader.lab import Lab, load_lab
from labkit.reader.session import cells_run
from labkit.reader.subject import Subject, Wrong, in_child
from labkit.reader.work import work_of
from labkit.sandbox import plain_kernel
from labkit.sandbox.process import Child, Limits, Surroundings

HARNESS = ("guarded_memory.py", "interpreter.py")  # of one cell, in this order
PACKAGES = ("numpy", "triton")  # what the harness itself imports
# A reader's own machine: one process serves all checks.
PATIENT = Limits(call_seconds=120.0, wall_seconds=1e6, cpu_seconds=100_000, memory_bytes=4 << 30)


@functools.cache
def harness() -> str:
    """The source of the cell that runs kernels."""
    folder = Path(plain_kernel.__file__).parent
    return "\n\n".join((folder / name).read_text("utf8") for name in HARNESS)


@functools.cache
def _taken() -> frozenset[str]:
    """Names of the harness, which no cell may define anew."""
    found = set()
    for node in ast.parse(harness()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {one.id for one in node.targets if isinstance(one, ast.Name)}
    return frozenset(found)


@functools.lru_cache(maxsize=64)
def complaint(source: str) -> str | None:
    """Say why cells are not plain kernels, or return None."""
    return plain_kernel.complaint(source, _taken())


class _Served:
    """The process of a reader's own machine that runs kernels; made anew after a fault."""

    def __init__(self) -> None:
        self.child: Child | None = None

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.child is None or self.child.is_lost:
            packages = Surroundings(PACKAGES)
            self.child = Child(packages, PATIENT, unsafe_local=True)
        try:
            return in_child(self.child)(message)
        except BaseException:  # a check's time is up: what the child answers then is not awaited
            self.child.close()
            self.child = None
            raise

    def close(self) -> None:
        """End the process, if there is one."""
        if self.child is not None:
            self.child.close()


_SERVED = _Served()
atexit.register(_SERVED.close)


def loaded(namespace: dict[str, Any]) -> Subject:
    """The task cells that a notebook has run, for cells of its own that launch them.

    Raises:
        Wrong: there is none, or one of them fails.
    """
    lab = load_lab(str(namespace["LAB"]).partition("/")[0])
    work = work_of(lab, {"cells": []}, cells_run(namespace) or [])
    if not work.cells:
        raise Wrong("no cell with a `# task:` line has been run in this notebook")
    return served(lab, work.as_graded().cells)


def served(lab: Lab, cells: Mapping[str, str]) -> Subject:
    """The reader's cells, loaded behind the harness in a process of this machine.

    Raises:
        Wrong: a cell fails or is not plain; the message says how.
    """
    for name, source in cells.items():
        strange = complaint(source)
        if strange is not None:
            raise Wrong(strange.replace("of the cell", f"of the cell {name}"))
    loaded = [["interpreter", harness()], ["given", lab.given], *map(list, cells.items())]
    reply = _SERVED.request({"op": "load", "cells": loaded, "readable": True})
    if "error" in reply:
        raise Wrong(str(reply["error"]))
    subject = Subject(_SERVED.request, in_full=True)
    subject.source, subject.unsafe_local = "\n\n\n".join(cells.values()), True
    return subject
