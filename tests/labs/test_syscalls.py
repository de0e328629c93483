"""The filter of system calls: what a solution needs passes, and nothing else does."""

from __future__ import annotations

import errno
import os
import platform
import re
import struct
from pathlib import Path

import pytest
from probe import ask

from labkit.sandbox.process import Child, Limits, Surroundings
from labkit.sandbox.syscalls import (
    ALLOWED,
    CLONE3,
    COMMANDS,
    MACHINES,
    UnknownMachine,
    filter_program,
)

LIMITS = Limits(call_seconds=10.0)
PASSES, EPERM, ENOSYS, KILLED = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
# Calls by which code leaves a sandbox, takes the kernel's memory, or changes or finds what is
# outside: their numbers on x86-64 and on AArch64.
HOSTILE: dict[str, tuple[int | None, int | None]] = {
    # the kernel's own memory, which no limit of the child's counts
    "io_setup": (206, 0),
    "io_uring_setup": (425, 425),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "pipe2": (293, 59),
    "eventfd2": (290, 19),
    "signalfd4": (289, 74),
    "epoll_create1": (291, 20),
    "timer_create": (222, 107),
    "timerfd_create": (283, 85),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "flock": (73, 32),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mlock": (149, 228),
    "mbind": (237, 235),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "setxattr": (188, 5),
    # other processes and threads
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kcmp": (312, 272),
    # namespaces, mounts, and the paths outside that they tell
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "quotactl": (179, 60),
    # a file's mode, owner and times
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchownat": (260, 54),
    "utimensat": (280, 88),
    "mknodat": (259, 33),
    # parts of the kernel that sandboxes have been left by
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "seccomp": (317, 277),
    "prctl": (157, 167),
    "syslog": (103, 116),
    "a call of a kernel to come": (999, 999),
}


# ---- the program, run by a few lines that do what the kernel does


def _verdict(program: bytes, architecture: int, number: int, command: int = 0) -> int:
    data = struct.pack("=IIQQQ", number, architecture, 0, 0, command)
    code = [struct.unpack("=HBBI", program[i : i + 8]) for i in range(0, len(program), 8)]
    at, word = 0, 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        if operation == 0x20:
            (word,) = struct.unpack_from("=I", data, value)
        elif operation == 0x06:
            return int(value)
        else:
            holds = word == value if operation == 0x15 else word >= value
            at += if_true if holds else if_false


@pytest.mark.parametrize(
    ("machine", "audit", "read"), [("x86_64", 0xC000003E, 0), ("aarch64", 0xC00000B7, 63)]
)
def test_the_program_lets_its_list_pass_and_nothing_else(
    machine: str, audit: int, read: int
) -> None:
    program = filter_program(machine)
    assert len(program) // 8 <= 4096  # instructions that the kernel takes
    column = list(MACHINES).index(machine)
    listed = {numbers[column] for numbers in ALLOWED.values()} - {None}
    many = {numbers[column] for numbers, _ in COMMANDS.values()}
    assert _verdict(program, audit, read) == PASSES
    for number in range(1024):
        verdict = _verdict(program, audit, number, command=0xFFFF)
        if number in listed:
            assert verdict == PASSES, number
        else:
            assert verdict == (ENOSYS if number == CLONE3 else EPERM), number
    for numbers, commands in COMMANDS.values():
        assert numbers[column] in many
        assert all(_verdict(program, audit, numbers[column], c) == PASSES for c in commands)
    assert _verdict(program, audit, 0x40000000 + read) == EPERM  # x86-64's second numbers
    assert _verdict(program, 0x40000003, read) == KILLED  # a 32-bit program's call


@pytest.mark.parametrize("machine", MACHINES)
def test_no_hostile_call_is_on_the_list(machine: str) -> None:
    program, column = filter_program(machine), list(MACHINES).index(machine)
    for name, numbers in HOSTILE.items():
        number = numbers[column]
        if number is not None:
            assert _verdict(program, MACHINES[machine], number) == EPERM, name


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_the_kernels(machine: str) -> None:
    """By its own headers, where they lie (Debian: linux-libc-dev), older than some calls."""
    if not HEADERS[machine].is_file():
        pytest.skip(f"no {HEADERS[machine]} here")
    lines = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\n", HEADERS[machine].read_text())
    known = {name: int(number) for name, number in lines}
    known.setdefault("newfstatat", known.get("fstatat", -1))  # its name in the generic table
    column, found = list(MACHINES).index(machine), 0
    tables = ALLOWED | HOSTILE | {name: numbers for name, (numbers, _) in COMMANDS.items()}
    for name, numbers in tables.items():
        if name in known and numbers[column] is not None:
            assert numbers[column] == known[name], name
            found += 1
    assert found > 120


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(UnknownMachine, match="this machine is riscv64"):
        filter_program("riscv64")


# ---- the filter at work


def test_the_kernel_refuses_every_hostile_call() -> None:
    """Called by number with arguments of zero, which the kernel itself would answer otherwise."""
    column = list(MACHINES).index(platform.machine())
    numbers = {name: pair[column] for name, pair in HOSTILE.items() if pair[column] is not None}
    body = f"""
import ctypes
library, found = ctypes.CDLL(None, use_errno=True), {{}}
for name, number in {numbers!r}.items():
    ctypes.set_errno(0)
    found[name] = [library.syscall(number, 0, 0, 0, 0, 0), ctypes.get_errno()]
return found
"""
    with Child(Surroundings(), LIMITS) as child:
        found = ask(child, body)
    assert found == {key: [-1, errno.EPERM] for key in numbers}


def test_calls_that_are_many_in_one_pass_in_part() -> None:
    """No record locks, no larger pipes, no signals on data; none of a device's own commands."""
    body = """
import fcntl, os
null, found = os.open("/dev/null", os.O_RDWR), []
file = os.open("/child.py", os.O_RDONLY)
tried = [(fcntl.fcntl, 3, 1031, 1 << 20), (fcntl.fcntl, null, 8, 1), (fcntl.fcntl, null, 10, 9),
         (fcntl.fcntl, file, 1024, 0), (fcntl.ioctl, null, 0x5412, b"x"),
         (fcntl.ioctl, file, 0x40086602, 0)]
for call, *arguments in tried:
    try:
        found.append(call(*arguments))
    except OSError as error:
        found.append(error.errno)
try:
    fcntl.lockf(file, fcntl.LOCK_SH, 1)
except OSError as error:
    found.append(error.errno)
return [found, os.get_blocking(null), os.isatty(null)]
"""
    with Child(Surroundings(), LIMITS) as child:
        assert ask(child, body) == [[errno.EPERM] * 7, True, False]


def test_the_machines_devices_keep_their_mode_owner_and_times() -> None:
    """Also where root grades, whom the kernel takes for the nodes' owner."""
    nodes = [Path("/dev", name) for name in ("null", "zero", "random", "urandom")]

    def kept() -> list[tuple[int, ...]]:
        return [
            (s.st_mode, s.st_uid, s.st_gid, s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)
            for s in map(os.stat, nodes)
        ]

    before = kept()
    body = """
import os
changed = []
for name in sorted(os.listdir("/dev")):
    path = f"/dev/{name}"
    for change in (lambda: os.chmod(path, 0), lambda: os.chown(path, -1, -1),
                   lambda: os.utime(path, (0, 0)), lambda: os.utime(path),
                   lambda: os.chmod(os.open(path, os.O_RDONLY), 0)):
        try:
            change()
            changed.append(path)
        except OSError:
            pass
with open("/dev/null", "w") as null:
    null.write("x")
return [os.listdir("/dev"), changed, len(open("/dev/urandom", "rb").read(3))]
"""
    with Child(Surroundings(), LIMITS) as child:
        names, changed, read = ask(child, body)
    assert (sorted(names), changed, read) == (["null", "random", "urandom", "zero"], [], 3)
    assert kept() == before


def test_what_a_solution_does_is_allowed() -> None:
    body = """
import bisect, ctypes, datetime, decimal, faulthandler, fractions, gc, hashlib, heapq, json
import locale, logging, lzma, mmap, os, pathlib, platform, random, re, resource, secrets, select
import shutil, signal, statistics, struct, sys, threading, time, tracemalloc, uuid, zlib
import numpy
done = [
    numpy.linalg.svd(numpy.ones((60, 60)))[1].shape == (60,),
    numpy.random.default_rng(1).random(9).sum() > 0,
    numpy.zeros(10_000_000).sum() == 0,
    time.sleep(0.001) is None,
    time.perf_counter() + time.process_time() + time.thread_time() + time.time() > 0,
    len(secrets.token_bytes(8) + os.urandom(8)) + uuid.uuid4().int > 16,
    threading.Lock().acquire(timeout=0.001),
    not threading.Event().wait(0.001),
    signal.setitimer(signal.ITIMER_REAL, 0.0) == (0.0, 0.0),
    signal.alarm(0) == 0,
    select.select([], [], [], 0.001) == ([], [], []),
    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0,
    gc.collect() >= 0,
    len(mmap.mmap(-1, 4096)) == 4096,
    faulthandler.enable() is None,
    os.cpu_count() >= 1 and os.getpid() > 0 and os.getcwd() == "/",
    os.path.exists("/child.py") and not os.access("/child.py", os.W_OK),
    len(pathlib.Path(os.__file__).read_text()) > 0,
    locale.setlocale(locale.LC_ALL, "") in ("C", "C.UTF-8"),
    platform.system() == "Linux" and sys.stdout.isatty() is False,
    shutil.get_terminal_size().columns == 80,
]
try:
    os.kill(os.getpid(), 0)
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    done.append(True)
return [bool(it) for it in done]
"""
    with Child(Surroundings(("numpy",)), LIMITS) as child:
        found = ask(child, body)
    assert found == [True] * 22
