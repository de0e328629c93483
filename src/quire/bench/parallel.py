"""`quire bench parallel`: whole runs of a model laid out over the GPUs of one machine.

The runs are those of `quire bench engine`: one request, in milliseconds a token, and `mix256`, in
tokens a second. Where a layout has several replicas, `mix256` is sent to each of them.
"""

from __future__ import annotations

import gc
import statistics
import sys

import torch

from quire.bench.engine import OPTIONS, Load, mix256, seconds_once, uniform_load
from quire.bench.measurement import Row
from quire.bench.several_gpus import check_layouts, count_gpus
from quire.config import EngineOptions
from quire.llm import LLM
from quire.models.config import ModelConfig
from quire.parallel.options import ParallelOptions

LAYOUTS = {
    "one": ParallelOptions(),
    "tp2": ParallelOptions(tensor_parallel_size=2),
    "pp2": ParallelOptions(pipeline_parallel_size=2),
    "dp2": ParallelOptions(data_parallel_size=2),
    "tp4": ParallelOptions(tensor_parallel_size=4),
    "tp2pp2": ParallelOptions(tensor_parallel_size=2, pipeline_parallel_size=2),
    "tp2dp2": ParallelOptions(tensor_parallel_size=2, data_parallel_size=2),
    "dp4": ParallelOptions(data_parallel_size=4),
    "tp8": ParallelOptions(tensor_parallel_size=8),
    "tp4dp2": ParallelOptions(tensor_parallel_size=4, data_parallel_size=2),
}
Value = tuple[float, str, str]  # with metric and unit


def run(
    model: ModelConfig, name: str, device: torch.device, labels: tuple[str, ...] | None = None
) -> list[Row]:
    """Measure a model under layouts; None: all for which there are GPUs.

    Raises:
        QuireError: fewer than two GPUs, or than a layout needs; a layout of no such name.
    """
    count = count_gpus("parallel", device)
    needed = {label: _gpus(options) for label, options in LAYOUTS.items()}
    chosen = labels or [label for label in LAYOUTS if needed[label] <= count]
    check_layouts(chosen, needed, count)
    found: dict[str, dict[str, Value]] = {}
    rows = []
    for label in chosen:
        found[label] = measure(model, LAYOUTS[label])
        for load, (value, metric, unit) in found[label].items():
            one = found.get("one", {}).get(load) if label != "one" else None
            parameters: dict[str, float] = {"gpus": needed[label]}
            beside = {} if one is None else {"one": one[0]}
            rows.append(Row(f"{name}-{label}-{load}", metric, value, unit, beside, parameters))
            print(f"{rows[-1].case}: {value:.5g} {unit}", file=sys.stderr, flush=True)
    return rows


def _gpus(options: ParallelOptions) -> int:
    return options.num_ranks * options.data_parallel_size


def measure(model: ModelConfig, options: ParallelOptions) -> dict[str, Value]:
    """Return milliseconds a token at batch 1 and tokens a second of the served load."""
    given: EngineOptions = {
        **OPTIONS,
        "device": "cuda",
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
        "data_parallel_size": options.data_parallel_size,
    }
    llm = LLM(model, **given)
    one, many = uniform_load(1, 128, 256), for_each(mix256(), options.data_parallel_size)
    llm.generate(*one, use_tqdm=False)  # what a first load pays once
    seconds = statistics.median(seconds_once(llm, one) for _ in range(3))
    llm.generate(many[0][::4], many[1][::4], use_tqdm=False)
    served = statistics.mean(seconds_once(llm, many) for _ in range(2))
    llm.engine.shutdown()
    del llm
    gc.collect()
    torch.cuda.empty_cache()
    num_tokens = sum(own.output_limit for own in many[1])
    return {
        "batch1": (seconds / 256 * 1e3, "ms_per_token", "ms"),
        "mix256": (num_tokens / served, "tokens_per_second", "tokens/s"),
    }


def for_each(load: Load, copies: int) -> Load:
    """Return as much for each copy, and no prompt twice: each copy's begin at another token."""
    prompts, params = load
    several = [prompt[copy:] + prompt[:copy] for copy in range(copies) for prompt in prompts]
    return several, params * copies
