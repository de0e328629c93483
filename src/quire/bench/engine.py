"""`quire bench engine`: whole runs of the engine on random weights of real shapes, on a GPU.

`mix256` is a served load: 256 requests of mixed lengths at once, greedy, without prefix
caching, every token produced; its time runs from the first submission to the last token.
`batch1` is one request of 128 tokens in and 256 out, the whole call divided by the tokens.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from quire.analysis import catalog_config, catalog_json
from quire.bench.measurement import Row
from quire.config import EngineOptions
from quire.errors import QuireError
from quire.llm import LLM
from quire.sampling.params import SamplingParams

MODELS = ("Qwen3-0.6B", "Qwen3-8B")
OPTIONS: EngineOptions = {  # of the engines that these loads are run on
    "max_model_len": 2048,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 16384,
    "enable_prefix_caching": False,
}
VOCABULARY = 150_000  # ids are drawn below this
Load = tuple[list[list[int]], list[SamplingParams]]


def mix256(seed: int = 0) -> Load:
    """256 requests, prompts and outputs of 100 to 1,024 tokens each; others by another seed."""
    generator = random.Random(seed)
    prompts, params = [], []
    for _ in range(256):
        length = generator.randint(100, 1024)
        prompts.append([generator.randrange(VOCABULARY) for _ in range(length)])
        params.append(_greedy(generator.randint(100, 1024)))
    return prompts, params


def uniform_load(num_requests: int, prompt_tokens: int, output_tokens: int) -> Load:
    """Requests of one length, with different tokens."""
    generator = random.Random(1)
    prompts = [
        [generator.randrange(VOCABULARY) for _ in range(prompt_tokens)] for _ in range(num_requests)
    ]
    return prompts, [_greedy(output_tokens)] * num_requests


def _greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)


def run(models: tuple[str, ...], device: torch.device, repeats: int = 3) -> list[Row]:
    """Measure the loads on each model; beside batch 1, transformers with a compiled step."""
    if device.type != "cuda":
        raise QuireError(
            "bench engine runs models of real size; use --device cuda, or bench decode"
        )
    rows = []
    for name in models:
        config = catalog_config(name)
        if config is None:
            raise QuireError(f"model {name!r} is not in the catalog: {', '.join(catalog_json())}")
        case = name.lower()
        given: EngineOptions = {**OPTIONS, "device": device}
        llm = LLM(config, **given)
        one = uniform_load(1, 128, 256)
        seconds = seconds_of(llm, one, repeats)
        rows.append(Row(f"{case}-batch1", "ms_per_token", seconds / 256 * 1e3, "ms"))
        loads = {"mix256": mix256()}
        if name == MODELS[0]:
            loads["64x512x256"] = uniform_load(64, 512, 256)
        for label, load in loads.items():
            seconds = seconds_of(llm, load, repeats)
            num_tokens = sum(p.output_limit for p in load[1])
            rows.append(
                Row(f"{case}-{label}", "tokens_per_second", num_tokens / seconds, "tokens/s")
            )
        del llm
        gc.collect()
        torch.cuda.empty_cache()
        beside = _transformers_ms(name, one, repeats)
        first = next(i for i, row in enumerate(rows) if row.case == f"{case}-batch1")
        rows[first].baselines["transformers"] = beside
        gc.collect()
        torch.cuda.empty_cache()
    return rows


def seconds_of(llm: LLM, load: Load, repeats: int) -> float:
    """Return the median time of a load after a warm-up, every token counted."""
    prompts, params = load

    def work() -> None:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        produced = sum(len(output.outputs[0].token_ids) for output in outputs)
        assert produced == sum(p.output_limit for p in params), produced

    return _median(work, repeats)


def seconds_once(llm: LLM, load: Load) -> float:
    """Return the time of a load on devices that lie in other processes."""
    begin = time.perf_counter()
    llm.generate(*load, use_tqdm=False)
    return time.perf_counter() - begin


def _median(work: Callable[[], None], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _transformers_ms(name: str, load: Load, repeats: int) -> float:
    """Return transformers' milliseconds a token: static cache, decode step compiled."""
    import transformers  # slow to import

    raw = dict(next(raw for known, raw in catalog_json().items() if known.endswith(name)))
    auto: Any = transformers.AutoModelForCausalLM
    config = transformers.AutoConfig.for_model(raw.pop("model_type", "qwen3"), **raw)
    with torch.device("cuda"):
        model = auto.from_config(config, dtype=torch.bfloat16)
    prompts, params = load
    ids = torch.tensor(prompts, device="cuda")

    @torch.inference_mode()
    def work() -> None:
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=params[0].output_limit,
            min_new_tokens=params[0].output_limit,
            do_sample=False,
            cache_implementation="static",
            pad_token_id=0,
        )

    return _median(work, repeats) / params[0].output_limit * 1e3
