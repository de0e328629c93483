"""Autotune's trap: the tuner runs a kernel many times, and a kernel that adds adds each time.

`triton.autotune` times every configuration on the caller's own tensors. A kernel that
accumulates into its output needs `reset_to_zero`, or the first result is too large.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from quire.bench.measurement import Row
from quire.kernels.runtime import jit, tl, triton

BLOCKS = (256, 512, 1024)
# Runs a call and returns its times at quantiles; None: Triton's own.
Bench = Callable[..., Sequence[float]]


def rows(device: torch.device, bench: Bench | None = None, size: int = 2**20) -> list[Row]:
    """Return how many times too large a sum is that a tuned kernel adds up."""
    values = torch.ones(size, device=device)  # sums of ones are exact up to 2²⁴
    made = []
    for case, reset in (("autotune-trap", None), ("autotune-reset-to-zero", ["out"])):
        kernel = tuned(reset, bench)
        first, second = (_sum(kernel, values) / size for _ in range(2))
        made.append(
            Row(
                case,
                "times_too_large",
                first,
                "1",
                {"right": 1.0},
                {"configurations": float(len(BLOCKS)), "second_call": second},
            )
        )
    return made


def tuned(reset: list[str] | None, bench: Bench | None) -> Any:
    """Return the kernel under a fresh tuner, which has met no size yet."""
    configs = [triton.Config({"block": block}) for block in BLOCKS]
    wrap = triton.autotune(configs, key=["size"], reset_to_zero=reset, do_bench=bench)
    return wrap(_sum_kernel)


def _sum(kernel: Any, values: Tensor) -> float:
    out = torch.zeros(1, device=values.device, dtype=torch.float64)
    kernel[lambda meta: (triton.cdiv(len(values), meta["block"]),)](values, out, len(values))
    return float(out)


@jit
def _sum_kernel(values, out, size, block: tl.constexpr):
    """One program a block, added to whatever `out` holds."""
    place = tl.program_id(0) * block + tl.arange(0, block)
    part = tl.sum(tl.load(values + place, place < size, other=0.0))
    tl.atomic_add(out, part.to(tl.float64))
