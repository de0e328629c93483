# ruff: noqa
# tries: takes memory that a limit on address space misses
# outcome: neither shared segments nor memory files can be made
# earns: 0
# says: SEGMENTS \[\]
# task: sampler
import ctypes
import os

made = []
libc = ctypes.CDLL(None)
for _ in range(100):
    if libc.shmget(0, 1 << 30, 0o1666) != -1:
        made.append("segment")
try:
    made.append(os.memfd_create("x"))
except OSError:
    pass
raise RuntimeError(f"SEGMENTS {made}")
