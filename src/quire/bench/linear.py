"""`quire bench linear`: one layer's matrix products over the number of tokens at once.

The weights are read once whatever the number of tokens M, so M sets the arithmetic
intensity, and the measured rates draw the roofline.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from quire.bench.measurement import Row
from quire.bench.timing import graph_seconds, median_seconds
from quire.models.config import ModelConfig

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def run(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    layers: int,
    tokens: tuple[int, ...] = TOKENS,
) -> list[Row]:
    """Time the four products of `layers` layers, each with weights of its own.

    Enough layers keep the weights out of the last-level cache, as a whole model's are.
    """
    q_size = config.num_heads * config.head_size
    kv_size = config.num_kv_heads * config.head_size
    shapes = [
        (q_size + 2 * kv_size, config.hidden_size),
        (config.hidden_size, q_size),
        (2 * config.intermediate_size, config.hidden_size),
        (config.hidden_size, config.intermediate_size),
    ]
    weights = [
        [torch.randn(shape, device=device, dtype=dtype) * 0.02 for shape in shapes]
        for _ in range(layers)
    ]
    rows = []
    for num_tokens in tokens:
        inputs = [torch.randn(num_tokens, n, device=device, dtype=dtype) for _, n in shapes]

        def work(inputs: list[torch.Tensor] = inputs) -> None:
            for layer in weights:
                for x, weight in zip(inputs, layer, strict=True):
                    F.linear(x, weight)

        with torch.inference_mode():
            if device.type == "cuda":
                seconds = graph_seconds(work)
            else:
                seconds = median_seconds(work, device, warmup=1, repeats=5)
        num_weights = sum(rows * columns for rows, columns in shapes)
        flops = 2 * num_tokens * num_weights
        activations = num_tokens * sum(rows + columns for rows, columns in shapes)
        moved = (num_weights + activations) * dtype.itemsize
        parameters = {
            "tokens": float(num_tokens),
            "intensity": flops / moved,
            "tera_bytes_per_second": layers * moved / seconds / 1e12,
            "microseconds_per_layer": seconds / layers * 1e6,
        }
        rate = layers * flops / seconds / 1e12
        rows.append(Row(f"m{num_tokens}", "TFLOPs", rate, "TFLOP/s", parameters=parameters))
    return rows
