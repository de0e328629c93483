"""`Subject`: the reader's code as a check or a hidden test sees it.

A test asks for a call and compares what comes back. Whether the code runs in the same
notebook (`labkit.check`) or in a sandboxed child (`labkit grade`) is the transport's
business, so one test can be written for both.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from labkit.reader.values import MAX_SHOWN, describe, difference, in_full
from labkit.sandbox.child import Executor, from_wire, to_wire
from labkit.sandbox.process import Child, ChildLost

Transport = Callable[[dict[str, Any]], dict[str, Any]]
MAX_ANSWER = 480  # characters of an answer, where a complaint is in full
MAX_ARGUMENT = 180  # characters of one argument in a message
LATEST = 12  # calls of an object that a message tells
Said = Callable[[], str]  # a call in words: made only when there is something to complain about


class Wrong(AssertionError):
    """The code did not do what was asked; the message says what was called and came back."""


def in_notebook(
    namespace: dict[str, Any], through: tuple[type[BaseException], ...] = ()
) -> Transport:
    """Reach the functions of a notebook's namespace, with copies of the arguments.

    `through` and an interrupt from the keyboard reach the caller; other exceptions of the
    code are an answer.
    """
    executor = Executor(namespace, (KeyboardInterrupt, *through))

    def send(request: dict[str, Any]) -> dict[str, Any]:
        reply = executor.handle(json.loads(json.dumps(request)))
        if "error" in reply:
            return reply
        return {"value": from_wire(reply["value"]), "args": from_wire(reply.get("args", []))}

    return send


def in_child(child: Child) -> Transport:
    """Reach the cells that a child has loaded; a lost child is an error of the code."""

    def send(request: dict[str, Any]) -> dict[str, Any]:
        try:
            return child.request(request)
        except ChildLost as lost:
            return {"error": str(lost)}

    return send


class _Caller:
    """Sends requests and complains about what comes back."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def send(self, said: Said, request: dict[str, Any]) -> dict[str, Any]:
        reply = self.transport(request)
        if "error" in reply:
            self.fail(f"called {said()}\ngot {reply['error']}")
        return reply

    def fail(self, words: str) -> None:
        raise Wrong(words)


class Subject:
    """The functions and classes that the reader has written."""

    def __init__(self, transport: Transport, *, in_full: bool = False) -> None:
        """Speak to the code through `transport`.

        With `in_full` a complaint shows every call and argument whole, so that a reader can make
        the call; without it both are cut to a line or two.
        """
        self._caller = _Caller(transport)
        self._in_full = in_full
        self.source = ""  # of the reader's cells, where a lab's tests compile it
        self.unsafe_local = False  # whether that may happen without bubblewrap

    def said(self, name: str, *args: Any) -> str:
        """A call in words."""
        shown = [in_full(a) if self._in_full else describe(a, MAX_ARGUMENT) for a in args]
        return f"{name}({', '.join(shown)})"

    def history(self, made: str, calls: Sequence[str]) -> str:
        """An object's making and its calls, or the latest of them, in words."""
        return history(made, calls, len(calls) if self._in_full else LATEST)

    def fail(self, words: str) -> None:
        """Complain in the test's own words.

        Raises:
            Wrong: always.
        """
        self._caller.fail(words)

    def call(self, name: str, *args: Any, said: Said | None = None) -> Any:
        """Call a function and return its value; `said` words the call for a complaint.

        Raises:
            Wrong: it raised, gave no plain value, or the child is gone.
        """
        return self.call_returning((), name, *args, said=said)[0]

    def call_returning(
        self, returning: Sequence[int], name: str, *args: Any, said: Said | None = None
    ) -> tuple[Any, list[Any]]:
        """Call a function; return its value and the arguments at `returning` as it left them."""
        said = said or (lambda: self.said(name, *args))
        request = {"op": "call", "name": name, "args": to_wire(args), "returning": list(returning)}
        reply = self._caller.send(said, request)
        if len(reply["args"]) != len(returning):
            self.fail(f"called {said()}\ngot its arguments back incomplete")
        return reply["value"], reply["args"]

    def expect(
        self,
        name: str,
        *args: Any,
        want: Any,
        tolerance: float = 0.0,
        because: str = "",
        said: Said | None = None,
    ) -> None:
        """Call a function and compare its value with `want`.

        Raises:
            Wrong: the value differs, or there is none; the message says the call (as `said` words
                it, where that is given), what was expected and came back, and `because`.
        """
        with self.wanting(want, because):
            got = self.call(name, *args, said=said)
        self.compare(said or (lambda: self.said(name, *args)), got, want, tolerance, because)

    def expect_pure(
        self, name: str, *args: Any, want: Any, tolerance: float = 0.0, because: str = ""
    ) -> Any:
        """`expect`, and that no argument changes; return the value."""

        def said() -> str:
            return self.said(name, *args)

        with self.wanting(want, because):
            value, after = self.call_returning(range(len(args)), name, *args)
        self.compare(said, value, want, tolerance, because)
        for place, (left, given) in enumerate(zip(after, args, strict=True)):
            call = f"{name}, and looked at argument {place} afterwards"
            self.compare(call, left, given, because="no function changes its arguments")
        return value

    def refuses(self, name: str, *args: Any, because: str = "") -> None:
        """Call a function, or make an object, and expect ValueError.

        Raises:
            Wrong: it gave something, or raised another exception.
        """
        try:
            got = describe(self.call(name, *args))
        except Wrong as wrong:
            got = answer_of(wrong)
        self.require_error("ValueError", lambda: self.said(name, *args), got, because)

    def require_error(self, error: str, said: Said, got: str, because: str) -> None:
        """Complain about an answer that is no exception of this name."""
        if not got.startswith(error):
            reason = f"  ({because})" if because else ""
            self.fail(f"called {said()}\nexpected {error}{reason}\ngot {got}")

    def compare(
        self, call: str | Said, got: Any, want: Any, tolerance: float = 0.0, because: str = ""
    ) -> None:
        """Compare a value that `call` gave; see `expect`."""
        found = difference(got, want, tolerance)
        if found is not None:
            call = call if isinstance(call, str) else call()
            detail = "" if "at " not in found[:4] and "shape" not in found else f"\n{found}"
            answer = describe(got, MAX_ANSWER if self._in_full else MAX_SHOWN)
            expected = self._expected(want, because)
            self.fail(f"called {call}\n{expected}\ngot {answer}{detail}")

    @contextlib.contextmanager
    def wanting(self, want: Any, because: str = "") -> Iterator[None]:
        """Add what was expected to the complaint about a call that gave no value."""
        try:
            yield
        except Wrong as wrong:
            call, got, answer = str(wrong).partition("\ngot ")
            raise Wrong(f"{call}\n{self._expected(want, because)}{got}{answer}") from None

    def _expected(self, want: Any, because: str) -> str:
        """The line of a complaint that says what was expected, and why."""
        shown = in_full(want) if self._in_full else describe(want)
        return f"expected {shown}" + (f"  ({because})" if because else "")

    def new(self, name: str, *args: Any) -> Instance:
        """Make an object of one of the reader's classes."""
        request = {"op": "new", "name": name, "args": to_wire(args)}
        reply = self._caller.send(lambda: self.said(name, *args), request)
        if type(reply["value"]) is not int:
            self.fail(f"called {self.said(name, *args)}\ngot {describe(reply['value'])}")
        return Instance(self, self._caller, (name, args), reply["value"])


class Instance:
    """An object of the reader's, driven from outside; it knows the calls it has had."""

    def __init__(
        self, subject: Subject, caller: _Caller, made: tuple[str, Sequence[Any]], handle: int
    ) -> None:
        self._subject, self._caller = subject, caller
        self._history, self._handle = [made], handle

    def _said(self, last: str) -> str:
        """Say how the object was made, its latest calls and `last`."""
        (made, arguments), *calls = self._history
        told = [f".{self._subject.said(name, *args)}" for name, args in calls]
        made = self._subject.said(made, *arguments)
        return self._subject.history(made, [*told, last] if last else told)

    def call(self, name: str, *args: Any) -> Any:
        """Call a method and return its value."""
        request = {"op": "method", "handle": self._handle, "name": name, "args": to_wire(args)}

        def said() -> str:  # made only when there is something to complain about
            return self._said(f".{self._subject.said(name, *args)}")

        reply = self._caller.send(said, request)
        self._history.append((name, args))
        return reply["value"]

    def expect(
        self, name: str, *args: Any, want: Any, tolerance: float = 0.0, because: str = ""
    ) -> None:
        """Call a method and compare its value with `want`; see `Subject.expect`."""
        with self._subject.wanting(want, because):
            got = self.call(name, *args)  # the history now ends with this call
        self._subject.compare(lambda: self._said(""), got, want, tolerance, because)

    def expect_error(self, error: str, name: str, *args: Any, because: str = "") -> None:
        """Call a method and expect the exception of this name; the call joins the object's."""
        try:
            got = describe(self.call(name, *args))  # the history now ends with this call
        except Wrong as wrong:
            got = answer_of(wrong)
            self._history.append((name, args))
        self._subject.require_error(error, lambda: self._said(""), got, because)

    def expect_attribute(self, name: str, want: Any, because: str = "") -> None:
        """Read an attribute and compare it with `want`."""
        request = {"op": "get", "handle": self._handle, "name": name}
        reply = self._caller.send(lambda: self._said(f".{name}"), request)
        self._subject.compare(lambda: self._said(f".{name}"), reply["value"], want, 0.0, because)


def answer_of(wrong: Wrong) -> str:
    """Return what came back of a call, as a complaint tells it."""
    return str(wrong).partition("\ngot ")[2]


def history(made: str, calls: Sequence[str], latest: int = LATEST) -> str:
    """Say how an object was made and its latest calls; those before them are counted."""
    hidden = max(0, len(calls) - latest)
    cut = [f"… {hidden} call{'s' * (hidden > 1)} before …"] if hidden else []
    return "; ".join([made, *cut, *calls[hidden:]])
