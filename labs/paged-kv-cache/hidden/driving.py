"""Driving a reader's object beside an oracle: the same calls to both, the same answers."""

from __future__ import annotations

from typing import Any

from labkit.reader.subject import Instance, Subject, Wrong, history
from labkit.reader.values import describe


class Refused(Exception):
    """The oracle's way to say that a call must raise; `error` is the name of the exception."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


class Pair:
    """A reader's object and its oracle; every call goes to both."""

    def __init__(self, student: Subject, oracle: Any, name: str, *args: Any) -> None:
        """Make the reader's object by its class name and arguments."""
        self.oracle = oracle
        self._student = student
        self._made = f"{name}({', '.join(describe(a) for a in args)})"
        self._instance: Instance = student.new(name, *args)
        self._calls: list[str] = []

    def call(self, name: str, *args: Any, because: str = "") -> Any:
        """Call a method of both; complain where they differ; return the oracle's answer."""
        said = f".{name}({', '.join(describe(a) for a in args)})"
        try:
            want = getattr(self.oracle, name)(*args)
        except Refused as refused:
            self._expect_error(refused.error, said, name, args, because)
            want = None
        else:
            self._instance.expect(name, *args, want=want, because=because)
        self._calls.append(said)
        return want

    def _expect_error(
        self, error: str, said: str, name: str, args: tuple[Any, ...], because: str
    ) -> None:
        try:
            got = describe(self._instance.call(name, *args))
        except Wrong as wrong:
            if f"\ngot {error}" in str(wrong):
                return
            got = str(wrong).partition("\ngot ")[2]
        reason = f"  ({because})" if because else ""
        called = history(self._made, [*self._calls, said])
        self._student.fail(f"called {called}\nexpected {error}{reason}\ngot {got}")
