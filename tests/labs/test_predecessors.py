"""The reference behind stand-ins: it answers, and cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from probe import LIMITS, NUMPY

from labkit.grading.predecessors import Relay, interface_of
from labkit.sandbox.process import (
    Child,
)

STARTER = """
import math
LIMIT = 3
class TooMany(Exception):
    pass
class Pool:
    def __init__(self, size):
        raise NotImplementedError("write pool")
    def take(self, n, into):
        raise NotImplementedError("write pool")
def scale(values, by=2):
    raise NotImplementedError("write pool")
"""
REFERENCE = """
LIMIT = 3
SECRET = "how it is done"
class TooMany(Exception):
    pass
class Pool:
    def __init__(self, size):
        self.left = size
    def take(self, n, into):
        if n > self.left:
            raise TooMany(f"{n} of {self.left}")
        self.left -= n
        into.append(n)
        return self.left
def scale(values, by=2):
    values *= by
    return values.sum()
"""


@pytest.fixture
def relayed() -> Iterator[tuple[Child, Relay]]:
    interface = interface_of({"pool": STARTER})
    with Child(NUMPY, LIMITS) as behind:
        relay = Relay(behind, interface, [("pool", REFERENCE)])
        relay.reset()
        with Child(NUMPY, LIMITS, helper=relay) as child:
            yield child, relay


def _ask_through(child: Child, body: str) -> Any:
    interface = interface_of({"pool": STARTER})
    lines = "\n".join(f"    {line}" for line in body.strip().split("\n"))
    cells = [*interface.open, ("probe", f"def probe():\n{lines}")]
    message = {"op": "load", "stand_ins": interface.stand_ins, "cells": cells}
    assert "error" not in child.request(message)
    reply = child.request({"op": "call", "name": "probe", "args": []})
    return reply.get("value", reply.get("error"))


def test_stand_ins_do_what_the_reference_does(relayed: tuple[Child, Relay]) -> None:
    body = """
import numpy
pool, other, taken = Pool(size=LIMIT), Pool(10), []
array = numpy.ones(3)
found = [pool.take(2, taken), pool.left, other.left, float(scale(array, by=4)), array.tolist()]
try:
    pool.take(5, into=taken)
except TooMany as error:
    found.append(str(error))
return [*found, taken, Pool.__name__]
"""
    assert _ask_through(relayed[0], body) == [
        1, 1, 10, 12.0, [4.0, 4.0, 4.0], "5 of 1", [2], "Pool",
    ]  # fmt: skip


def test_a_view_that_nobody_may_write_to(relayed: tuple[Child, Relay]) -> None:
    """A diagonal is read-only in NumPy: it is handed over, and nothing is written back."""
    body = "import numpy\nreturn float(scale(numpy.diag(numpy.eye(3))))"
    assert _ask_through(relayed[0], body) == 6.0


def test_the_reference_cannot_be_read(relayed: tuple[Child, Relay]) -> None:
    body = """
import gc
pool, seen = Pool(3), []
for thing in gc.get_objects():
    if type(thing) in (dict, list, tuple):
        inside = thing.values() if type(thing) is dict else thing
        seen += [text for text in list(inside) if type(text) is str]
words = [word[::-1] for word in ("enod si ti woh", "n =- tfel.fles")]  # not found in this cell
return sum(word in text for text in seen for word in words)
"""
    child, _ = relayed
    assert _ask_through(child, body) == 0
    assert "AttributeError" in _ask_through(child, "return Pool(3).__reference__")


@pytest.mark.parametrize(
    "asked",
    [
        None,
        {"op": "load", "cells": [["x", "open('/x')"]]},
        {"op": "call", "name": "open", "args": ["/child.py"]},
        {"op": "call", "name": "SECRET", "args": []},
        {"op": "get", "handle": 0, "name": "__dict__"},
        {"op": "method", "handle": 0, "name": "__class__", "args": []},
        {"op": "new", "name": ["Pool"], "args": []},
    ],
    ids=str,
)
def test_only_what_a_stand_in_would_ask_is_answered(
    relayed: tuple[Child, Relay], asked: Any
) -> None:
    assert relayed[1](asked) == {"error": "RuntimeError: a stand-in has no such request"}


def test_a_bad_request_to_the_reference_is_an_error_of_the_reader(
    relayed: tuple[Child, Relay],
) -> None:
    _, relay = relayed
    assert "IndexError" in relay({"op": "get", "handle": 7, "name": "left"})["error"]
    assert "KeyError" in relay({"op": "call", "name": "scale"})["error"]
