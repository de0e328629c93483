"""The rule by which a kernel on a GPU is graded: right first, then fast, and never too fast.

A kernel could answer from memory, leave its output untouched, or finish after the clock has
stopped. So every call gets inputs that nobody has seen, and an output full of poison; the output
comes back to the parent, is compared there, and only then is the call over. The parent's clock
therefore counts the way to the child and back as well; the same way with no work, in a child
that holds none of the reader's code, is measured in turn and taken off. A time below what the
roofline allows the machine is no speed but a mistake, or a trick, and earns nothing.

Nothing here needs a GPU: a kernel is whatever answers a problem, and time is whatever the clock
says.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.values import difference

Array = np.ndarray[Any, Any]
Clock = Callable[[], float]
POISON_BYTE = 0xFF  # every float of such bytes is NaN, every integer is -1
SLACK = 0.9  # of the roofline's time: peaks are quoted, clocks are read, both a little wrongly


@dataclass(frozen=True)
class Problem:
    """Inputs for one call, and the output it has to fill."""

    inputs: list[Array]
    output: Array


Answer = Callable[[Problem], Any]  # runs a kernel elsewhere; returns the output as it was left


@dataclass(frozen=True)
class Roofline:
    """Peaks of a machine; 312e12 and 2.0e12 for an A100 in bf16, say."""

    flops_per_second: float
    bytes_per_second: float

    def least_seconds(self, flops: float, moved: float) -> float:
        """The least time that so much arithmetic and so many bytes can take."""
        return max(flops / self.flops_per_second, moved / self.bytes_per_second)


@dataclass(frozen=True)
class KernelTask:
    """What is asked of a kernel.

    `make` draws inputs, `oracle` computes in NumPy and float64 what they give; `flops` and
    `moved` bytes count one call's work, every input read and the output written once.
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
    """Seconds of one call: the reader's and the reference's, the way there and back taken off."""

    seconds: float
    reference: float

    @property
    def share(self) -> float:
        """The reader's speed as a share of the reference's."""
        return self.reference / self.seconds


def poisoned(shape: tuple[int, ...], dtype: str) -> Array:
    """An output that no computation leaves behind: NaN, or -1 for integers."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return np.frombuffer(bytes([POISON_BYTE]) * size, dtype=dtype).reshape(shape).copy()


def untouched(output: Array) -> int:
    """How many numbers of an output are still poison."""
    number = np.dtype(f"u{output.dtype.itemsize}")
    bits = np.ascontiguousarray(output).view(number)
    return int((bits == np.iinfo(number).max).sum())


def wrong(problem: Problem, got: Any, want: Array, tolerance: float) -> str | None:
    """Say what is wrong with an output, or return None."""
    output = problem.output
    if not isinstance(got, np.ndarray) or (got.shape, got.dtype) != (output.shape, output.dtype):
        return f"expected the output back, {output.dtype} of shape {output.shape}"
    left = untouched(got) if want.dtype.kind == "f" else 0
    if left:
        return f"{left} of {got.size} numbers of the output were never written"
    return difference(got, want.astype(np.float64), tolerance)


def measure(
    task: KernelTask,
    reader: Answer,
    reference: Answer,
    idle: Answer,
    rng: np.random.Generator,
    *,
    calls: int = 9,
    clock: Clock = time.perf_counter,
) -> Speed | str:
    """Run reader, reference and idle in turns, each on problems of its own.

    `rng` is unknown to the reader: seeded by a course key, say, and by the submission.

    Returns:
        The speed, medians over the calls; or in words what was wrong with an output. Every
        call that is timed is also judged.
    """
    seconds: dict[str, list[float]] = {"reader": [], "reference": [], "idle": []}
    for _ in range(calls):
        for name, answer in (("idle", idle), ("reference", reference), ("reader", reader)):
            problem, want = task.problem(rng)
            start = clock()
            got = answer(problem)
            seconds[name].append(clock() - start)
            if name == "reader":
                complaint = wrong(problem, got, want, task.tolerance)
                if complaint is not None:
                    return complaint
    way = statistics.median(seconds["idle"])
    return Speed(
        statistics.median(seconds["reader"]) - way, statistics.median(seconds["reference"]) - way
    )


def too_fast(speed: Speed, task: KernelTask, roofline: Roofline) -> str | None:
    """Say that a time is below what the machine can do, or return None."""
    least = roofline.least_seconds(task.flops, task.moved)
    if speed.seconds >= SLACK * least:
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
