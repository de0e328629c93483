"""What the child may ask of the kernel: a seccomp filter, as bytes for `bwrap --seccomp`.

Namespaces hide what is outside; this list closes what they leave open. It names what Python, NumPy
and torch need to compute, and all else is refused, the calls of kernels to come included. So the
child stays one process of one thread, and a fork bomb ends at its first call, also where root
grades and the kernel ignores a limit on processes. Whatever a call on this list allocates is
counted by the limit on its address space or bounded by that on open files: there are no pipes,
sockets, queues, timers, watches or record locks. It changes no mode, owner or time of a file, and
is told no path outside (`statmount`).

The filter is classic BPF as seccomp(2) describes it. Numbers: Linux's own tables, asm/unistd_64.h
for x86-64 and asm-generic/unistd.h for AArch64.
"""

from __future__ import annotations

import errno
import platform
import struct

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # and how the kernel's audit calls them
X32_BIT = 0x40000000  # x86-64's second set of numbers begins here
CLONE3 = 435

# The number of each call on each of MACHINES; None where it has a newer call only.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # files, for reading: there is nowhere to write
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "lseek": (8, 62),
    "close": (3, 57),
    "close_range": (436, 436),
    "open": (2, None),
    "openat": (257, 56),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "stat": (4, None),
    "lstat": (6, None),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "umask": (95, 166),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    # memory, which the limit on the address space counts
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    # signals to itself, and one timer of each kind
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "pause": (34, None),
    "alarm": (37, None),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    # clocks and sleep
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrusage": (98, 165),
    # who and where it is
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getpgrp": (111, None),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getgroups": (115, 158),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getcpu": (309, 168),
    "getrandom": (318, 278),
    "getrlimit": (97, 163),
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    # what the C library does for each thread, here the only one
    "arch_prctl": (158, None),
    "set_tid_address": (218, 96),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "sched_setaffinity": (203, 122),
    "restart_syscall": (219, 128),
    # its beginning and end; bubblewrap starts the interpreter, and waits for it, under this filter
    "execve": (59, 221),
    "wait4": (61, 260),
    "exit": (60, 93),
    "exit_group": (231, 94),
}

# Calls that are many in one: the numbers, and which of their commands, the second argument, pass.
COMMANDS: dict[str, tuple[tuple[int, int], tuple[int, ...]]] = {
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": ((16, 29), (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
    "fcntl": ((72, 25), (0, 1, 2, 3, 4, 1030)),
}

# Instructions of classic BPF, and offsets into `struct seccomp_data`.
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER_AT, ARCHITECTURE_AT, COMMAND_AT = 0, 4, 24  # the low half: both machines put it first
KILL_PROCESS, FAIL_WITH, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000


class UnknownMachine(RuntimeError):
    """There is no table of system calls for this machine."""


def filter_program(machine: str | None = None) -> bytes:
    """Return the filter for `machine`, by default this one.

    Raises:
        UnknownMachine: another one than x86-64 and AArch64.
    """
    machine = machine or platform.machine()
    if machine not in MACHINES:
        known = " and ".join(MACHINES)
        raise UnknownMachine(
            f"submissions can be isolated on {known}, and this machine is {machine}"
        )
    column = list(MACHINES).index(machine)
    allow, refuse = _return(ALLOW), _return(FAIL_WITH | errno.EPERM)
    program = [
        _instruction(LOAD_WORD, ARCHITECTURE_AT),
        _instruction(JUMP_IF_EQUAL, MACHINES[machine], if_true=1),
        _return(KILL_PROCESS),
        _instruction(LOAD_WORD, NUMBER_AT),
        _instruction(JUMP_IF_AT_LEAST, X32_BIT, if_false=1),
        refuse,
        # The C library takes "no such call" as the word to use `clone`, which is refused.
        *_if_equal(CLONE3, _return(FAIL_WITH | errno.ENOSYS)),
    ]
    for numbers in ALLOWED.values():
        number = numbers[column]
        if number is not None:
            program += _if_equal(number, allow)
    for columns, commands in COMMANDS.values():
        judged = [_instruction(LOAD_WORD, COMMAND_AT)]
        for command in commands:
            judged += _if_equal(command, allow)
        program += _if_equal(columns[column], *judged, refuse)
    return b"".join([*program, refuse])


def _if_equal(value: int, *then: bytes) -> list[bytes]:
    """Do `then`, which ends in a return, if the word that was loaded is `value`."""
    return [_instruction(JUMP_IF_EQUAL, value, if_false=len(then)), *then]


def _return(verdict: int) -> bytes:
    return _instruction(RETURN, verdict)


def _instruction(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; a jump skips `if_true` or `if_false` instructions."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
