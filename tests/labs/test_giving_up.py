"""The grading child: how it is given up when it misbehaves, and what it says is doubted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from probe import LIMITS, NUMPY, ask

from labkit.sandbox import process
from labkit.sandbox.child import from_wire, to_wire
from labkit.sandbox.jail import find_bubblewrap
from labkit.sandbox.process import (
    Child,
    ChildLost,
    Limits,
    StartTooSlow,
    printable,
)
from labkit.sandbox.start import start


@pytest.fixture
def child() -> Iterator[Child]:
    with Child(NUMPY, LIMITS) as made:
        yield made


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("while True: pass", "no answer within 3 s"),
        ("import os; os._exit(0)", "the process ended"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the process ended"),
        ("import ctypes; ctypes.string_at(0)", "the process ended"),
        ("return 'x' * (2 << 20)", "larger than 1048576 bytes"),
        ("return [[]] * 110000", "more than 100000 lists"),
        ("return 1 << 2000", "not what the protocol allows"),
        ("import os\nfor n in range(3, 9):\n    try: os.write(n, b'{}\\n')\n"
         "    except OSError: pass", "not what the protocol allows"),
    ],
)  # fmt: skip
def test_a_child_that_stops_playing_is_given_up(child: Child, body: str, reason: str) -> None:
    with pytest.raises(ChildLost, match=reason):
        ask(child, body)
    with pytest.raises(ChildLost, match=reason):
        child.request({"op": "load", "cells": []})


def test_a_reply_to_another_request_is_refused(child: Child) -> None:
    body = """
import json
real = json.dumps
json.dumps = lambda value: real({**value, "id": value["id"] + 1})
return 5
"""
    with pytest.raises(ChildLost, match="not what the protocol allows"):
        ask(child, body)


def test_all_calls_together_have_a_limit() -> None:
    with Child(NUMPY, Limits(call_seconds=30, wall_seconds=0.5)) as child:
        with pytest.raises(ChildLost, match=r"the 0\.5 s of the task are used up"):
            ask(child, "while True: pass")
        assert child.is_out_of_time


def test_processor_time_has_a_limit() -> None:
    with (
        Child(NUMPY, Limits(call_seconds=60, cpu_seconds=1)) as child,
        pytest.raises(ChildLost, match="the process ended"),
    ):
        ask(child, "while True: pass")


def test_prints_do_not_disturb_the_answer(child: Child) -> None:
    assert ask(child, 'print(\'{"id": 1, "value": 7}\' * 100000)\nreturn 5') == 5


def test_an_error_is_short_and_can_be_printed_anywhere(child: Child) -> None:
    words = ask(child, "raise ValueError('\\x1b[2J\\ud800' + 'x' * 100000)")
    words.encode("utf8")
    assert "\x1b" not in words
    assert printable("a\nb" + "x" * 1000) == "a\nb" + "x" * 597 + "…"


@pytest.mark.parametrize(
    "bad",
    [
        {"$array": "AAAA", "dtype": "float64", "shape": [1 << 40]},
        {"$array": "", "dtype": "float64", "shape": [0, -1]},
        {"$array": "", "dtype": "float64", "shape": [0, 1 << 62, 1 << 62, "x"]},
        {"$array": "AAAAAAAAAAA=", "dtype": "object", "shape": [1]},
        {"$array": "AAAAAAAAAAA=", "dtype": "float64", "shape": 1},
        {"$array": "!", "dtype": "float64", "shape": [0]},
        {"$array": "Ag==", "dtype": "bool", "shape": [1]},
        {"$array": "AAAAAAAAAAA=", "dtype": ["float64"], "shape": [1]},
        {"$bytes": "zz"},
        1 << 1001,
    ],
    ids=str,
)
def test_what_is_no_array_bytes_or_number_is_refused(bad: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        from_wire(json.loads(json.dumps(bad)))


def test_depth_is_limited() -> None:
    nested: Any = 1
    for _ in range(40):
        nested = [nested]
    with pytest.raises(ValueError, match="more than 32"):
        from_wire(nested)


def test_values_come_back_as_they_went() -> None:
    value = {"a": [1, 2.5, None, True, "é", 1 << 900, -1], "b": b"\x00\xff"}
    assert from_wire(json.loads(json.dumps(to_wire(value)))) == value


def test_a_machine_too_busy_to_start_a_child_is_told_from_one_that_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "START_SECONDS", 0.0)
    with pytest.raises(StartTooSlow, match="the machine is busy"):
        Child(NUMPY)


def test_what_bubblewrap_has_begun_ends_with_a_grader_that_is_killed(tmp_path: Path) -> None:
    """Its inner process waits for its user's names before it asks to die with anybody."""
    # Without `--die-with-parent` bubblewrap never asks: it stays what it is while it waits.
    begins = f"{find_bubblewrap()} --unshare-pid --dev-bind / / sleep 600"
    (tmp_path / "bwrap").write_text(f"#!/bin/sh\n{begins} >/dev/null 2>&1 </dev/null &\nwait\n")
    (tmp_path / "bwrap").chmod(0o755)
    code = (
        "import time\n"
        "from labkit.sandbox.leash import Leash\n"
        "from labkit.sandbox.start import Limits, Surroundings, start\n"
        "child = start(Surroundings(), Limits(), False)\n"
        "leash = Leash(child.pid)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    named = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=named, stdout=subprocess.PIPE) as grader:
        assert grader.stdout is not None
        group = int(grader.stdout.readline())
        _wait_until(lambda: "sleep" in _living(group))
        grader.kill()
    _wait_until(lambda: not _living(group))


def test_a_child_that_was_not_ready_is_ended_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def noted(*given: Any) -> Any:
        child = start(*given)
        started.append(child.pid)
        return child

    monkeypatch.setattr(process, "start", noted)
    monkeypatch.setattr(process, "START_SECONDS", 0.0)
    for _ in range(20):
        with pytest.raises(StartTooSlow):
            Child(NUMPY)
    _wait_until(lambda: not any(map(_living, started)))


def _living(group: int) -> list[str]:
    """The names of the processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, _, of_group = rest.split()[:3]
        if int(of_group) == group and state != "Z":
            found.append(name)
    return found


def _wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    raise TimeoutError
