"""What the child may not ask of the kernel: a seccomp filter, as bytes for `bwrap --seccomp`.

Namespaces hide what is outside; this list closes what they leave open. The child stays one
process of one thread, so a fork bomb ends at its first call, also where the grader runs as
root and the kernel ignores a limit on processes. It makes no memory that the limit on its
address space would miss, opens no socket (some families know no network namespace), and
cannot reach the parts of a kernel that sandboxes have been left by.

The filter is classic BPF as seccomp(2) describes it. Numbers: Linux's own tables, asm/unistd_64.h
for x86-64 and asm-generic/unistd.h for AArch64; those above 423 are the same on both.
"""

from __future__ import annotations

import errno
import platform
import struct

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000  # x86-64's second set of numbers begins here
CLONE3 = 435
DENIED_EVERYWHERE = {
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsmount": 432,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "memfd_secret": 447,
}
DENIED = {
    "x86_64": DENIED_EVERYWHERE
    | {
        "shmget": 29,
        "socket": 41,
        "clone": 56,
        "fork": 57,
        "vfork": 58,
        "semget": 64,
        "msgget": 68,
        "ptrace": 101,
        "personality": 135,
        "pivot_root": 155,
        "mount": 165,
        "umount2": 166,
        "mq_open": 240,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "unshare": 272,
        "perf_event_open": 298,
        "name_to_handle_at": 303,
        "open_by_handle_at": 304,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "kcmp": 312,
        "memfd_create": 319,
        "bpf": 321,
        "userfaultfd": 323,
    },
    "aarch64": DENIED_EVERYWHERE
    | {
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "personality": 92,
        "unshare": 97,
        "ptrace": 117,
        "mq_open": 180,
        "msgget": 186,
        "semget": 190,
        "shmget": 194,
        "socket": 198,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "clone": 220,
        "perf_event_open": 241,
        "name_to_handle_at": 264,
        "open_by_handle_at": 265,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "kcmp": 272,
        "memfd_create": 279,
        "bpf": 280,
        "userfaultfd": 282,
    },
}

# Instructions of classic BPF, and offsets into `struct seccomp_data`.
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER_AT, ARCHITECTURE_AT = 0, 4
KILL_PROCESS, FAIL_WITH, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000


class UnknownMachine(RuntimeError):
    """There is no table of system calls for this machine."""


def filter_program(machine: str | None = None) -> bytes:
    """Return the filter for `machine`, by default this one.

    Raises:
        UnknownMachine: another one than x86-64 and AArch64.
    """
    machine = machine or platform.machine()
    if machine not in DENIED:
        raise UnknownMachine(
            f"submissions can be isolated on {' and '.join(DENIED)}, and this machine is {machine}"
        )
    refuse = _instruction(RETURN, FAIL_WITH | errno.EPERM)
    program = [
        _instruction(LOAD_WORD, ARCHITECTURE_AT),
        _instruction(JUMP_IF_EQUAL, AUDIT_ARCH[machine], if_true=1),
        _instruction(RETURN, KILL_PROCESS),
        _instruction(LOAD_WORD, NUMBER_AT),
        _instruction(JUMP_IF_AT_LEAST, X32_BIT, if_false=1),
        refuse,
        # The C library takes "no such call" as the word to use `clone`, which is refused.
        _instruction(JUMP_IF_EQUAL, CLONE3, if_false=1),
        _instruction(RETURN, FAIL_WITH | errno.ENOSYS),
    ]
    for number in DENIED[machine].values():
        program += [_instruction(JUMP_IF_EQUAL, number, if_false=1), refuse]
    return b"".join([*program, _instruction(RETURN, ALLOW)])


def _instruction(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; a jump skips `if_true` or `if_false` instructions."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
