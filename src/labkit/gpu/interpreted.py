"""Kernels of a reader run in Triton's interpreter: what a check or a hidden test asks for.

The cell that is loaded before the reader's, `labkit.sandbox.interpreter`, runs the launches; this
side chooses their inputs, and compares the outputs with an oracle. `ptx` compiles a kernel for a
GPU that need not be there. A lab says `interpreted = true` in its `lab.toml` to have all this.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from labkit.gpu.frontier import compile_cell
from labkit.gpu.runner import Argument, Device, Pointer
from labkit.reader.kernel_child import complaint, loaded
from labkit.reader.subject import Subject
from labkit.reader.values import describe

__all__ = ["Array", "Buffer", "Ran", "compare", "loaded", "output", "ptx", "run"]
Array = np.ndarray[Any, Any]
HOPPER = Device("NVIDIA H200", 90, 232_448, 1024, (2**31 - 1, 65_535, 65_535), 50 << 20)


@dataclass(frozen=True)
class Buffer:
    """A tensor that kernels may point at.

    Attributes:
        kind: Triton's name of its numbers: fp16, fp32, i32 or i64.
        data: the numbers [rows, columns] or [columns]; None for an output, which is poisoned.
        shape: [rows, columns], where there are no data.
        stride: elements from one row to the next; None where rows lie one behind another.
        places: numbers of the rows that there are, ascending; None for 0, 1, 2, ….
        writable: whether a kernel may write to it.
    """

    kind: str
    data: Array | None = None
    shape: tuple[int, int] | None = None
    stride: int | None = None
    places: Array | None = None
    writable: bool = False

    def wire(self) -> dict[str, Any]:
        """What crosses the pipe."""
        data = None if self.data is None else np.atleast_2d(self.data)
        shape = self.shape if data is None else data.shape
        assert shape is not None
        if data is not None:
            data = data.astype(np.int64 if self.kind[0] == "i" else np.float32)
        return {
            "kind": self.kind,
            "shape": list(shape),
            "data": data,
            "stride": self.stride or shape[1],
            "places": None if self.places is None else self.places.astype(np.int64),
            "writable": self.writable or self.data is None,
        }


def output(kind: str, *shape: int, stride: int | None = None) -> Buffer:
    """An output [rows, columns] or [columns], full of poison."""
    rows, columns = (1, *shape) if len(shape) == 1 else shape
    return Buffer(kind, None, (rows, columns), stride)


@dataclass(frozen=True)
class Ran:
    """What launches left: numbers of each writable buffer, which were written, and counts."""

    said: str
    data: dict[str, Array]
    written: dict[str, Array]
    launches: list[dict[str, Any]] = field(default_factory=list)

    def read(self, name: str) -> int:
        """Bytes that all launches read of a buffer."""
        return sum(int(one["read"][name]) for one in self.launches)


def run(
    student: Subject,
    plan: str,
    sizes: Mapping[str, Any],
    buffers: Mapping[str, Buffer],
    scalars: Mapping[str, int] | None = None,
    *,
    order: int = 0,
) -> Ran:
    """Run the launches that `plan(**sizes)` returns.

    Args:
        student: the reader's cells.
        plan: the name of the function that returns the launches.
        sizes: what it is told.
        buffers: what kernels may point at, by the names of their parameters.
        scalars: whole numbers that they may take.
        order: seed of the order in which programs run.

    Raises:
        Wrong: the cell is not plain, a launch is not what was asked for, or a kernel failed.
    """
    said = f"{plan}({', '.join(f'{name}={value!r}' for name, value in sizes.items())})"
    said += " and its kernels"
    strange = complaint(student.source)
    if strange is not None:
        student.fail(f"called {said}\ngot {strange}")
    wire = {name: buffer.wire() for name, buffer in buffers.items()}
    asked = [plan, dict(sizes), wire, dict(scalars or {}), order]
    reply = student.call("run_kernels", *asked, said=lambda: said)
    if type(reply) is dict and type(reply.get("fault")) is str:
        student.fail(f"called {said}\ngot {reply['fault']}")
    try:
        return _believed(said, reply, buffers)
    except (KeyError, TypeError, ValueError):
        student.fail(f"called {said}\ngot an answer that no launch gives")
        raise


def _believed(said: str, reply: Any, buffers: Mapping[str, Buffer]) -> Ran:
    """An answer whose outputs have the shapes that were sent."""
    outputs = [name for name, one in buffers.items() if one.wire()["writable"]]
    for part in ("data", "written"):
        if type(reply[part]) is not dict or set(reply[part]) != set(outputs):
            raise ValueError(part)
        for name in outputs:
            if list(reply[part][name].shape) != buffers[name].wire()["shape"]:
                raise ValueError(name)
    for one in reply["launches"]:
        if set(one["read"]) != set(buffers) or set(one["written"]) != set(buffers):
            raise ValueError("launches")
    return Ran(said, reply["data"], reply["written"], list(reply["launches"]))


def compare(
    student: Subject, ran: Ran, name: str, want: Array, tolerance: float, because: str = ""
) -> None:
    """Compare an output with what an oracle says; NaN stands for "left as it was".

    Raises:
        Wrong: a number differs, was not written, or was written and should not have been.
    """
    want = np.atleast_2d(want)
    alone, written = np.isnan(want), ran.written[name]
    missing, strayed = int((~written & ~alone).sum()), int((written & alone).sum())
    reason = f"  ({because})" if because else ""
    words = f"called {ran.said}{reason}\n"
    if missing:
        place = np.argwhere(~written & ~alone)[0].tolist()
        student.fail(
            f"{words}got {missing} of {int((~alone).sum())} numbers of `{name}` never written, the "
            f"first at {place}"
        )
    if strayed:
        place = np.argwhere(written & alone)[0].tolist()
        student.fail(f"{words}got `{name}` written at {place}, where nothing is asked for")
    got = np.where(alone, 0, ran.data[name].astype(np.float64))
    want = np.where(alone, 0, want)
    shown = f"{ran.said}, and looked at `{name}`"
    student.compare(shown, _flat(got), _flat(want), tolerance, because)


def _flat(values: Array) -> Array:
    return values[0] if len(values) == 1 else values


def ptx(
    student: Subject,
    plan: str,
    sizes: Mapping[str, Any],
    kinds: Mapping[str, str],
    scalars: Mapping[str, int] | None = None,
    launch: int = 0,
) -> str:
    """Compile the kernel of a launch for a Hopper and return its PTX; no GPU is needed.

    Args:
        student: the reader's cells.
        plan, sizes: as `run` takes them.
        kinds: Triton's type of the numbers that each parameter points at.
        scalars: the other arguments.
        launch: which of the launches.

    Raises:
        Wrong: it does not compile, or is not launched as asked.
    """
    strange = complaint(student.source)
    if strange is not None:
        student.fail(f"compiled the kernel of {plan}\ngot {strange}")
    arguments: dict[str, Argument] = {
        name: Pointer(f"*{kind}", i) for i, (name, kind) in enumerate(kinds.items())
    }
    arguments |= dict(scalars or {})
    name = _kernel_of(student, plan, sizes, launch)
    glue = (
        f"\n\n\ndef launch(**sizes):\n    made = dict({plan}(**sizes)[{launch}])\n"
        "    del made['kernel']\n    return made\n"
    )
    return _compiled(
        student.source + glue,
        name,
        tuple(arguments.items()),
        tuple(sizes.items()),
        student.unsafe_local,
    )


@functools.lru_cache(maxsize=64)  # one text compiles to one PTX, whoever hands it in
def _compiled(
    source: str,
    name: str,
    arguments: tuple[tuple[str, Argument], ...],
    sizes: tuple[tuple[str, Any], ...],
    unsafe_local: bool,
) -> str:
    launch = compile_cell(
        source, name, dict(arguments), dict(sizes), HOPPER, unsafe_local=unsafe_local
    )  # fmt: skip
    return launch.ptx


def _kernel_of(student: Subject, plan: str, sizes: Mapping[str, Any], launch: int) -> str:
    """The name of the kernel of a launch, as the plan in the child says."""
    made = student.call("launches_of", plan, dict(sizes), said=lambda: f"{plan}({dict(sizes)})")
    if type(made) is not list or len(made) <= launch or type(made[launch]) is not str:
        student.fail(f"called {plan}\nexpected a list of launches\ngot {describe(made)}")
    return str(made[launch])
