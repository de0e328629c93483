"""Starting a child: its limits, and what surrounds it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from labkit.sandbox import jail
from labkit.sandbox.jail import NoSandbox, find_bubblewrap
from labkit.sandbox.syscalls import UnknownMachine, filter_program


@dataclass(frozen=True)
class Limits:
    """What a child may use. It is one thread, may start nothing and write no file at all."""

    call_seconds: float = 10.0  # wall time of one request, on a busy machine too
    wall_seconds: float = 90.0  # of all requests to a child together
    handin_seconds: float = 300.0  # of all tests of a hand-in, whatever children they take
    cpu_seconds: int = 30  # of the whole child
    memory_bytes: int = 2 << 30  # of address space
    reply_bytes: int = 8 << 20
    open_files: int = 64

    def of_process(self) -> dict[str, int]:
        """The limits that the kernel keeps, by their names in `resource`."""
        return {
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_NPROC": 0,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class Surroundings:
    """What a lab's code finds in its child: packages, and modules of them that are withheld."""

    packages: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()


def start(
    surroundings: Surroundings, limits: Limits, unsafe_local: bool
) -> subprocess.Popen[bytes]:
    """Start a child as a process group of its own; with `unsafe_local` as a bare process.

    Raises:
        NoSandbox: bubblewrap is missing, or there is no filter for this machine.
    """
    packages, withheld = surroundings.packages, surroundings.withheld
    arguments = ["-I", "-S", "-B"]
    if unsafe_local:
        found = jail.package_paths(packages, withheld).values()
        outside = sorted({str(path.parent) for path in found})
        user = jail.user_without_bubblewrap(packages, withheld)
        script = json.dumps([limits.of_process(), outside, user])
        return _open([sys.executable, *arguments, str(jail.CHILD), script], ())
    bubblewrap = find_bubblewrap()
    try:
        program = filter_program()
    except UnknownMachine as unknown:
        raise NoSandbox(f"{unknown}; --unsafe-local runs your own notebooks without it") from None
    with tempfile.TemporaryFile() as file:
        file.write(program)
        file.seek(0)
        command = jail.command(bubblewrap, packages, withheld, file.fileno())
        script = json.dumps([limits.of_process(), ["/packages"], None])
        return _open([*command, *arguments, "/child.py", script], (file.fileno(),))


def _open(command: list[str], descriptors: tuple[int, ...]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=jail.ENVIRONMENT,
        pass_fds=descriptors,
        bufsize=0,
        process_group=0,
    )
