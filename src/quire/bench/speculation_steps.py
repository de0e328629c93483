"""`quire bench speculation-steps`: what verifying and drafting cost, and what they bring, on a GPU.

Random weights of real shapes have the costs of trained ones, and a coin decides which guesses
are right: so its rate is chosen and time is measured. Four kinds of rows:

`verify-k<k>-batch<b>` is a captured step of 1 + k tokens for each of b requests, beside one of
one token: GPU time alone, replayed. `draft-k<k>-batch<b>` is the draft model's graph of k steps.
`eager-…` are the same steps kernel by kernel, from a trace. `speedup-a<a>-k<k>-batch<b>` is a
whole run: milliseconds a token of each request, beside the same engine when it waits for each step
before it schedules the next, beside the same engine without guesses at its defaults, and beside
E / (v + k c) of the same run's v and c.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from quire.analysis.speculation import expected_tokens
from quire.bench.engine import VOCABULARY
from quire.bench.measurement import Row
from quire.components import Components
from quire.errors import QuireError
from quire.llm import LLM
from quire.messages import ScheduledEntry
from quire.models.config import ModelConfig
from quire.runner.decode_graphs import Ending
from quire.sampling.params import SamplingParams
from quire.speculation.config import SpeculativeConfig
from quire.speculation.proposer import ProposeContext
from quire.trace import Trace

BATCHES = (1, 8, 32, 64, 128, 256)
RATES = (0.5, 0.7, 0.85)
CONTEXT = 256  # prompt tokens
NUM_TOKENS = 96  # of each request in a whole run
REPLAYS = 30


class Constant:
    """Always guesses, at no cost: token 0."""

    def __init__(self, config: SpeculativeConfig) -> None:
        """Take the config, as a proposer does."""

    def propose(self, context: ProposeContext, k: int) -> list[list[int]]:
        """Return k guesses for each request."""
        return [[0] * k for _ in context.token_ids]


def run(
    model: ModelConfig,
    draft: ModelConfig | None,
    device: torch.device,
    ks: Sequence[int] = (1, 3, 4, 7),
    batches: Sequence[int] = BATCHES,
) -> list[Row]:
    """Measure a model's steps of 1 + k tokens, and whole runs with a draft model if there is one.

    Raises:
        QuireError: not on a GPU.
    """
    if device.type != "cuda":
        raise QuireError("bench speculation-steps measures real sizes: use --device cuda")
    rows: list[Row] = []
    for k in ks:
        with_guesses = {"method": "ngram", "num_speculative_tokens": k, **coin(0.0)}
        llm = engine(model, device, batches, with_guesses, Components(proposer=Constant))
        rows += [row for batch in batches for row in _verify_rows(llm, k, batch)]
        del llm
        collect()
    rows += _eager_rows(model, device, 3)
    if draft is not None:
        for k in (3, 4):
            rows += _speedup_rows(model, draft, device, k, [b for b in batches if b <= 64], rows)
    return rows


def coin(rate: float) -> dict[str, Any]:
    """Return the keys of a config whose guesses stand with a probability."""
    return {"verification": "synthetic", "acceptance_rate": rate}


def engine(
    model: ModelConfig,
    device: torch.device,
    batches: Sequence[int],
    speculative_config: dict[str, Any] | None,
    components: Components | None = None,
    **options: Any,
) -> LLM:
    """Make an engine with seats for the largest batch."""
    return LLM(
        model,
        device=device,
        max_model_len=CONTEXT + 2 * NUM_TOKENS,
        max_num_seqs=max(batches),
        max_num_batched_tokens=max(16 * CONTEXT, 8 * max(batches)),
        enable_prefix_caching=False,
        speculative_config=speculative_config,
        components=components,
        **options,
    )


def _prompts(batch: int) -> list[list[int]]:
    generator = random.Random(batch)
    return [[generator.randrange(VOCABULARY) for _ in range(CONTEXT)] for _ in range(batch)]


def _params(num_tokens: int, *, speculate: bool = True) -> SamplingParams:
    return SamplingParams(
        max_tokens=num_tokens, temperature=0, ignore_eos=True, speculate=speculate
    )


def _decoding(llm: LLM, batch: int) -> list[ScheduledEntry]:
    """Start `batch` requests and return the entries of a step that verifies guesses of each."""
    trace = llm.engine.trace = Trace()
    for index, ids in enumerate(_prompts(batch)):
        llm.engine.add_request(f"{batch}-{index}", ids, _params(NUM_TOKENS))
    while True:
        llm.engine.step()
        entries = trace.steps[-1].scheduled.entries
        if len(entries) == batch and all(entry.num_draft_tokens > 0 for entry in entries):
            return list(entries)


def _abort(llm: LLM, batch: int) -> None:
    for index in range(batch):
        llm.engine.abort_request(f"{batch}-{index}")
    llm.engine.trace = None


def _gpu_ms(work: Callable[[], object]) -> float:
    """Return the median GPU time of a call, of three rounds of `REPLAYS` calls in a row."""
    work()
    times = []
    for _ in range(3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(REPLAYS):
            work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / REPLAYS)
    return statistics.median(times)


def _verify_rows(llm: LLM, k: int, batch: int) -> list[Row]:
    """Time the captured step of 1 + k tokens of each request, beside that of one."""
    runner = llm.engine.executor.worker.runner  # type: ignore[attr-defined]
    entries = _decoding(llm, batch)
    plain = [
        ScheduledEntry(e.request_id, e.row, e.start, 1, True, tuple(() for _ in e.new_block_ids))
        for e in entries
    ]
    drafted = [
        ScheduledEntry(e.request_id, e.row, e.start, 1 + k, True, p.new_block_ids, k)
        for e, p in zip(entries, plain, strict=True)
    ]
    with torch.inference_mode():
        one = _gpu_ms(lambda: runner.graphs.replay(plain, Ending.GREEDY))
        several = _gpu_ms(lambda: runner.graphs.replay(drafted, Ending.GREEDY))
    _abort(llm, batch)
    parameters = {"batch": batch, "k": k}
    case = f"verify-k{k}-batch{batch}"
    return [Row(case, "ms_per_step", several, "ms", {"one_token": one}, dict(parameters))]


def _eager_rows(model: ModelConfig, device: torch.device, k: int) -> list[Row]:
    """Time steps that are launched kernel by kernel: with guesses, and without."""
    config = {"method": "ngram", "num_speculative_tokens": k, **coin(0.0)}
    llm = engine(model, device, (8,), config, Components(proposer=Constant), cuda_graphs=False)
    rows = []
    for batch in (1, 8):
        taken = {}
        for speculate in (False, True):
            for _ in range(2):  # the first compiles
                trace = llm.engine.trace = Trace()
                llm.generate(_prompts(batch), _params(24, speculate=speculate), use_tqdm=False)
            steps = [s for s in trace.steps if len(s.scheduled.entries) == batch][1:]
            taken[speculate] = statistics.median((b.end - a.end) * 1e3 for a, b in pairwise(steps))
        rows.append(
            Row(
                f"eager-k{k}-batch{batch}",
                "ms_per_step",
                taken[True],
                "ms",
                {"one_token": taken[False]},
                {"batch": batch, "k": k},
            )
        )
    del llm
    collect()
    return rows


def _speedup_rows(
    model: ModelConfig,
    draft: ModelConfig,
    device: torch.device,
    k: int,
    batches: Sequence[int],
    measured: Sequence[Row],
) -> list[Row]:
    """Run whole texts with a draft model at each acceptance rate, in turns with no guesses."""
    config = {
        "method": "draft_model",
        "model": draft,
        "num_speculative_tokens": k,
        **coin(RATES[0]),
    }
    num_blocks = max(batches) * ((CONTEXT + 2 * NUM_TOKENS) // 16 + 1) + 1
    speculating = engine(model, device, batches, config, num_blocks=num_blocks)
    plain = engine(model, device, batches, None, num_blocks=num_blocks)
    runner = speculating.engine.executor.worker.runner  # type: ignore[attr-defined]
    accepts = runner.batch.acceptance_rate  # read by captured steps: no new engine for a new rate
    rows = []
    for batch in batches:
        seats = [entry.row for entry in _decoding(speculating, batch)]
        with torch.inference_mode():
            drafting = _gpu_ms(partial(runner.drafting.replay, seats, k, True))
        _abort(speculating, batch)
        verified = next(row for row in measured if row.case == f"verify-k{k}-batch{batch}")
        one = verified.baselines["one_token"]
        verify_cost, draft_cost = verified.value / one, drafting / k / one
        rows.append(
            Row(
                f"draft-k{k}-batch{batch}",
                "ms_per_step",
                drafting,
                "ms",
                {"one_token": one},
                {"batch": batch, "k": k},
            )
        )
        for rate in RATES:
            accepts.fill_(rate)
            times: list[tuple[float, float, float]] = []
            for _ in range(4):
                with_guesses = ms_per_token(speculating, batch)
                with waiting(speculating):
                    waited = ms_per_token(speculating, batch)
                times.append((with_guesses, waited, ms_per_token(plain, batch)))
            ms, waited, baseline = map(statistics.median, zip(*times[1:], strict=True))
            tokens = expected_tokens(rate, k)
            formula = tokens / (verify_cost + k * draft_cost)
            rows.append(
                Row(
                    f"speedup-a{rate}-k{k}-batch{batch}",
                    "ms_per_token",
                    ms,
                    "ms",
                    {"no_guesses": baseline, "waiting": waited},
                    {
                        "batch": batch,
                        "k": k,
                        "acceptance": rate,
                        "speedup": baseline / ms,
                        "formula": formula,
                        "verify_cost": verify_cost,
                        "draft_cost": draft_cost,
                    },
                )
            )
    del speculating, plain, runner, accepts
    collect()
    return rows


@contextmanager
def waiting(llm: LLM) -> Iterator[None]:
    """Let an engine wait for each step before it schedules the next, for a while."""
    config = llm.engine.config
    llm.engine.config = replace(config, scheduling=replace(config.scheduling, overlap=False))
    yield
    llm.engine.config = config


def ms_per_token(llm: LLM, batch: int) -> float:
    """Return the time from the last first token to the last token, a token of each request."""
    outputs = llm.generate(_prompts(batch), _params(NUM_TOKENS), use_tqdm=False)
    times = [o.metrics.token_times for o in outputs if o.metrics is not None]
    begin = max(each[0] for each in times)
    counted = [sum(t > begin for t in each) / (each[-1] - begin) for each in times]
    return 1e3 / statistics.mean(counted)


def collect() -> None:
    """Let the GPU have the memory of engines that are gone."""
    gc.collect()
    torch.cuda.empty_cache()
