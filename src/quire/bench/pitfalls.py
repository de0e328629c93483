"""`quire bench pitfalls`: ways to time a GPU wrongly, beside the right one.

A matrix-vector product of a decode step (4096 → 14336, bf16, 117 MB of weights) is timed
as it is, and with one mistake at a time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from quire.bench.measurement import Row
from quire.bench.timing import graph_seconds, synchronize

IN_FEATURES, OUT_FEATURES = 4096, 14336
SMALL_OUT = 4096  # 34 MB, which fits an L2 cache of 60 MB


def run(device: torch.device) -> list[Row]:
    """Time one product six ways and attention four; every row in microseconds a call."""
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
    per_call |= _attention_calls(device)
    return [Row(case, "us_per_call", value * 1e6, "µs") for case, value in per_call.items()]


def _attention_calls(device: torch.device) -> dict[str, float]:
    """Time decode attention whose length grows by one each call, as it does in a request.

    cuDNN builds an execution plan for each shape it has not met; a benchmark that repeats
    one length never pays for it.
    """
    query = torch.randn(1, 8, 2, 128, device=device, dtype=torch.bfloat16)
    cache = torch.randn(1, 8, 1024, 128, device=device, dtype=torch.bfloat16)
    lengths = itertools.count(300)

    def attend(length: int) -> None:
        F.scaled_dot_product_attention(query, cache[:, :, :length], cache[:, :, :length])

    times = {}
    for name, backend in (
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
        ("flash", SDPBackend.FLASH_ATTENTION),
    ):
        with sdpa_kernel(backend):
            times[f"{name}-one-length"] = _loop(lambda: attend(299), device, wait=True)
            times[f"{name}-growing-length"] = _loop(
                lambda: attend(next(lengths)), device, wait=True
            )
    return times


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
