"""What a page shows is what its reader has: shown cells use only names that shown cells bind.

A cell tagged `remove-cell` or `remove-input` has no code on the page; one tagged `hide-input` is
folded, and its code is there at a click. Of every page, the shown and folded cells are read in
order: a name that they load is a builtin, or the cell that bound it last is one of them. So a name
that only a removed cell defines is a fault, and so is one that a removed cell binds anew between
two shown ones, because there the page's value and the reader's part.
"""

from __future__ import annotations

import ast
import builtins
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sources
import yaml
from bookmeta import ROOT

NOT_SHOWN = {"remove-cell", "remove-input"}
FOLDED = "hide-input"


@dataclass(frozen=True)
class Cell:
    """A code cell of a page: the line of its first line of code, its tags, its code."""

    line: int
    tags: frozenset[str]
    code: str

    @property
    def shown(self) -> bool:
        return not self.tags & NOT_SHOWN


def cells(text: str) -> list[Cell]:
    """The code cells of a MyST page, in order, with both forms of options read."""
    found = []
    for match in re.finditer(r"^(`{3,})\{code-cell\}.*\n((?s:.*?))^\1$", text, flags=re.M):
        lines = match[2].splitlines()
        if lines[:1] == ["---"]:
            count = lines.index("---", 1) + 1
            options = lines[1 : count - 1]
        else:
            count = next(
                (i for i, line in enumerate(lines) if not line.startswith(":")), len(lines)
            )
            options = [line[1:] for line in lines[:count]]
        tags = (yaml.safe_load("\n".join(options)) or {}).get("tags", [])
        while count < len(lines) and not lines[count]:
            count += 1
        first = text.count("\n", 0, match.start(2)) + 1 + count
        found.append(Cell(first, frozenset(tags), "\n".join(lines[count:])))
    return found


@dataclass
class Names(ast.NodeVisitor):
    """The names that a scope loads and binds, in the order in which Python does so.

    `events` holds (name, line, kind); a kind is "load", "bind", or, of a function's body, which
    runs only when it is called, "needs", then with the name of that function.
    """

    events: list[tuple[str, int, str]] = field(default_factory=list)
    needs: dict[str, set[str]] = field(default_factory=dict)  # of a function, by its name

    def note(self, name: str, node: ast.AST, kind: str) -> None:
        self.events.append((name, getattr(node, "lineno", 1), kind))

    def visit_Name(self, node: ast.Name) -> None:
        self.note(node.id, node, "load" if isinstance(node.ctx, ast.Load) else "bind")

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            self.note((alias.asname or alias.name).split(".")[0], node, "bind")

    visit_ImportFrom = visit_Import

    def visit_Assign(self, node: ast.Assign) -> None:
        self.each(node.value, *node.targets)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.note(node.target.id, node, "load")
        self.each(node.value, node.target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.each(node.annotation, node.value)
        if node.value is not None:
            self.visit(node.target)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.each(node.value, node.target)

    def visit_For(self, node: ast.For) -> None:
        self.each(node.iter, node.target, *node.body, *node.orelse)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.each(node.type)
        if node.name:
            self.note(node.name, node, "bind")
        self.each(*node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        arguments = node.args
        self.each(*node.decorator_list, *arguments.defaults, *arguments.kw_defaults, node.returns)
        self.each(*(argument.annotation for argument in _arguments(arguments)))
        self.note(node.name, node, "bind")
        self.body(node.name, free({a.arg for a in _arguments(arguments)}, *node.body))

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.each(*node.decorator_list, *node.bases, *node.keywords)
        self.note(node.name, node, "bind")
        self.body(node.name, free(set(), *node.body))

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.each(*node.args.defaults, *node.args.kw_defaults)
        for name, line in free({a.arg for a in _arguments(node.args)}, node.body).items():
            self.events.append((name, line, "load"))

    def visit_ListComp(self, node: ast.ListComp | ast.DictComp) -> None:
        inside: list[ast.AST] = []
        for part in node.generators:
            inside += [part.iter, part.target, *part.ifs]
        inside += [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        for name, line in free(set(), *inside).items():
            self.events.append((name, line, "load"))

    visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_ListComp  # type: ignore[assignment]

    def each(self, *nodes: ast.AST | None) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def body(self, name: str, loads: dict[str, int]) -> None:
        self.needs[name] = set(loads)
        self.events += [(load, line, "needs") for load, line in loads.items()]


def _arguments(arguments: ast.arguments) -> list[ast.arg]:
    extra = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *extra]


def free(bound: set[str], *nodes: ast.AST) -> dict[str, int]:
    """The names that an inner scope takes from around it, each with the line of a use."""
    inner = Names()
    inner.each(*nodes)
    bound = bound | {name for name, _, kind in inner.events if kind == "bind"}
    return {n: line for n, line, kind in inner.events if kind != "bind" and n not in bound}


def faults(text: str) -> list[str]:
    """Every name that a shown cell of a page uses and that its reader lacks."""
    found: dict[tuple[int, str], str] = {}  # by the cell's line and the name, at its first use
    last: dict[str, Cell] = {}  # the cell that bound a name last
    needs: dict[str, set[str]] = {}

    def missing(name: str, seen: set[str]) -> str | None:
        """What a use of `name` lacks: itself, or what the function of that name needs."""
        if name in seen:
            return None
        if name not in last:
            known = hasattr(builtins, name) or name.startswith("__")
            return None if known else f"`{name}`, which no earlier cell binds"
        if not last[name].shown:
            return f"`{name}`, which the removed cell at line {last[name].line} binds"
        inner = (missing(need, seen | {name}) for need in sorted(needs.get(name, ())))
        return next((f"`{name}()`, and so {lack}" for lack in inner if lack), None)

    for cell in cells(text):
        names = Names()
        names.visit(ast.parse(cell.code))
        # A function's body runs after its definition: its names are looked up at the cell's end.
        now = [event for event in names.events if event[2] != "needs"]
        for name, line, kind in now + [event for event in names.events if event[2] == "needs"]:
            if kind == "bind":
                last[name] = cell
                needs.pop(name, None)
                if name in names.needs:
                    needs[name] = names.needs[name]
            elif cell.shown and (lack := missing(name, set())):
                at = f"{cell.line + line - 1}: the cell at line {cell.line} uses {lack}"
                found.setdefault((cell.line, name), at)
    return list(found.values())


PAGES = [page for page in sources.pages() if cells(page.read_text("utf8"))]
CHAPTERS = [page for page in PAGES if "chapters" in page.parts]


def test_there_are_pages_with_cells() -> None:
    assert len(CHAPTERS) >= 4


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_shown_cells_use_what_is_shown(path: Path) -> None:
    found = [f"{path.relative_to(ROOT)}:{fault}" for fault in faults(path.read_text("utf8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_setup_comes_first_and_is_folded(path: Path) -> None:
    first = cells(path.read_text("utf8"))[0]
    assert FOLDED in first.tags, f"{path.relative_to(ROOT)}:{first.line}: tag it {FOLDED}"


def page_of(*parts: tuple[str, str]) -> str:
    """A page of cells, given as (tag or nothing, code)."""
    return "# T\n\n" + "\n\ntext\n\n".join(
        "```{code-cell} ipython3\n" + (f":tags: [{tag}]\n\n" if tag else "") + code + "\n```"
        for tag, code in parts
    )


@pytest.mark.parametrize(
    ("parts", "lacks"),
    [
        ([("remove-cell", "x = 1"), ("", "print(x)")], ["x"]),
        ([("remove-input", "import math"), ("", "math.pi")], ["math"]),
        ([("", "print(nowhere)")], ["nowhere"]),
        ([("", "print(x)\nx = 1")], ["x"]),  # the order within a cell counts
        ([("", "x = 1"), ("remove-cell", "x = 2"), ("", "x += 1")], ["x"]),  # bound anew, unseen
        ([("", "def f():\n    return x"), ("remove-cell", "x = 2")], ["x"]),
        ([("", "x = 1\ndef f():\n    return x"), ("remove-cell", "x = 2"), ("", "f()")], ["f"]),
        ([("", "[y for y in range(3) if y < x]")], ["x"]),
        ([("", "def f(a=x):\n    b = a\n    return a + b")], ["x"]),
        ([("", "class C(B):\n    def f(self):\n        return g(self)")], ["B", "g"]),
        ([("hide-input", "x = 1"), ("", "print(x)")], []),  # folded code is there at a click
        ([("", "def f():\n    return later\nlater = 1\nf()")], []),
        ([("remove-cell", "x = 1\nprint(unknown)"), ("", "x = 2\nx")], []),
        ([("", "i = 1"), ("remove-cell", "[i for i in ()]"), ("", "i")], []),  # its own scope
    ],
)  # fmt: skip
def test_the_check_sees_what_a_reader_lacks(parts: list[tuple[str, str]], lacks: list[str]) -> None:
    found = faults(page_of(*parts))
    assert [re.findall(r"uses `(\w+)", fault)[0] for fault in found] == lacks


def test_a_fault_names_the_line_the_cell_and_the_name() -> None:
    [fault] = faults(page_of(("remove-cell", "x = 1"), ("", "y = 2\nprint(y, x)")))
    assert fault == "13: the cell at line 12 uses `x`, which the removed cell at line 6 binds"


def test_both_forms_of_options_are_read() -> None:
    code = "```{code-cell}\n---\ntags: [remove-cell]\nmystnb:\n  a: 1\n---\n\nx = 1\n```\n"
    [cell] = cells("# T\n\n" + code)
    assert cell == Cell(10, frozenset({"remove-cell"}), "x = 1")
