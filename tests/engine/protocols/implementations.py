"""Find the classes a suite runs on, and find out whether it tells a wrong one from a right."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest

Check = Callable[[Any], None]  # called with a class; fails if the class breaks the protocol


def load(name: str) -> type:
    """Return the class that `package.module:Class` names."""
    module, separator, attribute = name.partition(":")
    if not separator:
        raise pytest.UsageError(f"--impl {name!r}: must read package.module:Class")
    loaded: type = getattr(importlib.import_module(module), attribute)
    return loaded


def checks_of(suite: ModuleType) -> list[Check]:
    """Return a suite's functions `check_…`, in the order they are written."""
    return [value for name, value in vars(suite).items() if name.startswith("check_")]


def classes_of(mutants: ModuleType) -> list[type]:
    """Return the classes that a module of mutants defines."""
    return [
        value
        for name, value in vars(mutants).items()
        if isinstance(value, type) and value.__module__ == mutants.__name__ and name[0] != "_"
    ]


def killed_by(checks: Sequence[Check], mutant: type) -> str | None:
    """Return the name of the first check that the mutant fails."""
    for check in checks:
        try:
            check(mutant)
        except (Exception, pytest.fail.Exception):  # a mutant may break in any way
            return check.__name__
    return None
