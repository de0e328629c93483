"""`quire bench steps`: what the engine's steps take, over prompt length, batch and context.

The times come from a trace of real runs. A prefill step is what lies between asking the
scheduler and having the token on the host; a decode step, what lies between its tokens and
those of the step before, since with overlap a step is scheduled while another runs. Beside
each stands the limit of `quire.analysis`, the time that the step's bytes or FLOPs need at
the hardware's ceilings; the measurement's note names these.

`prefill-N` is a prompt's step whose kernels are launched one by one, as they are where other
requests are in it; `alone-N`, on a GPU, is the same step as it is served with nothing beside it
(`quire.runner.prompt_graphs`), in turns with the other. Above the longest length that is captured
both are launched.

Two kinds of rows hold the batch and vary the context. `context-N` is a decode step of requests
with prompts of N tokens. `mixed-N` is a step in which the same requests decode and one more
prompt, always as long, is computed; it has no limit. What a token of context costs is the
slope of such rows (`quire.analysis.step_time.StepTime`).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from itertools import pairwise, product

import torch

from quire.analysis import Hardware, Work, decode_work, prefill_work, roofline_time
from quire.bench.measurement import Row
from quire.errors import NoFreeBlocks
from quire.llm import LLM
from quire.models.config import ModelConfig
from quire.progress import RequestHandle
from quire.sampling.params import SamplingParams
from quire.trace import Trace, TraceStep

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PROMPTS = (16, 64, 256, 1024, 4096)
CONTEXT = 256  # prompt tokens while the batch varies
CONTEXT_BATCH = 32  # requests that decode while their context varies
NEWCOMER = 1024  # prompt tokens of who joins them: for an 8B, enough that the GPU is busy
NUM_TOKENS = 32  # decode steps timed


def run(
    model: str | ModelConfig,
    config: ModelConfig,
    device: torch.device,
    hardware: Hardware | None,
    batches: tuple[int, ...] = BATCHES,
    prompts: tuple[int, ...] = PROMPTS,
) -> list[Row]:
    """Time prefill over prompt length, decode over batch size, then both over context.

    The contexts are the `prompts` of 256 tokens and more; one alone has no slope and is not
    timed, nor are those for which the cache has no room.
    """
    trace = Trace()
    longest = max(max(prompts), CONTEXT) + 2 * NUM_TOKENS + 2
    budget = max(batches) * CONTEXT
    llm = LLM(
        model,
        device=device,
        max_model_len=longest,
        max_num_seqs=max(batches),
        max_num_batched_tokens=budget,
        enable_prefix_caching=False,
        trace=trace,
    )
    runner = llm.engine.executor.worker.runner  # type: ignore[attr-defined]
    graphs = runner.prompt_graphs
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

    ways = {"prefill": None} if graphs is None else {"prefill": None, "alone": graphs}

    def prompt_rows(prompt_tokens: int) -> Iterator[Row]:
        times: dict[str, list[float]] = {kind: [] for kind in ways}
        for turn, (kind, used) in product(range(6), ways.items()):
            runner.prompt_graphs = used
            time = milliseconds(steps_of(1, prompt_tokens, 1)[0])
            if turn > 0:  # the first is not counted
                times[kind].append(time)
        work = prefill_work(config, 1, prompt_tokens, dtype, dtype)
        for kind, some in times.items():
            time = statistics.median(some)
            parameters = _parameters(work, time, 1, prompt_tokens)
            case, limit = f"{kind}-{prompt_tokens}", baselines(work, "limit")
            yield Row(case, "ms_per_step", time, "ms", limit, parameters)

    def decode_row(case: str, batch: int, context: int) -> Row | None:
        steps_of(batch, context, 4)
        steps = steps_of(batch, context, NUM_TOKENS + 1)
        decode = [s for s in steps if s.scheduled.num_tokens == len(s.scheduled.entries) == batch]
        if len(decode) < 2:
            return None
        time = statistics.median((b.end - a.end) * 1e3 for a, b in pairwise(decode))
        work = decode_work(config, batch, context + NUM_TOKENS // 2, dtype, dtype)
        parameters = _parameters(work, time, batch, context)
        return Row(case, "ms_per_step", time, "ms", baselines(work, "limit"), parameters)

    rows = [row for prompt_tokens in prompts for row in prompt_rows(prompt_tokens)]
    for batch in batches:
        row = decode_row(f"decode-batch{batch}", batch, CONTEXT)
        if row is None:
            raise NoFreeBlocks(
                f"{batch} requests of {CONTEXT} tokens never decoded together: the cache has room "
                "for fewer. Free memory of the device, or stop at a smaller batch (--max-batch)."
            )
        rows.append(row)

    contexts = [length for length in prompts if length >= CONTEXT]
    batch = min(CONTEXT_BATCH, max(batches) - 1)  # a seat is left for the newcomer
    if len(contexts) < 2 or batch < 1:
        return rows
    for context in contexts:
        row = decode_row(f"context-{context}", batch, context)
        newcomer = min(NEWCOMER, max(contexts), budget - batch)
        time = mixed_milliseconds(llm, trace, batch, context, newcomer) if row else None
        if row is None or time is None:
            break
        parameters: dict[str, float] = {
            "batch": batch,
            "context": context,
            "prompt_tokens": newcomer,
        }
        rows += [row, Row(f"mixed-{context}", "ms_per_step", time, "ms", {}, parameters)]
    return rows


def mixed_milliseconds(
    llm: LLM, trace: Trace, batch: int, context: int, newcomer_tokens: int
) -> float | None:
    """Return what a step takes that decodes `batch` requests and computes a newcomer's prompt.

    With overlap, launching it delays the answer of the step before, so the time is that of both
    less a plain decode step's. Median of five newcomers, after one that is not counted; None
    where too few found room beside all the others.
    """
    generator = random.Random(context)

    def submit(name: str, length: int, max_tokens: int) -> RequestHandle:
        ids = [generator.randrange(llm.model_config.vocab_size) for _ in range(length)]
        params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
        return llm.engine.add_request(name, ids, params)

    readers = [submit(f"reader-{i}", context, 2 * NUM_TOKENS) for i in range(batch)]
    while not all(reader.sequences[0].token_times for reader in readers):
        llm.engine.step()
    trace.steps.clear()
    for i in range(6):
        for _ in range(4):  # who decode, alone
            llm.engine.step()
        newcomer = submit(f"newcomer-{i}", newcomer_tokens, 1)
        while not newcomer.finished:
            llm.engine.step()
    for reader in readers:
        llm.engine.abort_request(reader.request_id)
    mixed, plain = [], []
    for i in range(2, len(trace.steps)):
        first, second, third = trace.steps[i - 2 : i + 1]
        sizes = [step.scheduled.num_tokens for step in (first, second, third)]
        if sizes == [batch, batch, batch + newcomer_tokens]:
            mixed.append((third.end - first.end) * 1e3)
        elif sizes == [batch, batch, batch]:
            plain.append((third.end - second.end) * 1e3)
    if len(mixed) < 3 or not plain:
        return None
    return statistics.median(mixed[1:]) - statistics.median(plain)


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
