"""`quire bench spike`: a long prompt arrives among requests that decode, at several budgets.

The budget of a step bounds what a reader waits between two tokens while somebody else's
prompt is computed, and decides how long that prompt takes. Both are measured in one engine,
whose scheduler is given one budget after the other.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from itertools import pairwise

import torch

from quire.bench.measurement import Row
from quire.components import Components
from quire.config import EngineConfig
from quire.kv.kv_cache_manager import KVCacheManager
from quire.llm import LLM
from quire.models.config import ModelConfig
from quire.progress import RequestHandle
from quire.sampling.params import SamplingParams
from quire.scheduler import TokenBudgetScheduler

SETTLED = 12  # tokens that every reader has when the long prompt arrives
AFTER = 8  # tokens that the newcomer still gets


class AdjustableScheduler(TokenBudgetScheduler):
    """The engine's scheduler, whose budget can be lowered between runs."""

    def __init__(self, config: EngineConfig, kv: KVCacheManager) -> None:
        """Begin with the configured budget, which sized the runner's buffers."""
        super().__init__(config, kv)
        self._largest = config.scheduling.max_num_batched_tokens

    def set_budget(self, num_tokens: int) -> None:
        """Schedule at most `num_tokens` a step from now on."""
        assert num_tokens <= self._largest
        scheduling = replace(self._config.scheduling, max_num_batched_tokens=num_tokens)
        self._config = replace(self._config, scheduling=scheduling)


def run(
    model: str | ModelConfig,
    device: torch.device,
    num_readers: int,
    prompt_tokens: int,
    budgets: tuple[int, ...],
    repeats: int = 3,
) -> list[Row]:
    """Time the readers' gaps and the newcomer's first token at each budget, in milliseconds."""
    schedulers: list[AdjustableScheduler] = []

    def make_scheduler(config: EngineConfig, kv: KVCacheManager) -> AdjustableScheduler:
        schedulers.append(AdjustableScheduler(config, kv))
        return schedulers[-1]

    steps = prompt_tokens // min(budgets) + SETTLED + AFTER + 16
    llm = LLM(
        model,
        device=device,
        max_model_len=prompt_tokens + 256 + 2 * steps,
        max_num_seqs=num_readers + 1,
        max_num_batched_tokens=max(budgets),
        num_blocks=(num_readers * (128 + 2 * steps) + prompt_tokens) // 16 + 4 * num_readers + 64,
        enable_prefix_caching=False,
        components=Components(scheduler=make_scheduler),
    )
    rows = []
    for budget in budgets:
        schedulers[0].set_budget(budget)
        arrive(llm, num_readers, prompt_tokens, seed=0)  # warm-up: this budget's shapes
        runs = [arrive(llm, num_readers, prompt_tokens, seed=1 + k) for k in range(repeats)]
        before, worst, first = (
            statistics.median(values) * 1e3 for values in zip(*runs, strict=True)
        )
        parameters = {
            "budget": budget,
            "readers": num_readers,
            "prompt_tokens": prompt_tokens,
            "median_gap_before_ms": before,
            "newcomer_ttft_ms": first,
        }
        rows.append(Row(f"budget-{budget}", "worst_gap", worst, "ms", {}, parameters))
    return rows


def arrive(llm: LLM, num_readers: int, prompt_tokens: int, seed: int) -> tuple[float, float, float]:
    """Return the median gap before, the longest after, and the newcomer's TTFT, in seconds."""
    generator = random.Random(seed)
    engine = llm.engine
    most = llm.config.model.max_model_len - 129
    many = SamplingParams(max_tokens=most, temperature=0, ignore_eos=True)

    def submit(name: str, length: int) -> RequestHandle:
        ids = [generator.randrange(llm.model_config.vocab_size) for _ in range(length)]
        return engine.add_request(name, ids, replace(many, max_tokens=many.output_limit - length))

    readers = [submit(f"reader-{i}", 128) for i in range(num_readers)]
    while min(len(times(reader)) for reader in readers) < SETTLED:
        engine.step()
    settled = [len(times(reader)) for reader in readers]
    newcomer = submit("newcomer", prompt_tokens)
    while len(times(newcomer)) < AFTER:
        engine.step()
    for handle in (*readers, newcomer):
        engine.abort_request(handle.request_id)

    before, after = [], []
    for reader, count in zip(readers, settled, strict=True):
        gaps = [b - a for a, b in pairwise(times(reader))]
        before += gaps[2 : count - 1]
        after += gaps[count - 1 :]
    ttft = times(newcomer)[0] - newcomer.sequences[0].request.arrival_time
    return statistics.median(before), max(after), ttft


def times(handle: RequestHandle) -> list[float]:
    """Return the moments of a request's tokens so far, in seconds."""
    return handle.sequences[0].token_times
