"""The grading child: what hostile or broken code can reach and what it earns."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labkit.lab import Lab
from labkit.report import Report
from labkit.sandbox import Child, ChildLost, Limits, NoSandbox

Grade = Callable[..., Report]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def child() -> Iterator[Child]:
    with Child(["numpy"], Limits(call_seconds=3.0, reply_bytes=1 << 20)) as made:
        yield made


def _ask(child: Child, body: str) -> object:
    """Run a function's body in the child and return what it gives."""
    lines = "\n".join(f"    {line}" for line in body.strip().split("\n"))
    reply = child.request({"op": "load", "cells": [["probe", f"def probe():\n{lines}"]]})
    assert "error" not in reply, reply
    reply = child.request({"op": "call", "name": "probe", "args": []})
    return reply.get("value", reply.get("error"))


def test_no_project_file_is_there(child: Child) -> None:
    seen = _ask(
        child,
        f"""
import os
found = []
for folder in ({str(ROOT)!r}, {str(ROOT / "labs")!r}, {str(Path.cwd())!r}, "/home", "/etc"):
    try:
        found += os.listdir(folder)
    except OSError:
        pass
for base, folders, files in os.walk("/"):
    folders[:] = [f for f in folders if base != "/" or f not in ("usr", "proc", "dev", "lib")]
    found += [os.path.join(base, f) for f in files if "hidden" in base or "lab.toml" in f]
return found
""",
    )
    assert seen == []


def test_neither_quire_nor_labkit_nor_torch_is_there(child: Child) -> None:
    body = """
import importlib.util
return [n for n in ("quire", "labkit", "torch", "hypothesis") if importlib.util.find_spec(n)]
"""
    assert _ask(child, body) == []


def test_no_network(child: Child) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        body = f"""
import socket
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=1)
except OSError as error:
    return type(error).__name__
"""
        assert _ask(child, body) == "ConnectionRefusedError"


def test_it_is_nobody_without_environment_or_neighbours(child: Child) -> None:
    os.environ["LABKIT_SECRET_OF_THE_TEST"] = "x"
    try:
        body = """
import os
processes = [p for p in os.listdir("/proc") if p.isdigit()]
return [os.getuid(), sorted(set(os.environ) - {"PWD", "LC_CTYPE"}), len(processes)]
"""
        uid, names, processes = _ask(child, body)  # type: ignore[misc]
    finally:
        del os.environ["LABKIT_SECRET_OF_THE_TEST"]
    assert uid == 65534
    assert names == ["OPENBLAS_NUM_THREADS"]
    assert processes <= 3


def test_it_can_write_nowhere_but_its_own_small_tmp(child: Child) -> None:
    body = """
import os
failed = []
for path in ("/x", "/usr/x", "/packages/numpy/x", "/child.py"):
    try:
        open(path, "w").close()
    except OSError:
        failed.append(path)
try:
    with open("/tmp/large", "wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    failed.append("no limit")
except OSError:
    pass
return failed
"""
    assert _ask(child, body) == ["/x", "/usr/x", "/packages/numpy/x", "/child.py"]


def test_memory_is_limited(child: Child) -> None:
    assert "MemoryError" in str(_ask(child, "return len(bytearray(8 << 30))"))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("while True: pass", "no answer within 3 s"),
        ("import os; os._exit(0)", "the process ended"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the process ended"),
        ("import ctypes; ctypes.string_at(0)", "the process ended"),
        ("return 'x' * (2 << 20)", "larger than 1048576 bytes"),
        ("import os; [os.write(n, b'{}\\n') for n in range(3, 9)]", ""),
    ],
)
def test_a_child_that_stops_playing_is_given_up(child: Child, body: str, reason: str) -> None:
    if not reason:  # writing to every descriptor it can guess breaks the protocol or nothing
        body = """
import os
for n in range(3, 16):
    try:
        os.write(n, b'{"id": 1, "value": 1}\\n')
    except OSError:
        pass
return 2
"""
        reason = "not what the protocol allows"
    with pytest.raises(ChildLost, match=reason):
        _ask(child, body)
    with pytest.raises(ChildLost, match=reason):
        child.request({"op": "load", "cells": []})


def test_prints_do_not_disturb_the_answer(child: Child) -> None:
    assert _ask(child, 'print(\'{"id": 1, "value": 7}\' * 100000)\nreturn 5') == 5


SPOOF = """
# task: sampler
class Agreeable(float):
    def __eq__(self, other): return True
    def __sub__(self, other): return 0.0
    def __le__(self, other): return True
    def __abs__(self): return Agreeable(0)

def distribution(logits, output_ids, params):
    return [Agreeable(1.0)] * len(logits)

def draw(probabilities, u):
    return Agreeable(1.0)
"""
PATCHED = """
# task: sampler
import json, sys
real = json.dumps
json.dumps = lambda value, **rest: real({"id": value.get("id"), "value": True, "passed": True})

def distribution(logits, output_ids, params):
    return None

def draw(probabilities, u):
    return None
"""
EXITS = """
# task: sampler
import os
def distribution(logits, output_ids, params):
    os._exit(0)
def draw(probabilities, u):
    raise SystemExit(0)
"""


@pytest.mark.parametrize("source", [SPOOF, PATCHED, EXITS], ids=["eq", "json", "exit"])
def test_tricks_earn_nothing(grade_cell: Grade, source: str) -> None:
    report = grade_cell("sampler", source)
    assert report.score == 0
    assert report.broken == []
    assert all(outcome.reason for outcome in report.outcomes)


def test_an_endless_cell_ends_and_says_so(lab: Lab) -> None:
    from labkit.grade import Grader
    from labkit.notebook import Submission

    grader = Grader(lab, limits=Limits(call_seconds=0.5))
    report = grader.grade(
        Submission(cells={"sampler": "# task: sampler\nwhile True: pass"}), [lab.task("sampler")]
    )
    assert report.score == 0
    reasons = report.reasons("sampler")
    assert reasons[0] == "running the cell: no answer within 0.5 s"
    assert reasons[1].startswith("not run: 3 tests of this task")


def test_a_reply_must_be_plain_json_of_the_right_shape(child: Child) -> None:
    bad = {"$array": "AAAA", "dtype": "float64", "shape": [1 << 40]}
    body = f"""
import __main__ as child
class Liar(dict): pass
child.to_wire = lambda value: {json.dumps(bad)}
return 1
"""
    with pytest.raises(ChildLost, match="protocol"):
        _ask(child, body)


def test_without_bubblewrap_grading_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NoSandbox, match="--unsafe-local"):
        Child(["numpy"])
    with Child(["numpy"], unsafe_local=True) as child:
        assert _ask(child, "import numpy\nreturn numpy.int64(3)") == 3
