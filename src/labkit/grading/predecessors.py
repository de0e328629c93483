"""The reference in place of the tasks that a task builds on, kept out of the reader's sight.

Each task is graded with the reference's code for the tasks it needs. That code runs in a child
of its own; the reader's child holds stand-ins with the names that the starter shows, and the
parent carries the calls across. So no cell can read a solution, or keep it for later.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Any

from labkit.sandbox.child import from_wire, to_wire
from labkit.sandbox.process import UNUSABLE, Child, ChildLost, Request

OPERATIONS = ("call", "new", "method", "get")
LINE = re.compile(r" \(line \d+ of the cell[^)]*\)$")  # of the reference's, so none of the reader's
FIELDS = ("op", "name", "handle", "args", "named", "returning")


@dataclass(frozen=True)
class Interface:
    """What the starter of some tasks shows.

    `stand_ins` maps a function to None and a class to its methods, for all that the reader is
    asked to write; `open` is the source of the rest, which hides nothing: imports, constants,
    exceptions.
    """

    stand_ins: dict[str, list[str] | None] = field(default_factory=dict)
    open: list[tuple[str, str]] = field(default_factory=list)


def interface_of(starters: dict[str, str]) -> Interface:
    """Read the interface of tasks from their starter cells."""
    found = Interface()
    for task, source in starters.items():
        kept = []
        for statement in ast.parse(source).body:
            if not _asks_for_work(statement):
                kept.append(ast.get_source_segment(source, statement) or "")
            elif isinstance(statement, ast.ClassDef):
                methods = [f.name for f in statement.body if isinstance(f, ast.FunctionDef)]
                found.stand_ins[statement.name] = [m for m in methods if m != "__init__"]
            elif isinstance(statement, ast.FunctionDef):
                found.stand_ins[statement.name] = None
        found.open.append((task, "\n".join(kept)))
    return found


def _asks_for_work(statement: ast.stmt) -> bool:
    """Whether the starter's `raise NotImplementedError` stands in a statement."""
    return any(
        isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id == "NotImplementedError"
        for node in ast.walk(statement)
    )


class Relay:
    """Carries what stand-ins ask to a child that holds the reference, and its answers back."""

    def __init__(self, child: Child, interface: Interface, cells: list[tuple[str, str]]) -> None:
        """Serve `interface` from `child`, which loads the reference's `cells`."""
        self._child = child
        self._interface = interface
        self._cells = cells

    @property
    def is_lost(self) -> bool:
        """Whether the reference's child is gone: what the reader's cell asked of it ended it."""
        return self._child.is_lost

    def reset(self) -> None:
        """Load the reference anew: no object of an earlier test is left."""
        self._child.request({"op": "load", "cells": self._cells})

    def __call__(self, asked: Any) -> Request:
        """Answer a request of the reader's child, whatever it may have put into it."""
        if type(asked) is not dict or not self._is_allowed(asked):
            return {"error": "RuntimeError: a stand-in has no such request"}
        try:  # what is nested too deeply for reading there is so for writing here
            request = {key: to_wire(from_wire(asked[key])) for key in FIELDS if key in asked}
        except UNUSABLE as error:
            return {"error": f"{type(error).__name__}: {error}"}
        try:
            reply = self._child.request(request)
        except ChildLost as lost:
            return {"error": f"RuntimeError: the reference's {asked['name']}: {lost}"}
        if "error" in reply:
            return {"error": LINE.sub("", reply["error"])}
        return {"value": to_wire(reply["value"]), "args": to_wire(reply["args"])}

    def _is_allowed(self, asked: Request) -> bool:
        operation, name = asked.get("op"), asked.get("name")
        if operation not in OPERATIONS or type(name) is not str:
            return False
        methods = [m for found in self._interface.stand_ins.values() for m in found or []]
        if operation in ("call", "new"):
            return name in self._interface.stand_ins
        return name in methods if operation == "method" else not name.startswith("_")
