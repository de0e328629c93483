"""What several tests do with a reader's function."""

from __future__ import annotations

from typing import Any

from labkit.reader.subject import Subject


def pure(student: Subject, name: str, *args: Any, want: Any, because: str = "") -> None:
    """Call a function: it gives `want`, and no argument changes."""
    value, after = student.call_returning(range(len(args)), name, *args)
    student.compare(lambda: student.said(name, *args), value, want, because=because)
    for place, (left, given) in enumerate(zip(after, args, strict=True)):
        call = f"{name}, and looked at argument {place} afterwards"
        student.compare(call, left, given, because="no function changes its arguments")
