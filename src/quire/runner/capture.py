"""`capture`: a CUDA graph of whatever some work queues on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def capture(work: Callable[[], T], pool: Any) -> tuple[torch.cuda.CUDAGraph, T]:
    """Return a graph of the kernels that `work` queues, and what it returned in the graph's pool.

    `work` runs twice: kernels compile at the first time, which a capture cannot. NCCL has a thread
    that looks at events meanwhile, which is no fault of the capturing one.
    """
    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        return graph, work()
