"""`quire bench steps`: what the engine's steps take, over prompt length and batch size.

The times come from a trace of real runs. A prefill step is what lies between asking the
scheduler and having the token on the host; a decode step, what lies between its tokens and
those of the step before, since with overlap a step is scheduled while another runs. Beside
each stands the limit of `quire.analysis`, the time that the step's bytes or FLOPs need at
the hardware's ceilings; the measurement's note names these.
"""

from __future__ import annotations

import statistics
from itertools import pairwise

import torch

from quire.analysis import Hardware, Work, decode_work, prefill_work, roofline_time
from quire.bench.measurement import Row
from quire.errors import NoFreeBlocks
from quire.llm import LLM
from quire.models.config import ModelConfig
from quire.sampling.params import SamplingParams
from quire.trace import Trace, TraceStep

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PROMPTS = (16, 64, 256, 1024, 4096)
CONTEXT = 256  # prompt tokens while the batch varies
NUM_TOKENS = 32  # decode steps timed


def run(
    model: str | ModelConfig,
    config: ModelConfig,
    device: torch.device,
    hardware: Hardware | None,
    batches: tuple[int, ...] = BATCHES,
    prompts: tuple[int, ...] = PROMPTS,
) -> list[Row]:
    """Time prefill over prompt length, then decode over batch size."""
    trace = Trace()
    longest = max(max(prompts), CONTEXT) + NUM_TOKENS + 2
    llm = LLM(
        model,
        device=device,
        max_model_len=longest,
        max_num_seqs=max(batches),
        max_num_batched_tokens=max(batches) * CONTEXT,
        enable_prefix_caching=False,
        trace=trace,
    )
    dtype = str(llm.config.model.dtype).removeprefix("torch.")

    def baselines(work: Work, ideal: str) -> dict[str, float]:
        if hardware is None:
            return {}
        return {ideal: roofline_time(work.flops, work.bytes_moved, hardware, dtype) * 1e3}

    def steps_of(batch: int, prompt_tokens: int, num_tokens: int) -> list[TraceStep]:
        trace.steps.clear()
        generator = torch.Generator().manual_seed(batch * 10_000 + prompt_tokens)
        ids = torch.randint(config.vocab_size, (batch, prompt_tokens), generator=generator)
        llm.generate(
            ids.tolist(), SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
        )
        return list(trace.steps)

    rows = []
    for prompt_tokens in prompts:
        times = [milliseconds(steps_of(1, prompt_tokens, 1)[0]) for _ in range(6)][1:]
        work = prefill_work(config, 1, prompt_tokens, dtype, dtype)
        rows.append(
            Row(
                f"prefill-{prompt_tokens}",
                "ms_per_step",
                statistics.median(times),
                "ms",
                baselines(work, "limit"),
                _parameters(work, statistics.median(times), 1, prompt_tokens),
            )
        )
    for batch in batches:
        steps_of(batch, CONTEXT, 4)
        steps = steps_of(batch, CONTEXT, NUM_TOKENS + 1)
        decode = [s for s in steps if s.scheduled.num_tokens == len(s.scheduled.entries) == batch]
        if len(decode) < 2:
            raise NoFreeBlocks(
                f"{batch} requests of {CONTEXT} tokens never decoded together: the cache has room "
                "for fewer. Free memory of the device, or stop at a smaller batch (--max-batch)."
            )
        time = statistics.median((b.end - a.end) * 1e3 for a, b in pairwise(decode))
        work = decode_work(config, batch, CONTEXT + NUM_TOKENS // 2, dtype, dtype)
        rows.append(
            Row(
                f"decode-batch{batch}",
                "ms_per_step",
                time,
                "ms",
                baselines(work, "limit"),
                _parameters(work, time, batch, CONTEXT),
            )
        )
    return rows


def note(hardware: Hardware | None, dtype: torch.dtype) -> str:
    """Say at which ceilings the limits were computed; empty for a device we know none of."""
    if hardware is None:
        return ""
    bandwidth, rate = hardware.bandwidth_bytes_per_s / 1e12, hardware.peak(str(dtype)) / 1e12
    return (
        f"limit: the longer of bytes at {bandwidth:.2f} TB/s and FLOPs at {rate:.0f} TFLOP/s "
        f"({hardware.name})"
    )


def milliseconds(step: TraceStep) -> float:
    """Return how long a step took."""
    return (step.end - step.begin) * 1e3


def _parameters(work: Work, ms: float, batch: int, prompt_tokens: int) -> dict[str, float]:
    return {
        "batch": batch,
        "prompt_tokens": prompt_tokens,
        "intensity": work.arithmetic_intensity,
        "tera_flops_per_second": work.flops / ms / 1e9,
        "tera_bytes_per_second": work.bytes_moved / ms / 1e9,
    }
