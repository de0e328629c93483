"""`quire bench quantization-speed`: what fewer bits of a weight do to a layer's products.

Rows `products-<format>-m<M>` are the four products of one decoder layer for M tokens at once,
captured in a graph over several layers whose weights together are larger than the cache; 16-bit
weights stand beside each. The time includes what a format does to its inputs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from quire.bench.measurement import Row
from quire.bench.timing import graph_seconds, median_seconds
from quire.errors import QuireError
from quire.layers.linear import Linear
from quire.models.config import ModelConfig
from quire.quantization.factory import methods

FORMATS = ("int4", "int8", "fp8", "fp8_block")
TOKENS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


def run(config: ModelConfig, device: torch.device) -> list[Row]:
    """Measure the products of every format.

    Raises:
        QuireError: not on a GPU.
    """
    if device.type != "cuda":
        raise QuireError("bench quantization-speed measures real sizes: use --device cuda")
    return products(config, device, torch.bfloat16, 4, TOKENS)


def products(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    layers: int,
    tokens: Sequence[int],
) -> list[Row]:
    """Time the four products of each format, in turns with 16-bit weights."""
    rows = []
    plain = _stack(config, None, device, dtype, layers)
    for scheme in FORMATS:
        stack = _stack(config, scheme, device, dtype, layers)
        weights = sum(layer.in_features * layer.out_features for layer in stack[0])
        for m in tokens:
            inputs = [
                torch.randn(m, layer.in_features, device=device, dtype=dtype) for layer in stack[0]
            ]
            seconds = _seconds(partial(_multiply, stack, inputs), device) / layers
            beside = _seconds(partial(_multiply, plain, inputs), device) / layers
            rows.append(
                Row(
                    f"products-{scheme}-m{m}",
                    "microseconds_per_layer",
                    seconds * 1e6,
                    "us",
                    {"16 bits": beside * 1e6},
                    {"tokens": float(m), "weights": float(weights), "speedup": beside / seconds},
                )
            )
        del stack
        gc.collect()
    return rows


def _stack(
    config: ModelConfig,
    scheme: str | None,
    device: torch.device,
    dtype: torch.dtype,
    layers: int,
) -> list[list[Linear]]:
    """The products of some layers with random weights of a format."""
    q_size = config.num_heads * config.head_size
    kv_size = config.num_kv_heads * config.head_size
    shapes = (
        (config.hidden_size, q_size + 2 * kv_size),
        (q_size, config.hidden_size),
        (config.hidden_size, 2 * config.intermediate_size),
        (config.intermediate_size, config.hidden_size),
    )
    generator = torch.Generator(device).manual_seed(0)
    method_for = methods(config, scheme, dtype, device)

    def layer(depth: int, size: int) -> Linear:
        made = Linear(depth, {"out": size}, method_for, bias=False, dtype=dtype, device=device)
        made.fill_random(generator)
        made.finish_load()
        return made

    return [[layer(*shape) for shape in shapes] for _ in range(layers)]


@torch.inference_mode()
def _multiply(stack: list[list[Linear]], inputs: list[Tensor]) -> None:
    for four in stack:
        for x, layer in zip(inputs, four, strict=True):
            layer(x)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        return graph_seconds(work)
    return median_seconds(work, device, warmup=1, repeats=3)
