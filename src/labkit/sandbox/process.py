"""A child process for the reader's code, and the pipe to it.

How it starts is `labkit.sandbox.start`'s business, what it sees that of `labkit.sandbox.jail`,
and what it may ask of the kernel that of `labkit.sandbox.syscalls`. Here the parent keeps the clock
and the scales: a request that is not answered in time, or answered with too much or with anything
but plain JSON, ends the child.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import time
from collections.abc import Callable
from typing import Any

from labkit.sandbox.child import from_wire
from labkit.sandbox.jail import NoSandbox
from labkit.sandbox.leash import Leash
from labkit.sandbox.start import Limits, Surroundings, start

__all__ = ["Child", "ChildLost", "Limits", "NoSandbox", "StartTooSlow", "Surroundings"]

ENDED = "the process ended: it crashed, or the code ended it"
START_SECONDS = 30.0  # for the interpreter to answer, on a busy machine too
MAX_WORDS = 600  # characters of an error that reach a report
# What reading the wire may raise, over whatever was written to it.
UNUSABLE = (ValueError, KeyError, TypeError, RecursionError, MemoryError)
MAX_CONTAINERS = 100_000  # lists and dicts of a reply: each costs the parent 64 bytes and more
MAX_ITEMS = 500_000  # entries of them: a name and its value cost up to 200 bytes

Request = dict[str, Any]
Helper = Callable[[Any], Request]


class ChildLost(RuntimeError):
    """The child gave no usable answer; the message says why, for the reader."""


class StartTooSlow(RuntimeError):
    """A child did not answer in time before any code was sent to it: the machine is busy."""


class Child:
    """One child process. After `ChildLost` it is gone, and every request says so again."""

    def __init__(
        self,
        surroundings: Surroundings,
        limits: Limits | None = None,
        *,
        unsafe_local: bool = False,
        helper: Helper | None = None,
    ) -> None:
        """Start a child.

        Args:
            surroundings: what the reader's code may import beside the standard library.
            limits: what it may use.
            unsafe_local: run without bubblewrap, as `jail.user_without_bubblewrap` says.
            helper: answers what the stand-ins in the child ask; its argument is whatever the
                child sent, so it must look before it acts.

        Raises:
            NoSandbox: bubblewrap is missing or refused.
            StartTooSlow: it is neither, and the child did not answer in time.
        """
        self._limits = limits or Limits()
        self._helper = helper
        self._lost: str | None = None
        self._process = start(surroundings, self._limits, unsafe_local)
        try:
            self._leash: Leash | None = Leash(self._process.pid)
        except OSError:  # no process more for the user, say
            self._process.kill()
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        # Kept, since a hidden test makes thousands of short requests.
        self._writable, self._readable = select.poll(), select.poll()
        self._writable.register(self._in, select.POLLOUT)
        self._readable.register(self._out, select.POLLIN)
        self._seconds_left = START_SECONDS
        try:
            self.request({"op": "load", "cells": []}, seconds=START_SECONDS)
        except ChildLost:
            if self.is_out_of_time:
                self.close()
                raise StartTooSlow(
                    f"the sandbox did not start within {START_SECONDS:g} s: the machine is busy"
                ) from None
            stderr = self._process.stderr
            said = stderr.read().decode(errors="replace").strip() if stderr else ""  # all is killed
            self.close()
            raise NoSandbox(
                f"the sandbox does not start: {said[-300:] or 'no message'}; where user "
                "namespaces are off, --unsafe-local runs your own notebooks without it"
            ) from None
        self._seconds_left = self._limits.wall_seconds

    @property
    def is_lost(self) -> bool:
        """Whether a request has ended this child."""
        return self._lost is not None

    @property
    def is_out_of_time(self) -> bool:
        """Whether all its requests together took as long as they may."""
        return self._seconds_left <= 0

    def request(self, message: Request, seconds: float | None = None) -> Request:
        """Send a request and return the reply, its values unpacked.

        Raises:
            ChildLost: no answer in time, too large an answer, not JSON, or the process ended.
        """
        if self._lost is not None:
            raise ChildLost(self._lost)
        start = time.monotonic()
        allowed = min(self._limits.call_seconds if seconds is None else seconds, self._seconds_left)
        number = secrets.randbits(48)
        try:
            return self._exchange({**message, "id": number}, number, start + allowed)
        except _TooLate:
            self._lost = f"no answer within {self._limits.call_seconds:g} s"
            if allowed == self._seconds_left:
                self._lost = f"the {self._limits.wall_seconds:g} s of the task are used up"
        except ChildLost as lost:
            self._lost = str(lost)
        finally:
            self._seconds_left -= time.monotonic() - start
        self._kill()
        raise ChildLost(self._lost)

    def _exchange(self, message: Request, number: int, deadline: float) -> Request:
        """Send, answer what the child asks meanwhile, and return its reply."""
        self._write(message, deadline)
        while True:
            reply = _parse(self._read_line(deadline))
            if self._helper is None or "ask" not in reply:
                return _reply(reply, number)
            self._write(self._helper(reply["ask"]), deadline)

    def _write(self, message: Request, deadline: float) -> None:
        view = memoryview(json.dumps(message).encode() + b"\n")
        while view:
            try:
                view = view[os.write(self._in, view) :]
            except BlockingIOError:  # the pipe is full
                _wait(self._writable, deadline)
            except BrokenPipeError:
                raise ChildLost(ENDED) from None

    def _read_line(self, deadline: float) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while True:
            _wait(self._readable, deadline)
            chunk = os.read(self._out, 1 << 20)
            if not chunk:
                raise ChildLost(ENDED)
            chunks.append(chunk)
            size += len(chunk)
            if size > self._limits.reply_bytes:
                raise ChildLost(f"the answer is larger than {self._limits.reply_bytes} bytes")
            if chunk.endswith(b"\n"):
                return b"".join(chunks)

    def _kill(self) -> None:
        if self._leash is not None:
            self._leash.pull()
            self._leash = None

    def close(self) -> None:
        """End the child and everything it started."""
        self._lost = self._lost or "closed"
        self._kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _TooLate(Exception):
    """The deadline has passed."""


def _wait(pipe: select.poll, deadline: float) -> None:
    """Wait until a pipe can be used."""
    if not pipe.poll(max(0.0, 1e3 * (deadline - time.monotonic()))):
        raise _TooLate


def _parse(line: bytes) -> Request:
    """Read one line that is one JSON object, and nothing beside it."""
    try:
        if line.count(b"[") + line.count(b"{") > MAX_CONTAINERS:
            raise ChildLost(f"the answer holds more than {MAX_CONTAINERS} lists")
        if line.count(b",") > MAX_ITEMS:
            raise ChildLost(f"the answer holds more than {MAX_ITEMS} values")
        reply = json.loads(line)
    except (ValueError, RecursionError, MemoryError):
        reply = None
    if type(reply) is not dict:
        raise ChildLost("the answer is not what the protocol allows")
    return reply


def _reply(reply: Request, number: int) -> Request:
    """Accept exactly a well-formed reply to the request of that number."""
    try:
        if reply.get("id") != number:
            raise ValueError("no reply to this request")
        if type(reply.get("error")) is str:
            return {"error": printable(reply["error"])}
        args = from_wire(reply.get("args", []))
        if type(args) is not list:
            raise ValueError("no list of arguments")
        return {"value": from_wire(reply["value"]), "args": args}
    except UNUSABLE:
        raise ChildLost("the answer is not what the protocol allows") from None


def printable(words: str) -> str:
    """Cut words of the child's to a length and characters that any page and terminal can show."""
    kept = (c if c.isprintable() or c == "\n" else "\ufffd" for c in words[:MAX_WORDS])
    return "".join(kept) + ("…" if len(words) > MAX_WORDS else "")
