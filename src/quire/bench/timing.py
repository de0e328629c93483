"""How quire takes a time: warmed up, waited for, repeated; the median kept, of rivals the best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


# docs: timing begin
def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was queued; a CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(
    work: Callable[[], object], device: torch.device, *, warmup: int = 3, repeats: int = 10
) -> float:
    """Return the median wall time of `work()` in seconds.

    On a GPU a call only queues its kernels, so the clock is read after the device has
    caught up. The first calls pay for loading code and allocating memory and are left
    out. The median is not moved by the odd interruption, which only ever adds time.
    """
    for _ in range(warmup):
        work()
    times = []
    for _ in range(repeats):
        synchronize(device)
        begin = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


# docs: timing end


def interleaved_seconds(
    works: dict[str, Callable[[], object]],
    device: torch.device,
    *,
    warmup: int = 1,
    repeats: int = 5,
) -> dict[str, float]:
    """Return the best time of each contender in seconds, taken in turns.

    Turns let a slow spell of the machine hit every contender; the best of several is the
    time with the least disturbance, so that a ratio of two is fair.
    """
    best = dict.fromkeys(works, float("inf"))
    for turn in range(warmup + repeats):
        for name, work in works.items():
            seconds = median_seconds(work, device, warmup=0, repeats=1)
            if turn >= warmup:
                best[name] = min(best[name], seconds)
    return best


def graph_seconds(work: Callable[[], object], *, warmup: int = 3, repeats: int = 20) -> float:
    """Return the median device time of `work()` in seconds, captured in a CUDA graph.

    A replay launches all kernels at once, so the host's share of the time is gone and the
    kernels' own remains.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmup):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for _ in range(repeats):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)
