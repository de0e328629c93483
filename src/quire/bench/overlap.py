"""`quire bench overlap`: a decode step with the host's work before it, and behind it.

Two engines with the same weights take turns: one waits for a step before it schedules the
next, the other schedules while the step runs. On a GPU a profile adds how much of the time
some kernel ran: the rest are the idle gaps that overlap is to close.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from itertools import pairwise

import torch

from quire.bench.measurement import Row
from quire.llm import LLM
from quire.models.config import ModelConfig
from quire.sampling.params import SamplingParams

CONTEXT = 256  # prompt tokens
NUM_TOKENS = 72  # decode steps timed
PROFILED_STEPS = 32


def run(
    model: str | ModelConfig, device: torch.device, batches: tuple[int, ...], repeats: int = 3
) -> list[Row]:
    """Time decode steps of each batch with and without overlap; a row a batch."""
    blocks = max(batches) * ((CONTEXT + NUM_TOKENS) // 16 + 2)
    engines = {
        name: LLM(
            model,
            device=device,
            max_model_len=CONTEXT + NUM_TOKENS + 2,
            max_num_seqs=max(batches),
            max_num_batched_tokens=max(max(batches), 16 * CONTEXT),
            num_blocks=blocks,
            enable_prefix_caching=False,
            overlap=name == "overlap",
        )
        for name in ("overlap", "waiting")
    }
    rows = []
    for batch in batches:
        for llm in engines.values():
            step_ms(llm, batch)
        taken: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(repeats):
            for name, llm in engines.items():
                taken[name].append(step_ms(llm, batch))
        ms = {name: statistics.median(values) for name, values in taken.items()}
        parameters: dict[str, float] = {"batch": batch}
        if device.type == "cuda":
            for name, llm in engines.items():
                profiles = [profile(llm, batch) for _ in range(repeats)]
                profiled = min(profiles, key=lambda p: p.ms_per_step)  # the least disturbed
                parameters[f"busy_share_{name}"] = profiled.busy_share
                parameters[f"profiled_ms_per_step_{name}"] = profiled.ms_per_step
        rows.append(
            Row(
                f"batch{batch}",
                "ms_per_step",
                ms["overlap"],
                "ms",
                {"waiting": ms["waiting"]},
                parameters,
            )
        )
    return rows


def prompts_of(llm: LLM, batch: int) -> list[list[int]]:
    """Return `batch` prompts of random tokens."""
    generator = random.Random(batch)
    vocab_size = llm.model_config.vocab_size
    return [[generator.randrange(vocab_size) for _ in range(CONTEXT)] for _ in range(batch)]


def step_ms(llm: LLM, batch: int) -> float:
    """Return the median gap between tokens once the whole batch decodes, in milliseconds."""
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
    outputs = llm.generate(prompts_of(llm, batch), params, use_tqdm=False)
    begun = max(o.metrics.token_times[0] for o in outputs if o.metrics is not None)
    assert outputs[-1].metrics is not None
    known = [t for t in outputs[-1].metrics.token_times if t >= begun]
    return statistics.median(b - a for a, b in pairwise(known)) * 1e3


@dataclass
class Profiled:
    """What a profile saw of decode steps."""

    busy_share: float  # of the time from the first kernel to the end of the last
    ms_per_step: float  # of the same time: the profiler slows the host


def profile(llm: LLM, batch: int) -> Profiled:
    """Profile decode steps, and count the time in which a kernel or a copy ran.

    The time is the profile's own, so the share is at most 1. The profiler slows the host, so
    without it the gaps are no wider than here.
    """
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
    engine = llm.engine
    for index, ids in enumerate(prompts_of(llm, batch)):
        engine.add_request(f"profiled-{index}", ids, params)
    for _ in range(-(-batch // 16) + 8):  # prompts first, 16 a step
        engine.step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(PROFILED_STEPS):
            engine.step()
        torch.cuda.synchronize()
    for index in range(batch):
        engine.abort_request(f"profiled-{index}")
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in found.events()
        if event.device_type.name == "CUDA"
    )
    whole = max(end for _, end in spans) - spans[0][0]  # microseconds
    return Profiled(covered(spans) / whole, whole / PROFILED_STEPS / 1e3)


def covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals given in order of their beginnings."""
    total, reach = 0.0, float("-inf")
    for begin, end in spans:
        total += max(0.0, end - max(begin, reach))
        reach = max(reach, end)
    return total
