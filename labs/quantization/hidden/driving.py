"""What several tests do with a reader's function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from labkit.reader.subject import Subject


def pure(student: Subject, name: str, *args: Any, want: Any, because: str = "") -> Any:
    """Call a function: it gives `want` in arrays of the same kinds, and no argument changes."""
    value = student.expect_pure(name, *args, want=want, because=because)
    same_types(student, lambda: student.said(name, *args), value, want)
    return value


def same_types(student: Subject, said: Callable[[], str], value: Any, want: Any) -> None:
    """Complain about an array, or one in a dict or list, that is not of the kind asked for.

    Integers of any width may stand for integers, and floating-point numbers for theirs.
    """
    if isinstance(want, np.ndarray):
        got = getattr(value, "dtype", None)
        if got is None or got.kind != want.dtype.kind:
            found = f"one of {got}" if got else "a list"
            student.fail(f"called {said()}\nexpected an array of {want.dtype}\ngot {found}")
    elif isinstance(want, list | dict):
        for key in want if isinstance(want, Mapping) else range(len(want)):
            same_types(student, said, value[key], want[key])
