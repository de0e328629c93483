"""`quire bench speculation-auto`: whole runs whose number of guesses the engine chooses.

Weights are random and a coin decides which guesses stand, as in `speculation_steps`. Each row
`auto-a<a>-batch<b>` stands beside the same engine without guesses at its defaults; its `k` is
what was chosen on average in the runs that count. Its `speedup` is of the texts behind their first
tokens, `whole_speedup` of the whole call, in which a draft model reads the prompts. Each row begins
with what a new engine knows, and a first run that does not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from quire.bench.measurement import Row
from quire.bench.speculation_steps import CONTEXT, NUM_TOKENS, coin, collect, engine, ms_per_token
from quire.errors import QuireError
from quire.llm import LLM
from quire.messages import SchedulerOutput
from quire.models.config import ModelConfig
from quire.speculation.controller import LengthController

BATCHES = (1, 8, 32, 64, 128, 256)
RATES = (0.0, 0.7)


def run(
    model: ModelConfig, draft: ModelConfig, device: torch.device, batches: Sequence[int]
) -> list[Row]:
    """Run whole texts whose k the engine chooses, in turns with no guesses.

    Raises:
        QuireError: not on a GPU.
    """
    if device.type != "cuda":
        raise QuireError("bench speculation-auto measures real sizes: use --device cuda")
    config = {"method": "draft_model", "model": draft, **coin(0.0)}
    num_blocks = max(batches) * ((CONTEXT + 2 * NUM_TOKENS) // 16 + 1) + 1
    speculating = engine(model, device, batches, config, num_blocks=num_blocks)
    plain = engine(model, device, batches, None, num_blocks=num_blocks)
    runner = speculating.engine.executor.worker.runner  # type: ignore[attr-defined]
    rows = []
    for batch in batches:
        for rate in RATES:
            runner.batch.acceptance_rate.fill_(rate)
            chosen = note_choices(speculating)
            with_guesses, without = list[tuple[float, float]](), list[tuple[float, float]]()
            for turn in range(4):
                with_guesses.append(_timed(speculating, batch))
                without.append(_timed(plain, batch))
                if turn == 0:  # not counted
                    with_guesses.clear()
                    without.clear()
                    chosen.clear()
            ms, seconds = map(statistics.median, zip(*with_guesses, strict=True))
            baseline, seconds_without = map(statistics.median, zip(*without, strict=True))
            rows.append(
                Row(
                    f"auto-a{rate}-batch{batch}",
                    "ms_per_token",
                    ms,
                    "ms",
                    {"no_guesses": baseline},
                    {
                        "batch": batch,
                        "acceptance": rate,
                        "speedup": baseline / ms,
                        "whole_speedup": seconds_without / seconds,
                        "k": statistics.mean(chosen),
                    },
                )
            )
    del speculating, plain, runner
    collect()
    return rows


def _timed(llm: LLM, batch: int) -> tuple[float, float]:
    """Return the milliseconds a token behind the first ones, and the seconds of the whole call."""
    begin = time.perf_counter()
    ms = ms_per_token(llm, batch)
    return ms, time.perf_counter() - begin


def note_choices(llm: LLM) -> list[int]:
    """Let an engine choose as if it were new; return a list that the k of each step is added to.

    A trace would hold on to every step's messages, through which Python's garbage collector then
    walks, in the one engine and not in the other.
    """
    costs, config = llm.engine.executor.round_costs, llm.engine.config.speculation
    assert costs is not None
    assert config is not None
    controller = llm.engine._controller = LengthController(costs, config.choices)
    choose, chosen = controller.choose, list[int]()

    def noted(output: SchedulerOutput, batch: int) -> int:
        chosen.append(choose(output, batch))
        return chosen[-1]

    controller.choose = noted  # type: ignore[method-assign]
    return chosen
