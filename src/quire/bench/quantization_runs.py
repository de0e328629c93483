"""`quire bench quantization-runs`: what fewer bits of a weight do to the engine, on a GPU.

Rows `<model>-<format>-…` are whole runs on random weights, with the loads of `quire bench engine`;
beside each stands the time of 16-bit weights on the same machine.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from quire.bench.engine import Load, mix256, seconds_of, uniform_load
from quire.bench.measurement import Row
from quire.errors import QuireError
from quire.llm import LLM
from quire.models.config import ModelConfig

FORMATS = (None, "int4", "fp8", "fp8_block")
LOADS: dict[str, tuple[Callable[[], Load], int]] = {
    "batch1": (lambda: uniform_load(1, 128, 256), 3),
    "64x512x256": (lambda: uniform_load(64, 512, 256), 3),
    "mix256": (mix256, 1),  # a quarter of a minute each
}  # load, and how often it is repeated


def run(config: ModelConfig, name: str, device: torch.device) -> list[Row]:
    """Measure every load with every format.

    Raises:
        QuireError: not on a GPU.
    """
    if device.type != "cuda":
        raise QuireError("bench quantization-runs measures real sizes: use --device cuda")
    rows: list[Row] = []
    plain: dict[str, float] = {}
    for scheme in FORMATS:
        llm = LLM(
            config,
            device=device,
            quantization=scheme,
            max_model_len=2048,
            max_num_seqs=256,
            max_num_batched_tokens=16384,
            enable_prefix_caching=False,
        )
        for load_name, (load, repeats) in LOADS.items():
            seconds = seconds_of(llm, load(), repeats)
            num_tokens = sum(params.output_limit for params in load()[1])
            beside = plain.setdefault(load_name, seconds)
            rows.append(
                row_of(f"{name}-{scheme or 'bf16'}-{load_name}", num_tokens, seconds, beside)
            )
        del llm
        gc.collect()
        torch.cuda.empty_cache()
    return rows


def row_of(case: str, num_tokens: int, seconds: float, beside: float) -> Row:
    """Return a row: ms a token for one request, tokens a second for many; bf16 beside it."""
    speedup = {"speedup": beside / seconds}
    if case.endswith("batch1"):
        ms, others = seconds / num_tokens * 1e3, beside / num_tokens * 1e3
        return Row(case, "ms_per_token", ms, "ms", {"bf16": others}, speedup)
    rate, others = num_tokens / seconds, num_tokens / beside
    return Row(case, "tokens_per_second", rate, "tokens/s", {"bf16": others}, speedup)
