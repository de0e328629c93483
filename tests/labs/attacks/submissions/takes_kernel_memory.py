# ruff: noqa
# tries: takes memory of the kernel's own, which no limit on address space counts
# outcome: no queue, pipe, pair of sockets, timer, watch or record lock can be made
# earns: 0
# says: MADE \[\]
# task: sampler
import ctypes
import fcntl
import os
import platform
import socket

library = ctypes.CDLL(None, use_errno=True)
column = 0 if platform.machine() == "x86_64" else 1
room = ctypes.create_string_buffer(4096)
calls = {  # x86-64, AArch64, arguments
    "io_setup": (206, 0, 1000, room),
    "io_uring_setup": (425, 425, 64, room),
    "timer_create": (222, 107, 1, 0, room),
    "timerfd_create": (283, 85, 1, 0),
    "eventfd2": (290, 19, 0, 0),
    "epoll_create1": (291, 20, 0),
    "inotify_init1": (294, 26, 0),
    "fanotify_init": (300, 262, 0, 0),
    "msgget": (68, 186, 0, 0o1666),
    "semget": (64, 190, 0, 9, 0o1666),
    "add_key": (248, 217, b"user", b"x", b"y", 1, -3),
    "seccomp": (317, 277, 2, 0, 0),
}
made = []
for name, (*numbers, first, second, third, fourth, fifth) in (
    (name, (*call, *[0] * (7 - len(call)))) for name, call in calls.items()
):
    if library.syscall(numbers[column], first, second, third, fourth, fifth) >= 0:
        made.append(name)
file = os.open("/child.py", os.O_RDONLY)
for call in (
    os.pipe,
    socket.socketpair,
    lambda: fcntl.lockf(file, fcntl.LOCK_SH, 1, 7),
    lambda: [fcntl.fcntl(n, 1031, 1 << 20) for n in range(9)],
):
    try:
        call()
        made.append("more")
    except OSError:
        pass
raise RuntimeError(f"MADE {made}")
