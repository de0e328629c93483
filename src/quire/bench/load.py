"""`quire bench load`: the engine under Poisson arrivals, from an idle server to an overload.

Requests are submitted when they are due by the wall clock, whatever the engine is doing, and
latencies count from that moment: a client that waited for its turn to submit would hide the
very queue that is to be measured. Rates share one sequence of lengths and gaps.
"""

from __future__ import annotations

import random
import time

import torch

from quire.analysis.queueing import Arrival, Run, at_rate, percentile, poisson_arrivals
from quire.bench.measurement import Row
from quire.llm import LLM
from quire.models.config import ModelConfig
from quire.progress import RequestHandle
from quire.sampling.params import SamplingParams

LENGTHS = [(128, 128), (512, 128), (1024, 256), (256, 64), (64, 384)]
"""(prompt, output) tokens of the chapter's workload, equally likely."""

TTFT_TARGET, TPOT_TARGET = 0.2, 0.01  # seconds


def run(
    model: str | ModelConfig,
    device: torch.device,
    rates: tuple[float, ...],
    seconds: float,
    max_num_seqs: int = 64,
    budget: int = 2048,
    lengths: list[tuple[int, int]] = LENGTHS,
) -> list[Row]:
    """Serve `seconds` of arrivals at each rate; a row a rate, goodput its value."""
    longest = max(p + o for p, o in lengths)
    llm = LLM(
        model,
        device=device,
        max_model_len=longest + 1,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        num_blocks=max_num_seqs * (longest // 16 + 2),
        enable_prefix_caching=False,
    )
    play(llm, at_rate(poisson_arrivals(2 * max_num_seqs, lengths, seed=1), 1e3))  # warm-up
    rows = []
    for rate in rates:
        count = max(20, round(rate * seconds))
        arrivals = at_rate(poisson_arrivals(count, lengths, seed=0), rate)
        rows.append(summary(f"rate-{rate:g}", play(llm, arrivals), rate))
    return rows


def play(llm: LLM, arrivals: list[Arrival], seed: int = 0) -> Run:
    """Submit each request when it is due; return when its tokens were known."""
    generator = random.Random(seed)
    vocab_size = llm.model_config.vocab_size
    prompts = [[generator.randrange(vocab_size) for _ in range(a.prompt_tokens)] for a in arrivals]
    handles: list[RequestHandle] = []
    origin = time.perf_counter()
    while len(handles) < len(arrivals) or llm.engine.has_requests:
        now = time.perf_counter() - origin
        while len(handles) < len(arrivals) and arrivals[len(handles)].time <= now:
            index = len(handles)
            max_tokens = arrivals[index].output_tokens
            params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
            handles.append(llm.engine.add_request(str(index), prompts[index], params))
        if llm.engine.has_requests:
            llm.engine.step()
        elif len(handles) < len(arrivals):
            time.sleep(max(0.0, arrivals[len(handles)].time - (time.perf_counter() - origin)))
    token_times = []
    for output in [handle.snapshot() for handle in handles]:
        assert output.metrics is not None
        token_times.append([moment - origin for moment in output.metrics.token_times])
    return Run(arrivals, [], token_times)


def summary(case: str, run: Run, rate: float) -> Row:
    """Put a run into a row: goodput, and the latencies beside it."""
    indices = range(len(run.arrivals))
    ttfts, tpots = [run.ttft(i) for i in indices], [run.tpot(i) for i in indices]
    parameters = {
        "rate": rate,
        "requests": len(run.arrivals),
        "output_tokens_per_second": run.output_tokens_per_second,
        "ttft_p50_ms": percentile(ttfts, 0.5) * 1e3,
        "ttft_p99_ms": percentile(ttfts, 0.99) * 1e3,
        "tpot_p50_ms": percentile(tpots, 0.5) * 1e3,
        "itl_p99_ms": percentile(run.inter_token_latencies(), 0.99) * 1e3,
        "attainment": run.attainment(TTFT_TARGET, TPOT_TARGET),
        "mean_in_system": run.mean_in_system(),
        "mean_latency_s": sum(run.latency(i) for i in indices) / len(run.arrivals),
    }
    goodput = run.goodput(TTFT_TARGET, TPOT_TARGET)
    return Row(case, "goodput", goodput, "requests/s", {}, parameters)
