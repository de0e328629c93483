"""The process that launches a child's PTX on the GPU and times it.

`labkit.gpu.runner` starts it by path.

Inputs and output lie apart in one piece of device memory full of poison, and what a launch
changed outside of the output is counted. The time is that between two events of the GPU around
the launch alone. The last-level cache is flushed before it, which also keeps the GPU busy until
launch and events are queued, so that no time of the CPU's is counted.

Only the CUDA driver is used, by ctypes; signatures and numbers are those of its header, cuda.h.
A request is a line of JSON, with the inputs' bytes behind it; a reply is one with the output's.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any, BinaryIO

import numpy as np

GUARD = 1 << 20  # bytes of poison before, between and behind the buffers; also their alignment
FLUSH_BYTES = 256 << 20  # written before a launch; four times the cache where that is more
MAX_LOG = 400  # characters of the driver's complaint about a PTX


class _Failed(Exception):
    """The driver refused a call; the message is its own."""


LETTERS = {
    "p": ctypes.c_void_p,  # handles, streams and places on the host
    "d": ctypes.c_uint64,  # addresses on the device
    "n": ctypes.c_size_t,
    "u": ctypes.c_uint,
    "i": ctypes.c_int,
    "b": ctypes.c_ubyte,
}
SIGNATURES = {
    "cuInit": "u",
    "cuDeviceGetCount": "p",
    "cuDeviceGet": "pi",
    "cuDeviceGetName": "pii",
    "cuDeviceGetAttribute": "pii",
    "cuDevicePrimaryCtxRetain": "pi",
    "cuCtxSetCurrent": "p",
    "cuGetErrorString": "ip",
    "cuModuleLoadDataEx": "ppupp",
    "cuModuleUnload": "p",
    "cuModuleGetFunction": "ppp",
    "cuFuncSetAttribute": "pii",
    "cuMemAlloc_v2": "pn",
    "cuMemFree_v2": "d",
    "cuMemcpyHtoD_v2": "dpn",
    "cuMemcpyDtoH_v2": "pdn",
    "cuMemsetD8Async": "dbnp",
    "cuEventCreate": "pu",
    "cuEventRecord": "pp",
    "cuEventSynchronize": "p",
    "cuEventElapsedTime": "ppp",
    "cuLaunchKernel": "puuuuuuuppp",
}
# CUdevice_attribute
MAX_THREADS, MAX_GRID_X, CACHE_BYTES, MAJOR, MINOR, SHARED_BYTES = 1, 5, 38, 75, 76, 97
MAX_DYNAMIC_SHARED = 8  # CUfunction_attribute
ERROR_LOG, ERROR_LOG_BYTES = 5, 6  # CUjit_option


class _Cuda:
    """The CUDA driver: `cuda("cuInit", 0)` calls, and raises where it does not succeed."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise _Failed("there is no NVIDIA driver (libcuda.so.1) on this machine") from None
        for name, letters in SIGNATURES.items():
            getattr(self._library, name).argtypes = [LETTERS[letter] for letter in letters]

    def __call__(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            raise _Failed((text.value or b"CUDA error %d" % status).decode())

    def made(self, kind: Any, name: str, *arguments: Any) -> Any:
        """Call what writes its result to its first argument, a `kind`; return the result."""
        result = kind()
        self(name, ctypes.byref(result), *arguments)
        return result.value


class _Gpu:
    """The first GPU, and the kernel that is loaded."""

    def __init__(self) -> None:
        self._cuda = cuda = _Cuda()
        cuda("cuInit", 0)
        if not cuda.made(ctypes.c_int, "cuDeviceGetCount"):
            raise _Failed("there is no GPU on this machine")
        self._device = cuda.made(ctypes.c_int, "cuDeviceGet", 0)
        context = cuda.made(ctypes.c_void_p, "cuDevicePrimaryCtxRetain", self._device)
        cuda("cuCtxSetCurrent", context)
        self._events = [cuda.made(ctypes.c_void_p, "cuEventCreate", 0) for _ in range(2)]
        self._flush_bytes = max(FLUSH_BYTES, 4 * self._attribute(CACHE_BYTES))
        self._flush = cuda.made(ctypes.c_uint64, "cuMemAlloc_v2", self._flush_bytes)
        self._arena, self._arena_bytes = 0, 0
        self._module: int | None = None

    def _attribute(self, number: int) -> int:
        return int(self._cuda.made(ctypes.c_int, "cuDeviceGetAttribute", number, self._device))

    def device(self) -> dict[str, Any]:
        """The fields of `labkit.gpu.runner.Device`."""
        name = ctypes.create_string_buffer(256)
        self._cuda("cuDeviceGetName", name, len(name), self._device)
        return {
            "name": name.value.decode(),
            "capability": 10 * self._attribute(MAJOR) + self._attribute(MINOR),
            "shared_bytes": self._attribute(SHARED_BYTES),
            "max_threads": self._attribute(MAX_THREADS),
            "max_grid": [self._attribute(MAX_GRID_X + axis) for axis in range(3)],
            "cache_bytes": self._attribute(CACHE_BYTES),
        }

    def load(self, launch: dict[str, Any]) -> None:
        """Load the kernel of a `labkit.gpu.runner.Launch`, given by its fields."""
        if self._module is not None:
            self._cuda("cuModuleUnload", self._module)
        log = ctypes.create_string_buffer(8192)
        options = (ctypes.c_int * 2)(ERROR_LOG, ERROR_LOG_BYTES)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), len(log))
        text = launch["ptx"].encode() + b"\0"
        try:
            self._module = self._cuda.made(
                ctypes.c_void_p, "cuModuleLoadDataEx", text, 2, options, values
            )
        except _Failed as failed:
            said = log.value.decode(errors="replace").strip()[:MAX_LOG]
            raise _Failed(f"the driver does not load the PTX: {failed}. {said}") from None
        self._function = self._cuda.made(
            ctypes.c_void_p, "cuModuleGetFunction", self._module, launch["entry"].encode() + b"\0"
        )
        # More than 48 KiB have to be asked for.
        self._cuda("cuFuncSetAttribute", self._function, MAX_DYNAMIC_SHARED, launch["shared"])
        self._launch = launch

    def run(self, sizes: list[int], poison: int, inputs: Any) -> tuple[dict[str, Any], Any]:
        """Launch once, on inputs read from a pipe; return `seconds` and `strayed`, and the output.

        `sizes` are the bytes of each input and, last, of the output.
        """
        places, end = [], GUARD
        for size in sizes:
            places.append(end)
            end += -(-size // GUARD) * GUARD + GUARD
        before = np.full(end, poison, np.uint8)
        for place, size in zip(places[:-1], sizes[:-1], strict=True):
            if inputs.readinto(before[place : place + size].data) != size:
                raise EOFError("the inputs ended early")
        if end != self._arena_bytes:
            if self._arena_bytes:
                self._cuda("cuMemFree_v2", self._arena)
            self._arena = self._cuda.made(ctypes.c_uint64, "cuMemAlloc_v2", end)
            self._arena_bytes = end
        self._cuda("cuMemcpyHtoD_v2", self._arena, before.ctypes.data, end)
        seconds = self._timed(self._packed([self._arena + place for place in places]))
        after = np.empty_like(before)
        self._cuda("cuMemcpyDtoH_v2", after.ctypes.data, self._arena, end)
        where = slice(places[-1], places[-1] + sizes[-1])
        output = after[where].copy()
        after[where] = before[where]
        return {"seconds": seconds, "strayed": int(np.count_nonzero(after != before))}, output

    def _packed(self, addresses: list[int]) -> list[Any]:
        """The values of the kernel's parameters, each of the width that its PTX declares."""
        values: list[int] = []
        for argument in self._launch["arguments"]:
            is_number = type(argument) is int
            values.append(
                argument if is_number else addresses[argument["buffer"]] + argument["offset"]
            )
        widths = self._launch["parameters"]
        values += [0] * (len(widths) - len(values))  # Triton's own, of scratch memory of no bytes
        kinds = {32: ctypes.c_int32, 64: ctypes.c_uint64}
        return [kinds[bits](value) for bits, value in zip(widths, values, strict=True)]

    def _timed(self, values: list[Any]) -> float:
        """Flush the cache and launch; return the seconds of the launch."""
        cuda, (start, end) = self._cuda, self._events
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(one) for one in values))
        blocks, threads = self._launch["grid"], 32 * self._launch["num_warps"]
        cuda("cuMemsetD8Async", self._flush, 0, self._flush_bytes, None)
        cuda("cuEventRecord", start, None)
        cuda(
            "cuLaunchKernel", self._function, *blocks, threads, 1, 1, self._launch["shared"],
            None, pointers, None,
        )  # fmt: skip
        cuda("cuEventRecord", end, None)
        cuda("cuEventSynchronize", end)
        return float(cuda.made(ctypes.c_float, "cuEventElapsedTime", start, end)) / 1e3


def _send(replies: BinaryIO, message: dict[str, Any], data: bytes | memoryview = b"") -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.write(data)
    replies.flush()


def main() -> None:
    """Serve requests from standard input until it ends or a call fails."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # A kernel's printf writes to standard output: the pipe belongs to the protocol.
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    try:
        gpu = None
        for line in iter(requests.readline, b""):
            message = json.loads(line)
            gpu = gpu or _Gpu()
            if message["op"] == "device":
                _send(replies, gpu.device())
            elif message["op"] == "load":
                gpu.load(message)
                _send(replies, {})
            else:
                facts, output = gpu.run(message["sizes"], message["poison"], requests)
                _send(replies, {**facts, "bytes": output.nbytes}, output.data)
    except _Failed as failed:
        _send(replies, {"error": f"the kernel failed: {failed}" if gpu else str(failed)})


if __name__ == "__main__":
    main()
