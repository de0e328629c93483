"""`quire bench linear`: one layer's matrix products over the number of tokens at once.

The weights are read once whatever the number of tokens M, so M sets the arithmetic
intensity, and the measured rates draw the roofline.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from quire.bench.measurement import Row
from quire.bench.timing import graph_seconds, median_seconds
from quire.errors import QuireError
from quire.layers.linear import Linear
from quire.models.config import ModelConfig
from quire.quantization.cpu import FBGEMM, OneDNN
from quire.quantization.factory import unquantized

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def run(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    layers: int,
    tokens: tuple[int, ...] = TOKENS,
    *,
    compare: bool = True,
) -> list[Row]:
    """Time the four products of `layers` layers, each with weights of its own.

    `compare` also times what else multiplies on a CPU.

    Enough layers keep the weights out of the last-level cache, as a whole model's are.
    """
    if config.moe is not None:
        raise QuireError(
            f"bench linear times the products of a dense layer; {config.architecture} has experts: "
            "use bench steps"
        )
    q_size = config.num_heads * config.head_size
    kv_size = config.num_kv_heads * config.head_size
    shapes = [
        (q_size + 2 * kv_size, config.hidden_size),
        (config.hidden_size, q_size),
        (2 * config.intermediate_size, config.hidden_size),
        (config.hidden_size, config.intermediate_size),
    ]

    def empty(size: int, depth: int) -> Linear:
        method_for = unquantized(dtype, device)
        return Linear(depth, {"out": size}, method_for, bias=False, dtype=dtype, device=device)

    stack = [[empty(*shape) for shape in shapes] for _ in range(layers)]
    weights = [[_as_in_a_checkpoint(layer.weight) for layer in four] for four in stack]
    for four in stack:
        for layer in four:
            layer.finish_load()  # packs a copy on a CPU
    weight_bytes = 2 if isinstance(stack[0][0].method, FBGEMM) else dtype.itemsize
    others = _alternatives(weights) if compare and device.type == "cpu" else {}
    rows = []
    for num_tokens in tokens:
        inputs = [torch.randn(num_tokens, n, device=device, dtype=dtype) for _, n in shapes]

        def products(
            multiply: Callable[[torch.Tensor, Any], object],
            stack: list[list[Any]],
            inputs: list[torch.Tensor] = inputs,
        ) -> None:
            for four in stack:
                for x, weight in zip(inputs, four, strict=True):
                    multiply(x, weight)

        with torch.inference_mode():
            seconds = _seconds(partial(products, lambda x, layer: layer(x), stack), device)
            other_seconds = {
                name: _seconds(partial(products, *other), device) for name, other in others.items()
            }
        num_weights = sum(rows * columns for rows, columns in shapes)
        flops = 2 * num_tokens * num_weights
        activations = num_tokens * sum(rows + columns for rows, columns in shapes)
        moved = num_weights * weight_bytes + activations * dtype.itemsize
        parameters = {
            "tokens": float(num_tokens),
            "intensity": flops / moved,
            "tera_bytes_per_second": layers * moved / seconds / 1e12,
            "microseconds_per_layer": seconds / layers * 1e6,
        }
        rate = layers * flops / seconds / 1e12
        baselines = {name: layers * flops / time / 1e12 for name, time in other_seconds.items()}
        rows.append(Row(f"m{num_tokens}", "TFLOPs", rate, "TFLOP/s", baselines, parameters))
    return rows


def _as_in_a_checkpoint(weight: torch.Tensor) -> torch.Tensor:
    """Fill a weight with random bfloat16 numbers, in its own dtype; return it."""
    weight = weight.detach().normal_(0.0, 0.02)
    return weight.copy_(weight.bfloat16())


def _alternatives(weights: list[list[torch.Tensor]]) -> dict[str, tuple[Any, list[list[Any]]]]:
    """What else multiplies by these float32 weights: a function and its form of them, by name."""
    found: dict[str, tuple[Any, list[list[Any]]]] = {"torch F.linear": (F.linear, weights)}
    if OneDNN.available():
        pack, multiply = torch.ops.mkldnn._reorder_linear_weight, OneDNN.multiply
        found["oneDNN"] = multiply, [[pack(weight) for weight in four] for four in weights]
    return found


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        return graph_seconds(work)
    return median_seconds(work, device, warmup=1, repeats=5)
