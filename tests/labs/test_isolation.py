"""The grading child: what code in it can reach, and how it is given up when it misbehaves."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit.grading.predecessors import Relay, interface_of
from labkit.reader.lab import labs_folder, load_lab
from labkit.sandbox import jail, process
from labkit.sandbox.child import from_wire, to_wire
from labkit.sandbox.process import (
    Child,
    ChildLost,
    Limits,
    NoSandbox,
    StartTooSlow,
    Surroundings,
    printable,
)

NUMPY = Surroundings(("numpy",))
ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(call_seconds=3.0, reply_bytes=1 << 20)


@pytest.fixture
def child() -> Iterator[Child]:
    with Child(NUMPY, LIMITS) as made:
        yield made


def _ask(child: Child, body: str) -> Any:
    """Run a function's body in the child and return what it gives."""
    lines = "\n".join(f"    {line}" for line in body.strip().split("\n"))
    reply = child.request({"op": "load", "cells": [["probe", f"def probe():\n{lines}"]]})
    assert "error" not in reply, reply
    reply = child.request({"op": "call", "name": "probe", "args": []})
    return reply.get("value", reply.get("error"))


# ---- what is there


def test_the_whole_file_system_holds_nothing_of_the_project(child: Child) -> None:
    body = """
import os
names = ("quire", "labkit", "hidden", "lab.toml", "master.py", "torch", "hypothesis", "pytest")
found = []
for base, folders, files in os.walk("/"):
    found += [os.path.join(base, f) for f in folders + files if f in names]
return [sorted(set(os.listdir("/")) - {"lib", "lib64", "usr"}), found]
"""
    tops, found = _ask(child, body)
    assert found == []
    home = Path(sys.base_prefix).parts[1]  # the interpreter may lie anywhere
    assert set(tops) <= {"child.py", "dev", "packages", home}


def test_no_network_not_even_the_machines_own(child: Child) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        body = f"""
import socket
socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), timeout=1)
"""
        assert _ask(child, body).startswith("PermissionError")
        with pytest.raises(BlockingIOError):
            server.accept()


def test_it_is_nobody_without_environment_or_neighbours(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_SECRET_OF_THE_TEST", "x")
    body = """
import os
return [os.getuid(), os.getgid(), os.getpid(), os.path.exists("/proc"), sorted(os.environ)]
"""
    with Child(NUMPY, LIMITS) as made:
        uid, gid, pid, processes, names = _ask(made, body)
    assert (uid, gid) == (65534, 65534)
    assert pid <= 3  # a table of processes of its own
    assert not processes
    allowed = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LD_LIBRARY_PATH", "LC_CTYPE", "PWD"}
    assert set(names) <= allowed


def test_there_is_nowhere_to_write(child: Child) -> None:
    body = """
import os
written = []
for base, folders, files in os.walk("/"):
    try:
        os.close(os.open(os.path.join(base, "x"), os.O_CREAT | os.O_WRONLY))
        written.append(base)
    except OSError:
        pass
for call in (lambda: os.memfd_create("x"), lambda: open("/child.py", "a")):
    try:
        call()
        written.append("more")
    except OSError:
        pass
return written
"""
    assert _ask(child, body) == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import os; os.fork()", "PermissionError"),
        ("import os; os.posix_spawn('/x', ['x'], {})", "PermissionError"),
        ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
        ("return len(bytearray(8 << 30))", "MemoryError"),
        ("import os; return [os.open('/dev/null', 0) for _ in range(99)]", "Too many open files"),
        ("import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))", "not allowed to raise"),
        ("import os; os.setuid(0)", "PermissionError"),
        ("import ctypes; return ctypes.CDLL(None).unshare(0x10000000)", "-1"),
        ("import ctypes; return ctypes.CDLL(None).ptrace(16, 1, 0, 0)", "-1"),
        ("import ctypes; return ctypes.CDLL(None).shmget(0, 1 << 30, 0o1666)", "-1"),
        ("import ctypes; return ctypes.CDLL(None).mount(b'x', b'/', b'tmpfs', 0, 0)", "-1"),
    ],
)
def test_what_is_not_allowed_fails_at_once(child: Child, body: str, words: str) -> None:
    assert words in str(_ask(child, body))
    assert not child.is_lost


# ---- the language of a cell


def test_a_cell_is_plain_python(child: Child) -> None:
    """Annotations are evaluated, as in a notebook, though labkit's own files put that off."""
    body = """
import dataclasses
seen = []
def one(a: seen.append("now") or int) -> str: ...
@dataclasses.dataclass
class Two:
    b: int = 0
return [seen, one.__annotations__["a"] is int, dataclasses.fields(Two)[0].type is int]
"""
    assert _ask(child, body) == [["now"], True, True]


def test_no_cell_is_compiled_with_the_language_of_labkits_own_files() -> None:
    files = [*(ROOT / "src" / "labkit").rglob("*.py"), *(ROOT / "labs").glob("*/*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if name in ("exec", "eval"):
                assert "compile(" in ast.unparse(node.args[0]), f"{path}: {ast.unparse(node)}"
            if name == "compile":
                assert "dont_inherit=True" in ast.unparse(node), f"{path}: {ast.unparse(node)}"


# ---- quire without a module


def test_quire_comes_without_what_the_lab_asks_for() -> None:
    dependencies = ["torch", "torchgen", "typing_extensions", "numpy", "tokenizers"]
    if importlib.util.find_spec("nvidia"):  # beside a build of torch with CUDA
        dependencies.append("nvidia")
    surroundings = Surroundings(("quire", *dependencies), ("quire.sampling.sampler",))
    with Child(surroundings, Limits(memory_bytes=8 << 30)) as child:
        words = "quire.sampling.sampler.TorchSampler is what this lab asks you to write"
        assert words in _ask(child, "import quire\nquire.sampling.TorchSampler()")
        assert _ask(child, "import quire\nreturn quire.SamplingParams(seed=3).seed") == 3
        body = "import quire.sampling.sampler as s\nreturn open(s.__file__).read()"
        assert _ask(child, body) == jail.WITHHELD


@pytest.mark.parametrize("slug", sorted(p.parent.name for p in labs_folder().glob("*/lab.toml")))
def test_what_a_lab_asks_for_is_in_quire_and_not_in_its_child(slug: str) -> None:
    lab = load_lab(slug)
    assert lab.withheld
    with Child(Surroundings(lab.packages, lab.withheld), LIMITS) as child:
        for module in lab.withheld:
            assert importlib.util.find_spec(module) is not None, module
            body = f"import {module} as found\nfound.Any()"
            assert _ask(child, body).startswith("ModuleNotFoundError")


def test_a_module_that_is_not_there_cannot_be_withheld() -> None:
    with pytest.raises(NoSandbox, match=r"withholds quire\.nothing"):
        Child(Surroundings(("quire",), ("quire.nothing",)))
    with pytest.raises(NoSandbox, match="'no_such_package', which is not installed"):
        Child(Surroundings(("no_such_package",)))


def test_a_project_that_would_be_seen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Path(os.__file__).parent / "labkit"  # within the standard library's folder
    monkeypatch.setattr(jail, "LABKIT", inside)
    with pytest.raises(NoSandbox, match="would see: move it elsewhere"):
        Child(NUMPY)


# ---- giving a child up


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
        _ask(child, body)
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
        _ask(child, body)


def test_all_calls_together_have_a_limit() -> None:
    with Child(NUMPY, Limits(call_seconds=30, wall_seconds=0.5)) as child:
        with pytest.raises(ChildLost, match=r"the 0\.5 s of the task are used up"):
            _ask(child, "while True: pass")
        assert child.is_out_of_time


def test_processor_time_has_a_limit() -> None:
    with (
        Child(NUMPY, Limits(call_seconds=60, cpu_seconds=1)) as child,
        pytest.raises(ChildLost, match="the process ended"),
    ):
        _ask(child, "while True: pass")


def test_prints_do_not_disturb_the_answer(child: Child) -> None:
    assert _ask(child, 'print(\'{"id": 1, "value": 7}\' * 100000)\nreturn 5') == 5


def test_an_error_is_short_and_can_be_printed_anywhere(child: Child) -> None:
    words = _ask(child, "raise ValueError('\\x1b[2J\\ud800' + 'x' * 100000)")
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


# ---- without bubblewrap


def test_without_bubblewrap_grading_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NoSandbox, match="--unsafe-local"):
        Child(NUMPY)
    with Child(NUMPY, unsafe_local=True) as child:
        assert _ask(child, "import numpy\nreturn numpy.int64(3)") == 3


def _as_root(monkeypatch: pytest.MonkeyPatch, uid: int) -> int | None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    jail.user_without_bubblewrap.cache_clear()
    found = jail.user_without_bubblewrap((), ())
    jail.user_without_bubblewrap.cache_clear()
    return found


@pytest.mark.parametrize(
    ("uid", "folder", "library", "user"),
    [(0, 0o755, 0o755, 65534), (0, 0o700, 0o755, None), (0, 0o755, 0o750, None),
     (1000, 0o755, 0o755, None)],
)  # fmt: skip
def test_root_becomes_nobody_where_nobody_can_read_what_the_child_needs(
    monkeypatch: pytest.MonkeyPatch, uid: int, folder: int, library: int, user: int | None
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as home:  # pytest's own folders are closed
        inside = Path(home, "library")
        inside.mkdir()
        inside.chmod(library)
        Path(home).chmod(folder)
        monkeypatch.setattr(jail, "_standard_library", lambda: [str(inside)])
        assert _as_root(monkeypatch, uid) == user


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_child_that_became_nobody_has_lost_roots_rights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    body = f"""
import os
tried = []
for act in (lambda: open({str(secret)!r}), os.fork, lambda: os.setuid(0),
            lambda: os.kill({os.getpid()}, 0)):
    try:
        act()
    except OSError as error:
        tried.append(type(error).__name__)
return [os.getuid(), os.getgid(), os.getgroups(), tried]
"""
    monkeypatch.setattr(jail, "user_without_bubblewrap", lambda packages, withheld: jail.NOBODY)
    with Child(Surroundings(), LIMITS, unsafe_local=True) as child:
        uid, gid, groups, tried = _ask(child, body)
    assert (uid, gid, groups) == (65534, 65534, [])
    assert tried == ["PermissionError", "BlockingIOError", "PermissionError", "PermissionError"]


def test_a_machine_too_busy_to_start_a_child_is_told_from_one_that_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "START_SECONDS", 0.0)
    with pytest.raises(StartTooSlow, match="the machine is busy"):
        Child(NUMPY)


# ---- the reference behind stand-ins

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
