"""Ways to make a kernel look fast, each beside the honest time of the same kernel.

The product of one row is `gemv.wide_loads`, 4096 → 2048, 17 MB of weights: small enough for one
half of a last-level cache of 60 MB, which is one of the cheats. The engine's kernel would not show
it: it tells the cache to drop weights first (`evict_first`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from quire.analysis import Hardware
from quire.bench.ladders.gemv import Product, wide_loads
from quire.bench.ladders.ladder import draw, seconds_each, sets_of
from quire.bench.ladders.matmul import PIPELINED, Matrices, Tiling, matmul
from quire.bench.measurement import Row
from quire.bench.timing import synchronize

REPLAYS = 16  # of all square products in a graph: long enough that power counts
T = TypeVar("T")


def rows(
    device: torch.device,
    ceilings: Hardware | None,
    dtype: torch.dtype = torch.bfloat16,
    shape: tuple[int, int] = (2048, 4096),
    size: int = 4096,
    tiling: Tiling = PIPELINED,
) -> list[Row]:
    """Time a product of one row, and a square product, honestly and not; µs a call.

    Args:
        shape: outputs and depth of the product of one row.
        size: of the square product.
    """
    return [
        *one_row(device, ceilings, dtype, shape),
        *square(device, ceilings, dtype, size, tiling),
    ]


def one_row(
    device: torch.device, ceilings: Hardware | None, dtype: torch.dtype, shape: tuple[int, int]
) -> list[Row]:
    """Inputs that stay in the cache, zeros in place of data, and answers given a second time."""
    num_bytes = shape[0] * shape[1] * dtype.itemsize
    count = sets_of(num_bytes, device)
    x = draw(0, 1, shape[1], device=device, dtype=dtype)
    random = [Product(x, draw(i, *shape, device=device, dtype=dtype)) for i in range(1, count + 1)]
    zeros = [Product(torch.zeros_like(x), torch.zeros_like(p.weight)) for p in random]
    honest = seconds_each(wide_loads, random, device)
    false = {
        "inputs-stay-in-l2": seconds_each(wide_loads, random[:1] * count, device),
        "zeros": seconds_each(wide_loads, zeros, device),
        "cached-output": by_the_clock(Remembering(wide_loads), random, device, waits=True),
    }
    limit = None if ceilings is None else num_bytes / ceilings.bandwidth_bytes_per_s
    made = [_row(f"cheat-{name}", each, honest, limit) for name, each in false.items()]
    made[-1].parameters["error_after_a_change"] = changed_in_place(
        Remembering(wide_loads), random[0]
    )
    return made


def square(
    device: torch.device, ceilings: Hardware | None, dtype: torch.dtype, size: int, tiling: Tiling
) -> list[Row]:
    """Zeros, with which the chip draws less power, and a clock that does not wait.

    A product of one row would not do for the second: to queue it takes longer than to run it.
    """

    def work(pair: Matrices) -> Tensor:
        return matmul(pair.a, pair.weight, tiling)

    shape = (size, size)
    repeats = REPLAYS if device.type == "cuda" else 1
    random = [
        Matrices(*(draw(2 * i + j, *shape, device=device, dtype=dtype) for j in range(2)))
        for i in range(sets_of(2 * size * size * dtype.itemsize, device))
    ]
    zeros = [Matrices(torch.zeros_like(p.a), torch.zeros_like(p.weight)) for p in random]
    honest = seconds_each(work, random * repeats, device)
    false = {
        "matmul-zeros": seconds_each(work, zeros * repeats, device),
        "matmul-not-synchronized": by_the_clock(work, random, device, waits=False),
    }
    limit = None if ceilings is None else 2 * size**3 / ceilings.peak("bf16")
    return [_row(f"cheat-{name}", each, honest, limit) for name, each in false.items()]


def _row(case: str, false: float, honest: float, limit: float | None) -> Row:
    parameters = {"times_too_fast": honest / false}
    if limit is not None:  # a share above 1 gives a cheat away
        parameters |= {
            "limit_us": limit * 1e6,
            "share_of_limit": limit / false,
            "honest_share_of_limit": limit / honest,
        }
    return Row(case, "us", false * 1e6, "µs", {"honest": honest * 1e6}, parameters)


def by_the_clock(
    work: Callable[[T], Tensor], inputs: Sequence[T], device: torch.device, *, waits: bool
) -> float:
    """Return a call's seconds by the host's clock; without waiting it shows the queueing alone."""
    for each in inputs:  # compiled, and remembered
        work(each)
    synchronize(device)
    begin = time.perf_counter()
    for each in inputs:
        work(each)
    if waits:
        synchronize(device)
    seconds = time.perf_counter() - begin
    synchronize(device)
    return seconds / len(inputs)


class Remembering:
    """A kernel that gives its last answer again for a weight at an address that it has met."""

    def __init__(self, work: Callable[[Product], Tensor]) -> None:
        self._work = work
        self._answers: dict[int, Tensor] = {}

    def __call__(self, product: Product) -> Tensor:
        """Multiply, or pretend to."""
        place = product.weight.data_ptr()
        if place not in self._answers:
            self._answers[place] = self._work(product)
        return self._answers[place]


def changed_in_place(work: Callable[[Product], Tensor], product: Product) -> float:
    """Return the relative error after the weight changes where it is: what catches a memory."""
    mine = Product(product.x, product.weight.clone())
    work(mine)
    mine.weight.neg_()
    expected = mine.x.double() @ mine.weight.double().T
    return float((work(mine).double() - expected).norm() / expected.norm())
