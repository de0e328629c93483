"""A ladder: kernels for one operation, each with one idea more, checked, timed, and compared.

A kernel's time counts only if its answer is right, so every step is first compared with an
oracle in higher precision, with NaN in the memory that it is to fill. A limit stands beside
every time: the bytes that must move at the bandwidth that was measured, or the operations at
the measured rate, whichever takes longer.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from quire.analysis import Hardware
from quire.bench.kernels import ROTATED_BYTES
from quire.bench.measurement import Row
from quire.bench.timing import graph_seconds, median_seconds
from quire.errors import QuireError
from quire.kernels.runtime import HAS_TRITON, jit, tl, triton

if HAS_TRITON:
    from triton.runtime.errors import TritonError
else:
    TritonError = RuntimeError

# ‖out − oracle‖ / ‖oracle‖ of a right kernel: a rounding of inputs, of weights, of the result.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
COPIED = 2**21  # bytes
T = TypeVar("T")


@dataclass(frozen=True)
class Ladder(Generic[T]):
    """The kernels of one operation, in the order in which they are taught."""

    name: str
    inputs: Sequence[T]  # together larger than the last-level cache, where times count
    steps: dict[str, Callable[[T], Tensor]]
    others: dict[str, Callable[[T], Tensor]]  # torch's own, at its best settings
    oracle: Callable[[T], Tensor]  # float64
    num_bytes: int  # that must move: each input read once, the output written once
    flops: float = 0.0  # of the products; a multiplication and an addition are two
    beside_copy: bool = True  # whether a copy of as many bytes is a fair neighbour
    parameters: dict[str, float] = field(default_factory=dict)

    def limit_seconds(self, device: Hardware) -> float:
        """Return the time below which no kernel gets on a device with these ceilings."""
        return max(self.num_bytes / device.bandwidth_bytes_per_s, self.flops / device.peak("bf16"))


def rows(
    ladder: Ladder[T],
    device: torch.device,
    ceilings: Hardware | None,
    unmeasured: list[str],
) -> list[Row]:
    """Check, then time every step; a row is microseconds a call, with the share of the limit.

    Args:
        ceilings: of the device; None: not known, and the rows have no limit.
        unmeasured: gets a line for what failed, which has no row: a kernel that is wrong or
            that the device refuses shall not cost the others their times.
    """
    found: dict[str, tuple[float, float]] = {}  # relative error, seconds
    expected = ladder.oracle(ladder.inputs[0])
    for name, work in {**ladder.others, **ladder.steps}.items():
        try:
            wrong = checked(work, ladder.inputs[0], expected, poison=name in ladder.steps)
            found[name] = wrong, seconds_each(work, ladder.inputs, device)
        except (QuireError, RuntimeError, TritonError) as failure:
            reason = (str(failure) or type(failure).__name__).splitlines()[0]
            unmeasured.append(f"{ladder.name}, {name}: {reason}")
    others = {name: found[name][1] * 1e6 for name in ladder.others if name in found}
    if ladder.beside_copy:
        others["copy"] = copy_seconds(ladder.num_bytes, device) * 1e6
    made: list[Row] = []
    for number, name in enumerate(ladder.steps, 1):
        if name not in found:
            continue
        wrong, seconds = found[name]
        parameters = {"step": float(number), "bytes": float(ladder.num_bytes)}
        parameters |= {"flops": ladder.flops, "relative_error": wrong, **ladder.parameters}
        if made:
            parameters["times_faster"] = made[-1].value / (seconds * 1e6)  # than the step before
        if ceilings is not None:
            limit = ladder.limit_seconds(ceilings)
            parameters |= {"limit_us": limit * 1e6, "share_of_limit": limit / seconds}
        made.append(Row(f"{ladder.name}-{name}", "us", seconds * 1e6, "µs", others, parameters))
    return made


def checked(
    work: Callable[[T], Tensor], inputs: T, expected: Tensor, *, poison: bool = True
) -> float:
    """Return ‖out − expected‖ / ‖expected‖ of a right kernel.

    Args:
        expected: float64.
        poison: the memory that the kernel allocates holds NaN before.

    Raises:
        QuireError: the error is larger than the dtype allows, or NaN; a wrong kernel has no time.
    """
    with poisoned(poison):
        out = work(inputs)
    if out.shape != expected.shape:
        raise QuireError(f"shape {list(out.shape)}, and the oracle's is {list(expected.shape)}")
    error = float((out.double() - expected).norm() / expected.norm())
    if not error <= TOLERANCE[out.dtype]:
        raise QuireError(
            f"off by {error:.3g} of the result's norm where {out.dtype} allows "
            f"{TOLERANCE[out.dtype]:g}: the kernel is wrong, so it is not timed"
        )
    return error


@contextmanager
def poisoned(wanted: bool = True) -> Iterator[None]:
    """Memory that torch hands out holds NaN, so that an output left unwritten shows."""
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def seconds_each(work: Callable[[T], object], inputs: Sequence[T], device: torch.device) -> float:
    """Return the seconds of `work` on one set of inputs, over all of them in turn."""

    def all_of_them() -> None:
        for each in inputs:
            work(each)

    if device.type == "cuda":
        return graph_seconds(all_of_them) / len(inputs)
    return median_seconds(all_of_them, device, warmup=0, repeats=1) / len(inputs)


def copy_seconds(num_bytes: int, device: torch.device) -> float:
    """Return the time of a copy that reads half of the bytes and writes the other half.

    What is copied is a multiple of 2 MiB, and the time scaled. On an H200 a copy of 58,738,688
    bytes took 45 µs and one of 58,720,256, which are 28 times 2 MiB, 30 µs in another run; the
    cause was not looked for.
    """
    half = max(round(num_bytes / 2 / COPIED), 1) * COPIED
    pairs = [
        (torch.empty_like(source), source)
        for source in (
            torch.randint(256, (half,), device=device, dtype=torch.uint8)
            for _ in range(sets_of(half, device))
        )
    ]
    seconds = seconds_each(lambda pair: pair[0].copy_(pair[1]), pairs, device)
    return seconds * num_bytes / (2 * half)


def sets_of(num_bytes: float, device: torch.device) -> int:
    """Return how many sets of inputs of a size do not fit the last-level cache; 1 on a CPU."""
    if device.type != "cuda":
        return 1
    return max(math.ceil(ROTATED_BYTES / num_bytes), 3)


def draw(seed: int, *shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return normal random numbers: zeros would run faster than data."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)


def add_parts(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum of partial results, float32 [parts, rows, size], in a dtype."""
    count, num_rows, size = parts.shape
    out = torch.empty(num_rows, size, device=parts.device, dtype=dtype)
    block = min(triton.next_power_of_2(num_rows * size), 1024)
    grid = (triton.cdiv(num_rows * size, block),)
    _add_parts_kernel[grid](parts, out, num_rows * size, count=count, block=block)
    return out


@jit
def _add_parts_kernel(parts, out, size, count: tl.constexpr, block: tl.constexpr):
    """Parts are added in their order, so that a result repeats its bits."""
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    total = tl.zeros((block,), tl.float32)
    for part in tl.static_range(count):
        start = tl.full((), part, tl.int64) * size  # 64 bits: parts may hold more than 2³¹ elements
        total += tl.load(parts + start + place, place < size, other=0.0)
    tl.store(out + place, total.to(out.dtype.element_ty), place < size)
