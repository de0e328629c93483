"""`quire bench quantization-speed`: what fewer bits of a weight do to time, on a GPU.

Rows `products-<format>-m<M>` are the four products of one decoder layer for M tokens at once,
captured in a graph over several layers whose weights together are larger than the cache; 16-bit
weights stand beside each. Rows `<model>-<format>-…` are whole runs of the engine on random
weights, with the same loads as `quire bench engine`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from quire.bench.engine import mix256, seconds_of, uniform_load
from quire.bench.measurement import Row
from quire.bench.timing import graph_seconds, median_seconds
from quire.errors import QuireError
from quire.layers.linear import Linear
from quire.llm import LLM
from quire.models.config import ModelConfig
from quire.quantization.factory import methods

FORMATS = ("int4", "int8", "fp8", "fp8_block")
TOKENS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
ENGINE_FORMATS = (None, "int4", "fp8", "fp8_block")


def run(config: ModelConfig, name: str, device: torch.device) -> list[Row]:
    """Measure products, then whole runs.

    Raises:
        QuireError: not on a GPU.
    """
    if device.type != "cuda":
        raise QuireError("bench quantization-speed measures real sizes: use --device cuda")
    rows = products(config, device, torch.bfloat16, 4, TOKENS)
    return rows + runs(config, name.lower(), device)


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


def runs(config: ModelConfig, name: str, device: torch.device) -> list[Row]:
    """Run the engine on the loads of `bench engine`, one format after another."""
    rows: list[Row] = []
    plain: dict[str, float] = {}
    for scheme in ENGINE_FORMATS:
        llm = LLM(
            config,
            device=device,
            quantization=scheme,
            max_model_len=2048,
            max_num_seqs=256,
            max_num_batched_tokens=16384,
            enable_prefix_caching=False,
        )
        label = scheme or "bf16"
        loads = {
            "batch1": uniform_load(1, 128, 256),
            "64x512x256": uniform_load(64, 512, 256),
            "mix256": mix256(),
        }
        for load_name, load in loads.items():
            seconds = seconds_of(llm, load, 3)
            num_tokens = sum(p.output_limit for p in load[1])
            plain.setdefault(load_name, seconds)
            ratio = {"speedup": plain[load_name] / seconds}
            if load_name == "batch1":
                ms, beside = (each / num_tokens * 1e3 for each in (seconds, plain[load_name]))
                row = Row(f"{name}-{label}-batch1", "ms_per_token", ms, "ms", {"bf16": beside})
            else:
                rate, beside = (num_tokens / each for each in (seconds, plain[load_name]))
                case = f"{name}-{label}-{load_name}"
                row = Row(case, "tokens_per_second", rate, "tokens/s", {"bf16": beside})
            row.parameters.update(ratio)
            rows.append(row)
        del llm
        gc.collect()
        torch.cuda.empty_cache()
    return rows
