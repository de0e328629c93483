# ruff: noqa
# tries: makes namespaces of its own and mounts the host's disk
# outcome: the calls are refused
# earns: 0
# says: LEFT \[-1, -1, -1, -1\]
# task: sampler
import ctypes

libc = ctypes.CDLL(None)
left = [libc.unshare(0x10000000), libc.unshare(0x00020000)]
left += [libc.mount(b"none", b"/packages", b"tmpfs", 0, None), libc.setns(0, 0)]
raise RuntimeError(f"LEFT {left}")
