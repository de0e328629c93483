"""`quire bench cache-offload`: load a prefix or compute it again; swap a request or start anew."""

from __future__ import annotations

import gc
import itertools
import math
import random
import time
from collections.abc import Callable
from typing import Any

import torch

from quire.analysis import catalog_config
from quire.bench.measurement import Row
from quire.bench.timing import interleaved_seconds, synchronize
from quire.kv.host.manager import OffloadingKVCacheManager
from quire.kv.spec import layer_specs
from quire.kv.storage import bytes_per_block
from quire.llm import LLM
from quire.models.config import ModelConfig
from quire.sampling.params import SamplingParams
from quire.trace import Trace

BLOCK_SIZE = 16
WARMUP, REPEATS = 4, 7
PREEMPTION_REPEATS = 3
FIRST = SamplingParams(max_tokens=1, temperature=0)


def run(model: str, device: torch.device) -> list[Row]:
    """Measure both, on a model of the catalog with random weights or a shipped one."""
    config: ModelConfig | str = catalog_config(model) or model
    rows = load_rows(config, device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return rows + preemption_rows(config, device)


def load_rows(config: ModelConfig | str, device: torch.device) -> list[Row]:
    """Time to the first token of a prompt that lies in host memory, over its length.

    Two prompts, each as large as the cache, are served in turn, so that each has driven the
    other out when it comes again. After the first round both are in host memory and nothing
    is saved any more. The baseline, an engine without a second tier, has the same prompts and
    takes turns with it; each keeps its best.
    """
    contexts = (256, 1024, 4096, 16384, 32768) if device.type == "cuda" else (128, 256, 512, 1024)
    generator = random.Random(0)
    rows = []
    for context in contexts:
        engines = {
            way: _load(
                config,
                device,
                max_model_len=context + BLOCK_SIZE,
                max_num_seqs=1,
                max_num_batched_tokens=context,
                num_blocks=context // BLOCK_SIZE + 2,
                num_host_blocks=num_host_blocks,
                cuda_graphs=False,
            )
            for way, num_host_blocks in (("load", 2 * context // BLOCK_SIZE), ("recompute", 0))
        }
        vocabulary = engines["load"].model_config.vocab_size
        prompts = [[generator.randrange(vocabulary) for _ in range(context)] for _ in range(2)]
        works = {way: _first_token(llm, prompts) for way, llm in engines.items()}
        seconds = interleaved_seconds(works, device, warmup=WARMUP, repeats=REPEATS)
        # Of all turns but the first two each loads; the first block and the last stay.
        num_tokens = manager_of(engines["load"]).num_loaded_tokens // (WARMUP + REPEATS - 2)
        assert num_tokens >= context - 3 * BLOCK_SIZE, "prompts were not loaded"
        specs = layer_specs(engines["load"].model_config, engines["load"].config.cache_dtype)
        num_bytes = num_tokens // BLOCK_SIZE * bytes_per_block(specs, BLOCK_SIZE)
        rows.append(
            Row(
                f"load-{context}",
                "ttft",
                seconds["load"],
                "s",
                {"recompute": seconds["recompute"]},
                {
                    "context": context,
                    "loaded_tokens": num_tokens,
                    "bytes": num_bytes,
                    "gb_per_s": num_bytes / seconds["load"] / 1e9,
                },
            )
        )
        del engines, works
        gc.collect()
    return rows


def _first_token(llm: LLM, prompts: list[list[int]]) -> Callable[[], object]:
    """Serve the prompts in turn, one a call, to the first token."""
    turns = itertools.cycle(prompts)
    return lambda: llm.generate(next(turns), FIRST, use_tqdm=False)


def preemption_rows(config: ModelConfig | str, device: torch.device) -> list[Row]:
    """Serve more requests at once than the cache has room for, three ways.

    `recompute`: without prefix caching, a preempted request computes everything again.
    `cached`: it finds what of its blocks nobody has taken. `swap`: and what was taken, in host
    memory. Beside the time stand the positions computed, which no load of the machine changes.
    """
    on_gpu = device.type == "cuda"
    num_requests, prompt, output = (48, 1024, 256) if on_gpu else (12, 192, 96)
    blocks_each = (prompt + output) // BLOCK_SIZE
    sizes: dict[str, Any] = {
        "max_model_len": prompt + output,
        "max_num_seqs": num_requests,
        "max_num_batched_tokens": 8192 if on_gpu else 1024,
        "num_blocks": num_requests * blocks_each * 3 // 4,
    }
    ways: dict[str, dict[str, Any]] = {
        "recompute": {"enable_prefix_caching": False},
        "cached": {},
        "swap": {"num_host_blocks": num_requests * blocks_each},
    }
    params = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True)
    traces = {way: Trace() for way in ways}
    engines = {
        way: _load(config, device, trace=traces[way], **sizes, **options)
        for way, options in ways.items()
    }
    vocabulary = engines["swap"].model_config.vocab_size
    seconds = dict.fromkeys(ways, math.inf)
    for turn in range(1 + PREEMPTION_REPEATS):  # in turns; the first one warms up
        generator = random.Random(turn)
        prompts = [
            [generator.randrange(vocabulary) for _ in range(prompt)] for _ in range(num_requests)
        ]
        for way, llm in engines.items():
            traces[way].steps.clear()
            synchronize(device)
            begin = time.perf_counter()
            llm.generate(prompts, params, use_tqdm=False)
            synchronize(device)
            if turn > 0:
                seconds[way] = min(seconds[way], time.perf_counter() - begin)
    return [
        Row(
            f"preempt-{way}",
            "seconds",
            seconds[way],
            "s",
            {},
            {
                "requests": num_requests,
                "prompt_tokens": prompt,
                "output_tokens": output,
                "needed_positions": num_requests * (prompt + output - 1),
                **_counts(trace),
            },
        )
        for way, trace in traces.items()
    ]


def _counts(trace: Trace) -> dict[str, float]:
    """Count what the steps of a run computed, took away and moved."""
    steps = [step.scheduled for step in trace.steps]
    kinds = [transfer.kind for step in steps for transfer in step.transfers]
    return {
        "computed_positions": sum(step.num_tokens for step in steps),
        "preemptions": sum(len(step.preempted_ids) for step in steps),
        "saved_blocks": kinds.count("save"),
        "loaded_blocks": kinds.count("load"),
    }


def manager_of(llm: LLM) -> OffloadingKVCacheManager:
    """Return the manager of an engine with a second tier, for its counters."""
    manager = llm.engine._scheduler._kv  # type: ignore[attr-defined]
    assert isinstance(manager, OffloadingKVCacheManager)
    return manager


def _load(config: ModelConfig | str, device: torch.device, **options: Any) -> LLM:
    return LLM(config, device=device, block_size=BLOCK_SIZE, **options)
