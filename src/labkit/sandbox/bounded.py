"""One of labkit's own modules in a process of its own, under limits.

Parsers meet whatever a student sends, and some take the square of its length in time or memory:
CPython's own for a dotted import of 100,000 parts, or for a name of as many combining accents. So
what parses a hand-in runs here. A limit costs the one who sent the file, and the grader holds no
more than the short answer. The code is labkit's, so the process is limited and not jailed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parents[2]  # where labkit is imported from
PAGES = 5  # the place in /proc/self/statm of the pages of data and stack
Answer = Callable[[Any], Any]


@dataclass(frozen=True)
class Bounds:
    """What the process may use."""

    memory_bytes: int = 256 << 20  # of data, beyond what it holds before it reads
    cpu_seconds: int = 20
    wall_seconds: float = 120.0  # on a busy machine too


class Exceeded(RuntimeError):
    """A limit was reached, or the process crashed; the message says which, for the student."""


def ask(module: str, request: Any, bounds: Bounds) -> Any:
    """Run `python -m module` on a request, and return its answer; both are plain JSON.

    Raises:
        Exceeded: it took more than `bounds` allow, or crashed.
        RuntimeError: it failed in a way that is labkit's own fault.
    """
    message = json.dumps({"bounds": asdict(bounds), "request": request})
    # -P: a file in the working folder, which may be a student's, is no module.
    command = [sys.executable, "-P", "-B", "-m", module]
    path = os.pathsep.join([str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each would take memory
    try:
        done = subprocess.run(
            command,
            input=message.encode(),
            capture_output=True,
            timeout=bounds.wall_seconds,
            env={**os.environ, **threads, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        raise Exceeded(f"it takes more than {bounds.wall_seconds:g} s") from None
    if done.returncode == -signal.SIGXCPU:
        raise Exceeded(f"it takes more than {bounds.cpu_seconds} s of processor time")
    if done.returncode < 0:
        raise Exceeded(f"the process that does it crashes (signal {-done.returncode})")
    if done.returncode > 0:
        raise RuntimeError(f"{module}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    reply = json.loads(done.stdout)
    if "answer" not in reply:
        raise Exceeded(f"it takes more than {bounds.memory_bytes >> 20} MiB of memory")
    return reply["answer"]


def serve(answer: Answer) -> None:
    """Answer the one request of this process, under its limits."""
    message = json.loads(sys.stdin.buffer.read())
    _limit(Bounds(**message["bounds"]))
    try:
        reply = json.dumps({"answer": answer(message["request"])})
    except MemoryError:
        reply = "{}"
    sys.stdout.write(reply)


def _limit(bounds: Bounds) -> None:
    """Lower this process's limits, as far as its kernel keeps such."""
    import resource

    limits = {
        "RLIMIT_CPU": (bounds.cpu_seconds, bounds.cpu_seconds + 1),
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_FSIZE": (0, 0),
    }
    pages = Path("/proc/self/statm")
    if pages.is_file():
        idle = int(pages.read_text().split()[PAGES]) * resource.getpagesize()
        limits["RLIMIT_DATA"] = (idle + bounds.memory_bytes, idle + bounds.memory_bytes)
    for name, pair in limits.items():
        resource.setrlimit(getattr(resource, name), pair)
