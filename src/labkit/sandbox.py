"""A child process for the reader's code, under bubblewrap, and the pipe to it.

The child sees the interpreter, the packages that a task may import and `child.py`: no
project file, no network, no other process, no environment, and it runs as nobody. The
parent keeps the clock: a request that is not answered in time, or answered with too much,
ends the child.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.child import from_wire

CHILD = Path(__file__).with_name("child.py")
SYSTEM = "/usr"


class NoSandbox(RuntimeError):
    """bubblewrap is missing or cannot work here; the message says what to do."""


class ChildLost(RuntimeError):
    """The child gave no usable answer; the message says why, for the reader."""


@dataclass(frozen=True)
class Limits:
    """What a child may use."""

    call_seconds: float = 10.0  # wall time of one request, on a busy machine too
    cpu_seconds: int = 30  # of the whole child
    memory_bytes: int = 2 << 30  # of address space
    reply_bytes: int = 16 << 20
    file_bytes: int = 16 << 20
    open_files: int = 64

    def of_process(self) -> dict[str, int]:
        """The limits that the kernel keeps, by their names in `resource`."""
        return {
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
        }


def find_bubblewrap() -> str:
    """Return the path of `bwrap`.

    Raises:
        NoSandbox: there is none, as on macOS.
    """
    found = shutil.which("bwrap")
    if found is None:
        raise NoSandbox(
            "no bubblewrap (bwrap) on this machine, so a submission cannot be isolated: install "
            "it (Debian: apt install bubblewrap), or pass --unsafe-local to run submissions with "
            "your own rights, which is for your own notebooks only"
        )
    return found


def _package_folders(packages: Sequence[str]) -> list[Path]:
    """Folders to show: each package and the libraries a wheel puts beside it."""
    folders = []
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise NoSandbox(f"the lab's tasks may import {name!r}, which is not installed here")
        folder = Path(spec.submodule_search_locations[0])
        folders += [folder, *folder.parent.glob(f"{name}.libs")]
    return folders


def _command(packages: Sequence[str], limits: Limits, bubblewrap: str | None) -> list[str]:
    """The command line of a child; without bubblewrap a bare process."""
    python = os.path.realpath(sys.executable)
    folders = _package_folders(packages)
    if bubblewrap is None:
        outside = sorted({str(folder.parent) for folder in folders})
        argument = json.dumps([limits.of_process(), outside])
        return [python, "-I", "-S", "-B", str(CHILD), argument]
    command = [bubblewrap, "--unshare-all", "--die-with-parent", "--new-session"]
    command += ["--uid", "65534", "--gid", "65534", "--hostname", "lab", "--cap-drop", "ALL"]
    command += ["--clearenv", "--setenv", "OPENBLAS_NUM_THREADS", "1"]
    command += ["--ro-bind", SYSTEM, SYSTEM]
    for name in ("lib", "lib64", "bin"):
        if Path(f"/{name}").is_symlink():
            command += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif Path(f"/{name}").is_dir():
            command += ["--ro-bind", f"/{name}", f"/{name}"]
    if not Path(sys.base_prefix).is_relative_to(SYSTEM):
        command += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    for folder in folders:
        command += ["--ro-bind", str(folder), f"/packages/{folder.name}"]
    command += ["--ro-bind", str(CHILD), "/child.py", "--proc", "/proc", "--dev", "/dev"]
    command += ["--size", str(limits.file_bytes), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    command += ["--remount-ro", "/"]
    return [
        *command,
        python,
        "-I",
        "-S",
        "-B",
        "/child.py",
        json.dumps([limits.of_process(), None]),
    ]


class Child:
    """One child process. After `ChildLost` it is gone, and every request says so again."""

    def __init__(
        self, packages: Sequence[str], limits: Limits | None = None, *, unsafe_local: bool = False
    ) -> None:
        """Start a child.

        Args:
            packages: what the reader's code may import beside the standard library.
            limits: what it may use.
            unsafe_local: run without bubblewrap, with the caller's own rights.

        Raises:
            NoSandbox: bubblewrap is missing or refused.
        """
        self._limits = limits or Limits()
        self._lost: str | None = None
        bubblewrap = None if unsafe_local else find_bubblewrap()
        self._process = subprocess.Popen(
            _command(packages, self._limits, bubblewrap),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"OPENBLAS_NUM_THREADS": "1"},
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        try:
            self.request({"op": "load", "cells": []}, seconds=30)
        except ChildLost:
            stderr = self._process.stderr
            said = stderr.read().decode(errors="replace").strip() if stderr else ""
            self.close()
            raise NoSandbox(
                f"the sandbox does not start: {said[-300:] or 'no message'}; where user "
                "namespaces are off, --unsafe-local runs your own notebooks without it"
            ) from None

    @property
    def is_lost(self) -> bool:
        """Whether a request has ended this child."""
        return self._lost is not None

    def request(self, message: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Send a request and return the reply, its values unpacked.

        Raises:
            ChildLost: no answer in time, too large an answer, not JSON, or the process ended.
        """
        if self._lost is not None:
            raise ChildLost(self._lost)
        deadline = time.monotonic() + (seconds or self._limits.call_seconds)
        number = secrets.randbits(48)
        try:
            self._write(json.dumps({**message, "id": number}).encode() + b"\n", deadline)
            return self._parse(self._read_line(deadline), number)
        except ChildLost as lost:
            self._lost = str(lost)
            self._process.kill()
            raise

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._in, selectors.EVENT_WRITE, deadline)
            try:
                view = view[os.write(self._in, view) :]
            except BrokenPipeError:
                raise ChildLost("the process ended: it crashed, or the code ended it") from None

    def _read_line(self, deadline: float) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while True:
            self._wait(self._out, selectors.EVENT_READ, deadline)
            chunk = os.read(self._out, 1 << 20)
            if not chunk:
                raise ChildLost("the process ended: it crashed, or the code ended it")
            chunks.append(chunk)
            size += len(chunk)
            if size > self._limits.reply_bytes:
                raise ChildLost(f"the answer is larger than {self._limits.reply_bytes} bytes")
            if chunk.endswith(b"\n"):
                return b"".join(chunks)

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise ChildLost(f"no answer within {self._limits.call_seconds:g} s")

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        """Accept exactly one well-formed reply to this request, and nothing beside it."""
        try:
            reply = json.loads(line)
            if type(reply) is not dict or reply.get("id") != number:
                raise ValueError("no reply to this request")
            if type(reply.get("error")) is str:
                return {"error": reply["error"]}
            return {"value": from_wire(reply["value"]), "args": from_wire(reply.get("args", []))}
        except (ValueError, KeyError, TypeError, RecursionError, MemoryError):
            raise ChildLost("the answer is not what the protocol allows") from None

    def close(self) -> None:
        """End the child and everything it started."""
        self._lost = self._lost or "closed"
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
