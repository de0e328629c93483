"""What several tests do with a reader's functions and generators."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labkit.reader.subject import Subject, Wrong

Events = list[tuple[Any, ...]]
Calls = Sequence[Sequence[Any]]


def _network() -> Any:
    """The network of `given.py`, which runs on this side of the pipe; only ranks are beyond it."""
    path = Path(__file__).resolve().parents[1] / "given.py"
    spec = importlib.util.spec_from_file_location("labkit_network_parallelism", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NETWORK = _network()


class Steps:
    """A rank beyond the pipe, whose wishes are looked at before anybody grants them."""

    def __init__(self, student: Subject, rank: Any) -> None:
        """`rank` is an instance of `given.py`'s `Rank`."""
        self._student, self._rank = student, rank

    def step(self, answer: Any) -> list[Any]:
        """Answer the latest wish and return the next.

        Raises:
            Wrong: the rank raised, or its wish is none.
        """
        wish = self._rank.call("step", answer)
        if not _is_wish(wish):
            self._student.fail(f"called a rank's generator\nexpected a wish\ngot {wish!r:.200}")
        if wish[0] in ("Send", "AllReduce"):
            wish[-1] = np.asarray(wish[-1])
        return wish  # type: ignore[no-any-return]


def _is_wish(wish: Any) -> bool:
    if type(wish) is not list or not wish or type(wish[0]) is not str:
        return False
    kind, *rest = wish
    if kind in ("Return", "AllGather"):
        return len(rest) == 1
    if kind == "AllReduce":
        return len(rest) == 1 and _is_numbers(rest[0])
    if kind == "Send":
        return len(rest) == 2 and type(rest[0]) is int and _is_numbers(rest[1])
    if kind == "Receive" and len(rest) == 2 and type(rest[0]) is int and type(rest[1]) is list:
        return all(type(one) is int for one in rest[1])
    return False


def _is_numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) or type(value) in (int, float)


def words_of(student: Subject, name: str, calls: Calls) -> str:
    """A run in words."""
    return student.said("run", name, [list(args) for args in calls])


def ran(student: Subject, name: str, calls: Calls, because: str = "") -> tuple[list[Any], Events]:
    """Run a generator on a rank for each call: what they return, and what was carried out.

    Raises:
        Wrong: a rank raised, waits for ever, or has changed an argument.
    """
    ranks = [student.new("Rank", name, *args) for args in calls]
    said = words_of(student, name, calls)
    try:
        values, events = NETWORK.network([Steps(student, rank) for rank in ranks])
    except NETWORK.Stuck as stuck:
        reason = f"  ({because})" if because else ""
        student.fail(f"called {said}\nexpected every rank to return{reason}\ngot {stuck}")
    for number, args in enumerate(calls):
        for place, given in enumerate(args):
            kept = ranks[number].call("argument", place)
            words = f"{said}, and looked at argument {place} of rank {number} afterwards"
            student.compare(words, _filled(kept), _filled(given))
    return values, events


def _filled(value: Any) -> Any:
    """A value in which NaN equals NaN."""
    is_float = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return np.nan_to_num(value) if is_float else value


def expect(
    student: Subject, name: str, calls: Calls, want: Any, because: str = "", tolerance: float = 1e-9
) -> Events:
    """Run a generator on ranks and compare what they return; the events are returned."""
    values, events = ran(student, name, calls, because)
    said = words_of(student, name, calls)
    student.compare(f"{said}, what the ranks returned", values, want, tolerance, because)
    return events


def asked(student: Subject, events: Events, kinds: list[str], words: str) -> None:
    """Complain unless exactly these things were carried out, in this order."""
    got = [event[0] for event in events]
    if got != kinds:
        student.fail(f"called {words}\nexpected {kinds} to be carried out\ngot {got!r:.200}")


def messages(student: Subject, events: Events, words: str) -> list[tuple[int, int, Any]]:
    """(source, to, array) of each message; complain of collectives, which are not asked for."""
    others = sorted({event[0] for event in events} - {"Send"})
    if others:
        student.fail(f"called {words}\nexpected Send and Receive alone\ngot {', '.join(others)}")
    return [(source, to, x) for _, source, to, x in events]


def sent_by(sent: list[tuple[int, int, Any]], rank: int) -> list[list[Any]]:
    """What a rank sent, [to, array], in order."""
    return [[to, x] for source, to, x in sent if source == rank]


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


def refuses(student: Subject, name: str, *args: Any, because: str) -> None:
    """Start a generator and expect ValueError before its first wish."""
    try:
        got = student.new("Rank", name, *args).call("step", None)
    except Wrong as wrong:
        if "\ngot ValueError" in str(wrong):
            return
        raise
    said = words_of(student, name, [args])
    student.fail(f"called {said}\nexpected ValueError  ({because})\ngot {got!r:.160}")


def pure(student: Subject, name: str, *args: Any, want: Any, because: str = "") -> None:
    """Call a function: it gives `want`, and no argument changes."""

    def said() -> str:
        return student.said(name, *args)

    value, after = student.call_returning(range(len(args)), name, *args)
    student.compare(said, value, want, 1e-9, because)
    for place, (left, given) in enumerate(zip(after, args, strict=True)):
        student.compare(f"{name}, and looked at argument {place} afterwards", left, given)


def count(value: Any) -> int:
    """Numbers in lists, dicts and arrays."""
    if isinstance(value, np.ndarray):
        return int(value.size)
    if isinstance(value, dict):
        return sum(count(one) for one in value.values())
    return sum(map(count, value)) if isinstance(value, list) else 1
