"""The engine under a measured clock: real scheduling, real tokens, times from a measurement.

Who is scheduled when depends on when requests arrive, and so on how fast steps are. Here a
step's time is read from a measurement's points, so that a run of quire-mini on any machine
makes the decisions that the measured machine would lead to, the same each time.
"""

from __future__ import annotations

import random

from quire.analysis.queueing import CONTINUOUS, Arrival, Gate, Run, serve
from quire.analysis.step_time import Entry, StepTime
from quire.errors import QuireError
from quire.llm import LLM
from quire.sampling.params import SamplingParams
from quire.trace import Trace

TIMELINE = [
    Arrival(time / 1e3, prompt_tokens, output_tokens)
    for time, prompt_tokens, output_tokens in (
        (0, 64, 12),
        (5, 40, 30),
        (12, 96, 6),
        (30, 56, 20),
        (45, 1600, 8),
        (60, 32, 16),
        (80, 72, 10),
        (300, 48, 24),
        (310, 56, 8),
        (420, 40, 12),
    )
]
"""Ten requests, one with a long prompt, for the timelines of the chapter "Batching"."""


class EngineServer:
    """The engine as a `Server`: prompts of random tokens, greedy, every output in full."""

    def __init__(self, llm: LLM, seed: int = 0) -> None:
        """`llm` keeps one step in flight, so that a step's tokens are known at its end."""
        if llm.config.scheduling.overlap:
            raise QuireError("a replay needs an engine with overlap=False")
        self._engine = llm.engine
        self._engine.trace = self._engine.trace or Trace()
        self._random = random.Random(seed)
        self._vocab_size = llm.model_config.vocab_size

    def add(self, index: int, arrival: Arrival) -> None:
        """Submit request `index`."""
        ids = [self._random.randrange(self._vocab_size) for _ in range(arrival.prompt_tokens)]
        self._engine.add_request(
            str(index),
            ids,
            SamplingParams(max_tokens=arrival.output_tokens, temperature=0, ignore_eos=True),
            priority=arrival.priority,
            client_id=arrival.client,
        )

    def step(self) -> list[Entry]:
        """Run one step of the engine and return its entries."""
        assert self._engine.trace is not None
        self._engine.step()
        scheduled = self._engine.trace.steps[-1].scheduled
        return [
            (int(entry.request_id.partition("-")[0]), entry.start, entry.num_tokens)
            for entry in scheduled.entries
        ]


def replay(llm: LLM, arrivals: list[Arrival], step_time: StepTime, gate: Gate = CONTINUOUS) -> Run:
    """Serve the arrivals with a real engine while the clock runs as measured."""
    return serve(arrivals, EngineServer(llm), step_time, gate)
