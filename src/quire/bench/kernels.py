"""`quire bench kernels`: each kernel beside torch's own and a copy of as many bytes.

Every case runs in a CUDA graph over sets of inputs that together are several times the
last-level cache, so that neither the host nor the cache is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.analysis import catalog_config
from quire.bench import attention
from quire.bench.measurement import Row
from quire.bench.timing import graph_seconds
from quire.errors import QuireError
from quire.kernels.linear import MAX_ROWS, skinny_linear
from quire.kernels.norm import rms_norm
from quire.kernels.sampling import greedy, sample
from quire.kernels.softmax import softmax
from quire.kernels.tiled_matrix import tile_for, tiled_linear
from quire.kernels.tiles import Tile, make_counters

DTYPE = torch.bfloat16
ROTATED_BYTES = 300_000_000  # five times the last-level cache of an H200
MODELS = ("qwen3-0.6b", "qwen3-8b")
VOCAB_SIZE = 151_936
T = TypeVar("T")


def run(device: torch.device) -> list[Row]:
    """Measure every kernel on a CUDA device."""
    if device.type != "cuda":
        raise QuireError("bench kernels times GPU kernels; use --device cuda")
    with torch.inference_mode():
        return [
            linear_row(device),
            *row_kernels(device),
            *skinny_rows(device),
            *sampling_rows(device),
            *attention.run(),
        ]


def linear_row(device: torch.device) -> Row:
    """One row times a weight of 4096 → 14336: bytes of weight a second."""
    weights = _rotated((14336, 4096), device)
    x = torch.randn(1, 4096, device=device, dtype=DTYPE)
    return _bandwidth_row(
        "linear-m1",
        weights[0].nbytes,
        device,
        weights,
        lambda weight: skinny_linear(x, weight, None),
        {"torch F.linear": lambda weight: F.linear(x, weight)},
    )


def row_kernels(device: torch.device, rows: int = 16384, size: int = 4096) -> list[Row]:
    """Kernels that read and write a matrix once, row by row."""
    inputs = _rotated((rows, size), device)
    scale = torch.rand(size, device=device, dtype=DTYPE)
    moved = 2 * inputs[0].nbytes
    return [
        _bandwidth_row(
            "rmsnorm",
            moved,
            device,
            inputs,
            lambda x: rms_norm(x, scale, 1e-6),
            {"torch F.rms_norm": lambda x: F.rms_norm(x, (size,), scale, 1e-6)},
        ),
        _bandwidth_row(
            "softmax",
            moved,
            device,
            inputs,
            softmax,
            {"torch softmax": lambda x: x.softmax(-1)},
        ),
    ]


def skinny_rows(device: torch.device) -> list[Row]:
    """The products of a decoder layer for 1 to 64 rows, in microseconds: the evidence of
    `prefers_skinny` and of `quire.kernels.tiled_matrix.tile_for`."""
    rows = []
    for model in MODELS:
        config = catalog_config(model)
        if config is None:
            raise QuireError(f"{model} is not in the catalog")
        q_size = config.num_heads * config.head_size
        kv_size = config.num_kv_heads * config.head_size
        hidden, inner = config.hidden_size, config.intermediate_size
        shapes = {
            "qkv": (q_size + 2 * kv_size, hidden),
            "o": (hidden, q_size),
            "gate-up": (2 * inner, hidden),
            "down": (hidden, inner),
        }
        for name, shape in shapes.items():
            weights = _rotated(shape, device)
            product = f"{model}-{name}"
            for num_rows in (1, 2, 4, 8, MAX_ROWS):
                x = torch.randn(num_rows, shape[1], device=device, dtype=DTYPE)
                ours = partial(_by_skinny, x)
                rows.append(_product_row(f"skinny-{product}-m{num_rows}", x, weights, ours))
            for num_rows in (MAX_ROWS, 32, 64):
                tile = tile_for(num_rows, *shape)
                if tile is not None:
                    x = torch.randn(num_rows, shape[1], device=device, dtype=DTYPE)
                    counters = make_counters(shape[0], device)
                    ours = partial(_by_tiles, x, counters, tile)
                    rows.append(_product_row(f"tiled-{product}-m{num_rows}", x, weights, ours))
    return rows


def _by_skinny(x: Tensor, weight: Tensor) -> Tensor:
    return skinny_linear(x, weight, None)


def _by_tiles(x: Tensor, counters: Tensor, tile: Tile, weight: Tensor) -> Tensor:
    return tiled_linear(x, weight, None, counters, tile)


def _product_row(
    case: str, x: Tensor, weights: Sequence[Tensor], ours: Callable[[Tensor], Tensor]
) -> Row:
    """A product over many weights, beside torch's."""
    baselines = {"torch F.linear": _seconds_each(lambda weight: F.linear(x, weight), weights) * 1e6}
    value = _seconds_each(ours, weights) * 1e6
    return Row(case, "us", value, "µs", baselines, {"rows": len(x)})


def sampling_rows(device: torch.device) -> list[Row]:
    """The choice of a token for each of a batch's rows, in microseconds."""
    rows = []
    for batch in (1, 64, 256):
        logits = [3 * x for x in _rotated((batch, VOCAB_SIZE), device)[:4]]
        keys = torch.arange(batch, device=device)

        cases: dict[str, Callable[[Tensor], Tensor]] = {
            "greedy": greedy,
            "sample": _drawing(keys, top_k=0, top_p=1.0),
            "sample-top-k-top-p": _drawing(keys, top_k=50, top_p=0.95),
        }
        for name, choose in cases.items():
            baselines = {}
            if name == "greedy":
                baselines["torch argmax"] = _seconds_each(lambda x: x.argmax(-1), logits) * 1e6
            value = _seconds_each(choose, logits) * 1e6
            rows.append(Row(f"{name}-{batch}", "us", value, "µs", baselines, {"batch": batch}))
    return rows


def _drawing(keys: Tensor, top_k: int, top_p: float) -> Callable[[Tensor], Tensor]:
    """Return a sampler of logits with one set of parameters for all rows."""
    zero = torch.zeros(len(keys), device=keys.device)
    temperature, ps, ks = zero + 0.8, zero + top_p, torch.full_like(keys, top_k)
    return lambda logits: sample(logits, temperature, ks, ps, zero, keys, keys)


def _bandwidth_row(
    case: str,
    num_bytes: int,
    device: torch.device,
    inputs: Sequence[Tensor],
    kernel: Callable[[Tensor], object],
    contenders: dict[str, Callable[[Tensor], object]],
) -> Row:
    """TB/s of a kernel that moves `num_bytes`, of its contenders, and of a copy of as many."""
    half = num_bytes // 2  # a copy reads and writes
    pairs = [
        (torch.empty_like(source), source) for source in _rotated((half // DTYPE.itemsize,), device)
    ]
    seconds = {name: _seconds_each(work, inputs) for name, work in contenders.items()}
    seconds["copy"] = _seconds_each(lambda pair: pair[0].copy_(pair[1]), pairs)
    baselines = {name: num_bytes / time / 1e12 for name, time in seconds.items()}
    value = num_bytes / _seconds_each(kernel, inputs) / 1e12
    return Row(case, "TBps", value, "TB/s", baselines, {"bytes": num_bytes})


def _rotated(shape: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """Return random tensors of a shape, together at least `ROTATED_BYTES`; not zeros, which
    run faster than data."""
    count = max(math.ceil(ROTATED_BYTES / (math.prod(shape) * DTYPE.itemsize)), 4)
    return [torch.randn(shape, device=device, dtype=DTYPE) for _ in range(count)]


def _seconds_each(work: Callable[[T], object], inputs: Sequence[T]) -> float:
    """Return the device seconds of `work` on one input, over all of them in turn."""

    def all_of_them() -> None:
        for x in inputs:
            work(x)

    return graph_seconds(all_of_them) / len(inputs)
