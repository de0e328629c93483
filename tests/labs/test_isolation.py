"""The grading child: what code in it can reach, with bubblewrap and without."""

from __future__ import annotations

import ast
import importlib.util
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from probe import LIMITS, NUMPY, ask

from labkit.reader.lab import labs_folder, load_lab
from labkit.sandbox import jail
from labkit.sandbox.process import (
    Child,
    Limits,
    NoSandbox,
    Surroundings,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def child() -> Iterator[Child]:
    with Child(NUMPY, LIMITS) as made:
        yield made


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
    tops, found = ask(child, body)
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
        assert ask(child, body).startswith("PermissionError")
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
        uid, gid, pid, processes, names = ask(made, body)
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
    assert ask(child, body) == []


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
    assert words in str(ask(child, body))
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
    assert ask(child, body) == [["now"], True, True]


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
        assert words in ask(child, "import quire\nquire.sampling.TorchSampler()")
        assert ask(child, "import quire\nreturn quire.SamplingParams(seed=3).seed") == 3
        body = "import quire.sampling.sampler as s\nreturn open(s.__file__).read()"
        assert ask(child, body) == jail.WITHHELD


@pytest.mark.parametrize("slug", sorted(p.parent.name for p in labs_folder().glob("*/lab.toml")))
def test_what_a_lab_asks_for_is_in_quire_and_not_in_its_child(slug: str) -> None:
    lab = load_lab(slug)
    assert lab.withheld
    with Child(Surroundings(lab.packages, lab.withheld), LIMITS) as child:
        for module in lab.withheld:
            assert importlib.util.find_spec(module) is not None, module
            body = f"import {module} as found\nfound.Any()"
            assert ask(child, body).startswith("ModuleNotFoundError")


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


# ---- without bubblewrap


def test_without_bubblewrap_grading_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NoSandbox, match="--unsafe-local"):
        Child(NUMPY)
    with Child(NUMPY, unsafe_local=True) as child:
        assert ask(child, "import numpy\nreturn numpy.int64(3)") == 3


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
        uid, gid, groups, tried = ask(child, body)
    assert (uid, gid, groups) == (65534, 65534, [])
    assert tried == ["PermissionError", "BlockingIOError", "PermissionError", "PermissionError"]
