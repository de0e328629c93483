"""The rule by which a kernel on a GPU is graded: right first, then fast, and never too fast.

A kernel could answer from memory, leave part of its output as it was, or do nothing. So every
call gets inputs that nobody has seen and an output full of poison, and each timed call's output
is compared here, on the host, with an oracle in NumPy. The time is that of the launch alone, as
whoever ran it measured it (`labkit.gpu.runner`: by the GPU's own events, in a process without the
reader's Python). A time below what the roofline allows the machine is no speed but a mistake, or
a trick, and earns nothing.

Nothing here needs a GPU: a kernel is whatever answers a problem with an output and seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.reader.values import difference

Array = np.ndarray[Any, Any]
POISON_BYTE = 0xFF  # every float of such bytes is NaN, every integer is -1
SLACK = 0.9  # of the roofline's time: peaks are quoted, clocks are read, both a little wrongly
# NumPy has no bfloat16: on the host such an array is its bits, as the device keeps them.
HOST_DTYPES = {"bfloat16": "uint16"}


@dataclass(frozen=True)
class Problem:
    """Inputs for one call, and the output it has to fill, both as the device keeps them."""

    inputs: list[Array]
    output: Array


# Runs a kernel elsewhere; returns the output as it was left, and the seconds of the launch.
Run = Callable[[Problem], tuple[Any, float]]


@dataclass(frozen=True)
class Roofline:
    """Peaks of a machine; 312e12 and 2.0e12 for an A100 in bf16, say.

    `cache_bytes` of the last-level cache need not have crossed the memory's bus: what a kernel
    wrote last may still lie there when it ends.
    """

    flops_per_second: float
    bytes_per_second: float
    cache_bytes: float = 0.0

    def least_seconds(self, flops: float, moved: float) -> float:
        """The least time that so much arithmetic and so many bytes can take."""
        across = max(0.0, moved - self.cache_bytes)
        return max(flops / self.flops_per_second, across / self.bytes_per_second)


@dataclass(frozen=True)
class KernelTask:
    """What is asked of a kernel.

    `make` draws inputs as the device keeps them (`to_bfloat16` where it keeps bfloat16);
    `oracle` computes in NumPy and float64 what they give, with NaN where the kernel must leave
    the output alone. `dtype` is the output's; `flops` and `moved` bytes count one call's work,
    every input read and the output written once.
    """

    make: Callable[[np.random.Generator], list[Array]]
    oracle: Callable[[list[Array]], Array]
    dtype: str
    flops: float
    moved: float
    tolerance: float

    def problem(self, rng: np.random.Generator) -> tuple[Problem, Array]:
        """A fresh problem and its answer."""
        inputs = self.make(rng)
        want = self.oracle(inputs)
        return Problem(inputs, poisoned(want.shape, self.dtype)), want


@dataclass(frozen=True)
class Speed:
    """Seconds of one launch, medians over the calls: the reader's and the reference's."""

    seconds: float
    reference: float

    @property
    def share(self) -> float:
        """The reader's speed as a share of the reference's."""
        return self.reference / self.seconds


def to_bfloat16(values: Array) -> Array:
    """Round floats to bfloat16, to nearest and ties to even; returns the bits as uint16."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    """The float32 numbers of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def poisoned(shape: tuple[int, ...], dtype: str) -> Array:
    """An output that no computation leaves behind: NaN, or -1 for integers."""
    host = HOST_DTYPES.get(dtype, dtype)
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(host).itemsize
    return np.frombuffer(bytes([POISON_BYTE]) * size, dtype=host).reshape(shape).copy()


def untouched(output: Array) -> Array:
    """Which numbers of an output are still poison."""
    number = np.dtype(f"u{output.dtype.itemsize}")
    return np.ascontiguousarray(output).view(number) == np.iinfo(number).max


def wrong(task: KernelTask, problem: Problem, got: Any, want: Array) -> str | None:
    """Say what is wrong with an output, or return None."""
    output = problem.output
    if not isinstance(got, np.ndarray) or (got.shape, got.dtype) != (output.shape, output.dtype):
        return f"expected the output back, {task.dtype} of shape {output.shape}"
    if want.dtype.kind == "f":
        poison, alone = untouched(got), np.isnan(want)
        left = int((poison & ~alone).sum())
        if left:
            return f"{left} of {int((~alone).sum())} numbers of the output were never written"
        strayed = int((~poison & alone).sum())
        if strayed:
            return f"{strayed} numbers of the output were written that no input asks for"
        got = from_bfloat16(got) if task.dtype == "bfloat16" else got
        got, want = np.where(alone, 0, got), np.where(alone, 0, want)
    return difference(got, want.astype(np.float64), task.tolerance)


def measure(
    task: KernelTask, reader: Run, reference: Run, rng: np.random.Generator, *, calls: int = 9
) -> Speed | str:
    """Run reader and reference in turns, each on problems of its own.

    `rng` is unknown to the reader: seeded by a course key, say, and by the submission.

    Returns:
        The speed, medians over the calls; or in words what was wrong with an output. Every
        call that is timed is also judged.
    """
    seconds: dict[str, list[float]] = {"reader": [], "reference": []}
    for _ in range(calls):
        for name, run in (("reference", reference), ("reader", reader)):
            problem, want = task.problem(rng)
            got, taken = run(problem)
            seconds[name].append(taken)
            complaint = wrong(task, problem, got, want) if name == "reader" else None
            if complaint is not None:
                return complaint
    return Speed(statistics.median(seconds["reader"]), statistics.median(seconds["reference"]))


def too_fast(speed: Speed, task: KernelTask, roofline: Roofline) -> str | None:
    """Say that a time is below what the machine can do, or return None."""
    least = roofline.least_seconds(task.flops, task.moved)
    if speed.seconds >= SLACK * least and speed.seconds > 0:
        return None
    return (
        f"a call took {speed.seconds * 1e6:.3g} µs, and {task.flops:.3g} FLOPs with "
        f"{task.moved:.3g} bytes cannot take less than {least * 1e6:.3g} µs on this machine: not "
        "all of the work was done within the call, so its speed is not graded"
    )


def judge_speed(speed: Speed, task: KernelTask, roofline: Roofline, at_least: float) -> str | None:
    """Say why a right kernel's speed earns nothing, or return None.

    Args:
        speed: from `measure`.
        task: what was asked.
        roofline: of the machine that it ran on.
        at_least: the share of the reference's speed that is asked for.
    """
    complaint = too_fast(speed, task, roofline)
    if complaint is None and not speed.share >= at_least:
        complaint = (
            f"a call took {speed.seconds * 1e6:.3g} µs and the reference's "
            f"{speed.reference * 1e6:.3g} µs: {speed.share:.0%} of its speed, {at_least:.0%} wanted"
        )
    return complaint
