"""Engines with a trace, run to the end, and what the trace says they did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from checkpoints import assert_empty
from transformers import PreTrainedModel

from quire import LLM, RequestHandle, RequestOutput, SamplingParams, Trace
from quire.trace import Decision

Folder = Callable[[str], Path]
T = TypeVar("T")
Oracle = Callable[[str], PreTrainedModel]


@dataclass
class Run:
    """An engine in float32 whose decisions are recorded."""

    llm: LLM
    trace: Trace

    @classmethod
    def of(cls, folder: Path, device: str = "cpu", **options: Any) -> Run:
        """Load a checkpoint; `options` are those of `LLM`."""
        trace = Trace()
        llm = LLM(folder, dtype="float32", device=device, trace=trace, **options)
        return cls(llm, trace)

    def add(self, prompt: Sequence[int], params: SamplingParams, **options: Any) -> RequestHandle:
        """Submit a prompt; its id is the number of requests so far."""
        name = str(self.llm._num_requests)
        self.llm._num_requests += 1
        return self.llm.engine.add_request(name, prompt, params, **options)

    def finish(self) -> None:
        """Step until nothing is left, and see that nothing is held."""
        while self.llm.engine.has_requests:
            self.llm.engine.step()
        assert_empty(self.llm)

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, **options: Any
    ) -> list[RequestOutput]:
        """Submit prompts together, run them to their ends."""
        handles = [self.add(prompt, params, **options) for prompt in prompts]
        return self.finish_all(handles)

    def finish_all(self, handles: Sequence[RequestHandle]) -> list[RequestOutput]:
        """Step until nothing is left; return what the handles' prompts came to."""
        self.finish()
        return [handle.snapshot() for handle in handles]

    def decisions(self, kind: str) -> list[Decision]:
        """Return the recorded decisions of one kind."""
        return [decision for decision in self.trace.decisions() if decision.kind == kind]

    def hits(self) -> list[int]:
        """Return how many cached tokens each admitted request found, in order."""
        return [decision.details["hit_tokens"] for decision in self.decisions("admit")]

    def preemptions(self) -> list[Preemption]:
        """Return how far each preempted request was when its blocks were taken."""
        prompts: dict[str, int] = {}
        computed: dict[str, int] = {}
        last_sampled: dict[str, int] = {}
        found = []
        for step in (recorded.scheduled for recorded in self.trace.steps):
            found += [
                Preemption(
                    name, computed[name], prompts[name], last_sampled.get(name) == step.step - 1
                )
                for name in step.preempted_ids
            ]
            prompts |= {new.request_id: new.num_prompt_tokens for new in step.new_requests}
            for entry in step.entries:
                computed[entry.request_id] = entry.start + entry.num_tokens
                if entry.samples:
                    last_sampled[entry.request_id] = step.step
        return found


@dataclass(frozen=True)
class Preemption:
    """One request that lost its blocks."""

    request_id: str
    num_computed: int
    num_prompt_tokens: int
    sampled_in_the_step_before: bool  # with overlap that token was still on its way

    @property
    def in_prefill(self) -> bool:
        """Whether its prompt was computed in part."""
        return 0 < self.num_computed < self.num_prompt_tokens


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run in a thread of its own: a browser's test may have left a loop running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
