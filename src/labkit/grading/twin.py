"""`Twin`: a reader's object and an oracle driven together: the same calls, the same answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labkit.reader.subject import Subject, Wrong, history
from labkit.reader.values import describe, difference

View = Callable[[Any], Any]


def _listed(args: tuple[Any, ...]) -> str:
    return ", ".join(describe(arg) for arg in args)


class Twin:
    """An object of the reader's and an oracle of the same methods."""

    def __init__(self, student: Subject, oracle: Any, *args: Any) -> None:
        """Make the reader's object of the class that the oracle's `NAME` says."""
        self.oracle = oracle
        self._student = student
        self._object = student.new(oracle.NAME, *args)
        self._made = f"{oracle.NAME}({_listed(args)})"
        self._calls: list[str] = []

    def call(
        self, name: str, *args: Any, because: str = "", view: View = lambda value: value
    ) -> Any:
        """Call a method of both and compare; return the oracle's answer, None where it refuses.

        `view` leaves out of an answer what a test does not judge; a complaint shows it all.
        """
        try:
            want = getattr(self.oracle, name)(*args)
        except ValueError:
            self._refused(name, *args)
            return None
        self._calls.append(f".{name}({_listed(args)})")
        got = self._object.call(name, *args)
        if difference(view(got), view(want)) is not None:
            self._student.compare(history(self._made, self._calls), got, want, because=because)
        return want

    def _refused(self, name: str, *args: Any) -> None:
        try:
            got = repr(self._object.call(name, *args))
        except Wrong as wrong:
            if "\ngot ValueError" in str(wrong):
                return
            raise
        said = history(self._made, [*self._calls, f".{name}({_listed(args)})"])
        self._student.fail(f"called {said}\nexpected ValueError\ngot {got}")
