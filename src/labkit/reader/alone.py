"""A task's cell by itself, as grading takes it: behind the lab's help and the tasks it builds on.

A notebook remembers what its cells have long forgotten: a helper of another cell, an import at the
top, a definition whose cell no longer compiles. Grading has none of it. `faults` reads a cell and
says what it would miss there; `namespace_of` runs it as grading does, for the public checks.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import dis
import importlib
import io
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

from labkit.reader.cells import task_of
from labkit.reader.lab import Lab, Task

# What a notebook adds to Python's own names.
NOTEBOOK_ONLY = frozenset({"get_ipython", "display", "__IPYTHON__"})
BUILTINS = {name: value for name, value in vars(builtins).items() if name not in NOTEBOOK_ONLY}
DEFINES = re.compile(r"^(?:async )?(?:def|class)[ \t]+(\w+)", re.MULTILINE)
STAR = re.compile(r"^from[ \t]+([\w.]+)[ \t]+import[ \t]*\*", re.MULTILINE)
READS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
CATCHES = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


def built_on(lab: Lab, task: Task) -> list[str]:
    """Names of the tasks whose code a task calls, and of those that they call, first to last."""
    names = {name for one in task.needs for name in [one, *built_on(lab, lab.task(one))]}
    return [one.name for one in lab.tasks if one.name in names]


def faults(lab: Lab, task: Task, cells: Mapping[str, str], others: Sequence[str]) -> list[str]:
    """Sentences on why a cell that runs in its notebook would not run in grading.

    Args:
        lab, task: which cell.
        cells: the lab's task cells by name, as grading reads them; each compiles.
        others: every other cell of the notebook, whether it compiles or not.
    """
    source = cells[task.name]
    allowed = ", ".join(["the standard library", *lab.packages])
    if lab.interpreted:  # kernels and their launches need no more (`labkit.sandbox.plain_kernel`)
        allowed = "triton, triton.language, math"
    found = [
        f"line {line} imports {name}, which grading does not have: a task cell may import {allowed}"
        for name, line in _imports(ast.parse(source).body)
        if not _is_allowed(name, lab)
    ]
    before = [cells[name] for name in built_on(lab, task) if name in cells]
    own = {*BUILTINS, "__name__", "__file__"}
    own |= {name for text in [lab.given, *before, source] for name in _bound(text)}
    elsewhere = [text for name, text in cells.items() if name != task.name]
    outside = {name for text in [*others, *elsewhere] for name in _bound(text)} | NOTEBOOK_ONLY
    bound = _bound(source)
    found += [f"it does not define `{name}`" for name in task.defines if name not in bound]
    help_given = set(DEFINES.findall(lab.given))
    changed = help_given.intersection(name for text in others for name in DEFINES.findall(text))
    found += [
        f"line {line} uses `{name}`, the lab's help, which another cell defines anew: grading "
        "takes the lab's own"
        for name, line in _used(source)
        if name in changed and name not in bound
    ]
    found += [
        f"line {line} uses `{name}`, which another cell defines: grading takes this cell alone, so "
        "define or import it here"
        for name, line in _used(source)
        if name in outside and name not in own
    ]
    return found


def defined_again(lab: Lab, task: Task, ran: Sequence[str]) -> list[str]:
    """Say that a later cell without the task's line defines what the task's cell has to define.

    `ran` holds cells in the order of their runs.
    """
    latest = max((i for i, text in enumerate(ran) if task_of(text, lab) == task.name), default=None)
    if latest is None:
        return []
    names = set(task.defines or DEFINES.findall(ran[latest]))
    for source in ran[latest + 1 :]:
        again = [name for name in DEFINES.findall(source) if name in names]
        if again:
            return [
                f"`{again[0]}` was defined again by a cell without the line `# task: {task.name}`: "
                "grading would take the version before it, so put the line back and run the cell"
            ]
    return []


def namespace_of(lab: Lab, task: Task, cells: Mapping[str, str]) -> dict[str, Any]:
    """Run a cell alone, behind the lab's help and the cells of the tasks it builds on.

    What they print is not shown: it was, when they were run.

    Raises:
        BaseException: whatever a cell raises.
    """
    before = {name: cells[name] for name in built_on(lab, task) if name in cells}
    with contextlib.redirect_stdout(io.StringIO()):
        return run_alone(lab, {"given": lab.given, **before, task.name: cells[task.name]})


def run_alone(lab: Lab, cells: Mapping[str, str]) -> dict[str, Any]:
    """Run cells in their order, with what grading has to import; return their names.

    Raises:
        BaseException: whatever a cell raises.
    """
    namespace: dict[str, Any] = {
        "__name__": "__main__",
        "__builtins__": BUILTINS | {"__import__": _import_for(lab)},
    }
    for name, source in cells.items():
        exec(compile(source, f"<cell {name}>", "exec", dont_inherit=True), namespace)
    return namespace


def where(error: BaseException) -> str:
    """An error of a cell that was run alone in words, with the line and the cell."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame for frame in frames if frame.filename.startswith("<cell ")]
    place = f" (line {lines[-1].lineno} of the {lines[-1].filename[1:-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{place}"


def _import_for(lab: Lab) -> Any:
    """`__import__` that finds what grading has; modules import one another as ever."""

    def find(name: str, *args: Any, **named: Any) -> Any:
        if not _is_allowed(name, lab):
            raise ModuleNotFoundError(f"No module named {name!r} in grading", name=name)
        return builtins.__import__(name, *args, **named)

    return find


def _is_allowed(module: str, lab: Lab) -> bool:
    top = module.partition(".")[0]
    return top in sys.stdlib_module_names or top in lab.packages


def imports_of(source: str) -> list[str]:
    """Modules that running a source imports for certain: not in a function, a branch or a `try`."""
    body = [
        node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    return [name for name, _ in _imports(body)]


def _imports(body: Iterable[ast.AST]) -> Iterator[tuple[str, int]]:
    """Modules that statements import, and where; not those whose failure is caught."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node.lineno
        elif isinstance(node, ast.Try) and any(map(_catches_imports, node.handlers)):
            yield from _imports([*node.handlers, *node.orelse, *node.finalbody])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _imports(node.orelse)
        else:
            yield from _imports(ast.iter_child_nodes(node))


def _catches_imports(handler: ast.ExceptHandler) -> bool:
    caught = [] if handler.type is None else list(ast.walk(handler.type))
    return handler.type is None or any(isinstance(n, ast.Name) and n.id in CATCHES for n in caught)


def _codes(source: str) -> Iterator[CodeType]:
    """The code objects of a source, outermost first; none where it does not compile."""
    try:
        waiting = [compile(source, "<cell>", "exec", dont_inherit=True)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    while waiting:
        code = waiting.pop(0)
        yield code
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _bound(source: str) -> set[str]:
    """Global names that a source defines, those of its functions' `global` included."""
    found: set[str] = set()
    for number, code in enumerate(_codes(source)):
        for step in dis.get_instructions(code):
            if step.opname == "STORE_GLOBAL" or (step.opname == "STORE_NAME" and number == 0):
                found.add(step.argval)
    return found | {name for module in STAR.findall(source) for name in _public(module)}


def _public(module: str) -> list[str]:
    """Names that `from module import *` brings; none of a module that is not at hand."""
    if module in sys.stdlib_module_names:
        return dir(importlib.import_module(module))
    return dir(sys.modules[module]) if module in sys.modules else []


def _used(source: str) -> list[tuple[str, int]]:
    """Global names that a source reads, each with the first line that does."""
    found: dict[str, int] = {}
    for code in _codes(source):
        own = {s.argval for s in dis.get_instructions(code) if s.opname == "STORE_NAME"}
        for step in dis.get_instructions(code):
            if step.opname in READS and (step.opname == "LOAD_GLOBAL" or step.argval not in own):
                line = step.positions.lineno if step.positions else None
                found.setdefault(step.argval, line or code.co_firstlineno)
    return sorted(found.items(), key=lambda item: item[1])
