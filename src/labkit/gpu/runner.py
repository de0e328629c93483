"""The parent's end of the GPU: a trusted process for one kernel, that holds no reader's Python.

`Runner` starts the process (`labkit.gpu.launcher`), hands it a PTX and a problem, and gets back
the output and the seconds of the launch alone. A kernel that faults leaves its context unusable,
and one that never ends can only be killed with its process: either costs that submission its
runner, and nobody else anything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labkit.gpu.kernels import POISON_BYTE, Array, Problem
from labkit.reader.subject import Wrong

START_SECONDS = 60.0  # for the process to find its GPU, on a busy machine too
PROCESS = Path(__file__).with_name("launcher.py")
ENDED = "the process that ran the kernel ended"


class NoGpu(RuntimeError):
    """No GPU can be used here; the message says why, in one line."""


class KernelLost(Wrong):
    """A kernel gave no output: it faulted, did not load, or did not end; the message says which."""


@dataclass(frozen=True)
class Device:
    """A GPU and its limits: bytes, threads and blocks."""

    name: str
    capability: int  # 90 for sm_90
    shared_bytes: int  # of one program
    max_threads: int  # of one program
    max_grid: tuple[int, int, int]
    cache_bytes: int  # of the last level


@dataclass(frozen=True)
class Pointer:
    """An argument: where in a problem's buffers, its inputs and then its output, it points."""

    kind: str  # Triton's type, such as `*bf16`
    buffer: int
    offset: int = 0  # bytes


Argument = Pointer | int  # an int is passed as 32 bits


@dataclass(frozen=True)
class Launch:
    """A kernel and its launch; `labkit.gpu.frontier.checked` makes it from a child's reply."""

    ptx: str
    entry: str
    parameters: tuple[int, ...]  # bits of each, as the PTX declares
    arguments: tuple[Argument, ...]  # of the first parameters; the others get zero
    shared: int  # bytes
    num_warps: int
    grid: tuple[int, int, int]


class Runner:
    """A process for one kernel. After `KernelLost` it is gone, and every call says so again."""

    def __init__(self, call_seconds: float = 30.0) -> None:
        """Start it; a call that takes longer than `call_seconds` ends it.

        Raises:
            NoGpu: there is no NVIDIA driver or no GPU.
        """
        self._call_seconds = call_seconds
        self._lost: str | None = None
        # The modules are loaded before the clock runs, and no compiled kernel is kept on disk.
        environment = {"CUDA_MODULE_LOADING": "EAGER", "CUDA_CACHE_DISABLE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(PROCESS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
        )
        try:
            facts, _ = self._ask({"op": "device"}, (), START_SECONDS)
        except KernelLost as lost:
            self.close()
            raise NoGpu(f"a GPU is needed: {lost}") from None
        self.device = Device(**{**facts, "max_grid": tuple(facts["max_grid"])})

    def load(self, launch: Launch) -> None:
        """Load a kernel, in place of the one before.

        Raises:
            KernelLost: the driver does not take it.
        """
        self._ask({"op": "load", **asdict(launch)}, (), self._call_seconds)

    def run(self, problem: Problem) -> tuple[Array, float]:
        """Launch the kernel once on a problem; return the output as it left it, and seconds.

        Raises:
            KernelLost: it faulted, did not end in time, or wrote outside of the output.
        """
        arrays = [*problem.inputs, problem.output]
        sizes = [array.nbytes for array in arrays]
        message = {"op": "run", "sizes": sizes, "poison": POISON_BYTE}
        reply, data = self._ask(message, problem.inputs, self._call_seconds)
        if reply["strayed"]:
            raise KernelLost(f"the kernel changed {reply['strayed']} bytes outside of its output")
        output = np.frombuffer(data, problem.output.dtype).reshape(problem.output.shape)
        return output, float(reply["seconds"])

    def _ask(
        self, message: dict[str, Any], arrays: Sequence[Array], seconds: float
    ) -> tuple[dict[str, Any], bytes]:
        """Send a message and the bytes of arrays; return the reply and the bytes behind it."""
        if self._lost is not None:
            raise KernelLost(self._lost)
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None
        assert replies is not None
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            self._process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            requests.write(json.dumps(message).encode() + b"\n")
            for array in arrays:
                requests.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            requests.flush()
            reply = json.loads(replies.readline())
            data = replies.read(reply.get("bytes", 0))
            if len(data) != reply.get("bytes", 0):
                reply = {"error": ENDED}
        except (BrokenPipeError, ValueError):  # ValueError: a line that is none
            reply, data = {"error": ENDED}, b""
        finally:
            timer.cancel()
        if is_late.is_set():
            reply = {"error": f"the kernel did not end within {seconds:g} s"}
        if "error" in reply:
            self._lost = str(reply["error"])
            raise KernelLost(self._lost)
        return reply, data

    def close(self) -> None:
        """End the process."""
        self._lost = self._lost or "closed"
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:
                pass  # what it had not read yet is of no use

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
