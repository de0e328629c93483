"""A step's work, counted token by token; shares no line with the reference.

Every new token is listed with its position and with how often the batch computes it; what
it sees, reads and writes is looked up per layer.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

MODEL = {
    "layers": 4,
    "hidden": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_size": 16,
    "ffn": 160,
    "vocab": 500,
    "weight_bytes": 2,
    "kv_bytes": 2,
}
LARGE = MODEL | {
    "layers": 24, "hidden": 1024, "heads": 16, "kv_heads": 4, "head_size": 64, "ffn": 2816,
    "vocab": 32_000,
}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    "window": {"window": 96},
    "quantized": {"recent": 64, "scale_bytes": 2},
    "shared": {"shared": 200},
}
SWITCHED_OFF: dict[str, dict[str, Any]] = {
    "window": {"window": 1 << 30},
    "quantized": {"recent": 1 << 30, "scale_bytes": 2},
    "shared": {"shared": 0},
}


def work(
    model: dict[str, Any], variant: str, batch: int, new: int, before: int
) -> tuple[float, float]:
    """(FLOPs, bytes) of one step."""
    positions = np.arange(before, before + new)
    cached = np.arange(before)
    copies = np.full(new, batch)  # how often a new token is computed
    cached_copies = np.full(before, batch)
    if variant == "shared":
        copies[positions < model["shared"]] = 1
        cached_copies[cached < model["shared"]] = 1

    qkv = model["hidden"] * model["head_size"] * (model["heads"] + 2 * model["kv_heads"])
    out = model["hidden"] * model["head_size"] * model["heads"]
    layer_weights = qkv + out + 3 * model["hidden"] * model["ffn"]
    head = model["vocab"] * model["hidden"]
    flops = 2.0 * head * batch
    moved = float(model["weight_bytes"]) * (head + model["layers"] * layer_weights)
    full = 2 * model["kv_heads"] * model["head_size"] * model["kv_bytes"]
    for layer in range(model["layers"]):
        sees = positions + 1
        read = cached >= 0
        if variant == "window" and layer % 2 == 1:
            sees = np.minimum(sees, model["window"])
            # The first new token looks back furthest.
            read = cached > before - model["window"]
        flops += 2.0 * layer_weights * copies.sum()
        flops += 4.0 * model["heads"] * model["head_size"] * float((sees * copies).sum())
        cost = np.full(before, full)
        rewritten = 0.0
        if variant == "quantized":
            small = 2 * model["kv_heads"] * (model["head_size"] + model["scale_bytes"])
            cost[cached < before - model["recent"]] = small
            everything = np.arange(before + new)
            leaves = everything < before + new - model["recent"]
            leaves &= ~(everything < before - model["recent"])
            rewritten = float(leaves.sum() * small * batch)
        moved += float((cost * cached_copies)[read].sum()) + full * float(copies.sum()) + rewritten
    return flops, moved


@functools.cache  # the same steps are asked for on each machine, with noise and without
def _work_of(
    model: tuple[tuple[str, Any], ...], variant: str, batch: int, new: int, before: int
) -> tuple[float, float]:
    return work(dict(model), variant, batch, new, before)


def times(
    model: dict[str, Any], variant: str, row: dict[str, int], constants: tuple[float, float, float]
) -> dict[str, float]:
    """TTFT and TPOT of a row on a machine of (overhead s, FLOP/s, bytes/s)."""
    overhead, flop_rate, byte_rate = constants
    sizes = tuple(model.items())

    def seconds(new: int, before: int) -> float:
        flops, moved = _work_of(sizes, variant, row["batch"], new, before)
        return overhead + max(flops / flop_rate, moved / byte_rate)

    steps = [seconds(1, row["prompt"] + i) for i in range(row["output"] - 1)]
    return {"ttft": seconds(row["prompt"], 0), "tpot": sum(steps) / len(steps)}
