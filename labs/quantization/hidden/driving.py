"""What several tests do with a reader's function."""

from __future__ import annotations

from typing import Any

from labkit.reader.subject import Subject, Wrong


def refused(student: Subject, name: str, *args: Any, because: str) -> None:
    """Call a function and expect ValueError."""
    try:
        got = repr(student.call(name, *args))
    except Wrong as wrong:
        if "\ngot ValueError" in str(wrong):
            return
        raise
    said = student.said(name, *args)
    student.fail(f"called {said}\nexpected ValueError  ({because})\ngot {got[:160]}")
