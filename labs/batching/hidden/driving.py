"""Driving a reader's object and an oracle together: the same calls, the same answers."""

from __future__ import annotations

from typing import Any

from labkit.subject import Subject, Wrong


class Twin:
    """An object of the reader's and an oracle of the same methods."""

    def __init__(self, student: Subject, oracle: Any, *args: Any) -> None:
        """Make the reader's object of the class that the oracle's `NAME` says."""
        self.oracle = oracle
        self._student = student
        self._object = student.new(oracle.NAME, *args)

    def call(self, name: str, *args: Any, because: str = "") -> Any:
        """Call a method of both and compare; return the oracle's answer, None where it refuses."""
        try:
            want = getattr(self.oracle, name)(*args)
        except ValueError:
            self._refused(name, *args)
            return None
        self._object.expect(name, *args, want=want, because=because)
        return want

    def _refused(self, name: str, *args: Any) -> None:
        try:
            got = repr(self._object.call(name, *args))
        except Wrong as wrong:
            if "\ngot ValueError" in str(wrong):
                return
            raise
        said = ", ".join(map(repr, args))
        self._student.fail(f"called .{name}({said})\nexpected ValueError\ngot {got}")
