"""`quire bench pitfalls`: four ways to time a GPU wrongly, beside the right one.

A matrix-vector product of a decode step (4096 → 14336, bf16, 117 MB of weights) is timed
as it is, and with one mistake at a time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from quire.bench.measurement import Row
from quire.bench.timing import graph_seconds, synchronize

IN_FEATURES, OUT_FEATURES = 4096, 14336
SMALL_OUT = 4096  # 34 MB, which fits an L2 cache of 60 MB


def run(device: torch.device) -> list[Row]:
    """Time one product five ways; every row in microseconds a call."""
    x = torch.randn(1, IN_FEATURES, device=device, dtype=torch.bfloat16)
    weights = [
        torch.randn(OUT_FEATURES, IN_FEATURES, device=device, dtype=torch.bfloat16)
        for _ in range(8)
    ]
    small = [weight[:SMALL_OUT].clone() for weight in weights]

    def rotating(pool: list[torch.Tensor]) -> Callable[[], object]:
        turn = itertools.cycle(pool)
        return lambda: F.linear(x, next(turn))

    begin = time.perf_counter()
    F.linear(x, weights[0])
    synchronize(device)
    first = time.perf_counter() - begin

    per_call = {
        "first-call": first,
        "not-synchronized": _loop(rotating(weights), device, wait=False),
        "synchronized": _loop(rotating(weights), device, wait=True),
        "graph": graph_seconds(lambda: [F.linear(x, w) for w in weights]) / len(weights),
        "small-one-buffer": graph_seconds(lambda: [F.linear(x, small[0]) for _ in small])
        / len(small),
        "small-rotated": graph_seconds(lambda: [F.linear(x, w) for w in small]) / len(small),
    }
    return [Row(case, "us_per_call", value * 1e6, "µs") for case, value in per_call.items()]


def _loop(work: Callable[[], object], device: torch.device, *, wait: bool) -> float:
    """Return the time of a call in a loop of 100, waiting for the device or not."""
    for _ in range(10):
        work()
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(100):
        work()
    if wait:
        synchronize(device)
    elapsed = time.perf_counter() - begin
    synchronize(device)
    return elapsed / 100
