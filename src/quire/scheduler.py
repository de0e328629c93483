"""`Scheduler`: decides which positions of which requests the next step computes.

There is no prefill phase and no decode phase: each step lets a request catch up from
`num_computed_tokens` to `num_tokens` within one token budget (as vLLM V1 does). This is
the first floor's policy, first come, first served; the chapter "Batching" extends it.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from quire.config import EngineConfig
from quire.kv.slots import KVCacheManager
from quire.messages import NewRequest, ScheduledEntry, SchedulerOutput, StepResult
from quire.request import FinishReason, Request


class Scheduler(Protocol):
    """Swap point: chooses each step's work and learns its result."""

    def add(self, request: Request) -> None:
        """Take a new request."""
        ...

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> None:
        """End a request early; unknown ids are ignored."""
        ...

    def schedule(self) -> SchedulerOutput:
        """Return the next step's work; no entries when there is none."""
        ...

    def update(self, output: SchedulerOutput, result: StepResult) -> list[Request]:
        """Record a step's tokens and return the requests that got any."""
        ...

    @property
    def has_requests(self) -> bool:
        """Whether any request waits or runs."""
        ...


class FCFSScheduler:
    """First come, first served, with a token budget.

    A request is in exactly one of `waiting` and `running`. Rows [0, max_num_seqs) are
    either free or belong to one running request.
    """

    def __init__(self, config: EngineConfig, kv: KVCacheManager) -> None:
        """Schedule at most `config.max_num_seqs` requests over the blocks of `kv`."""
        self._config = config
        self._kv = kv
        self.waiting: deque[Request] = deque()
        self.running: dict[str, Request] = {}  # in order of admission
        self._rows: dict[str, int] = {}
        self._free_rows = list(range(config.max_num_seqs - 1, -1, -1))
        self._finished_ids: list[str] = []
        self._step = 0

    def add(self, request: Request) -> None:
        """Queue a request behind the others."""
        self.waiting.append(request)

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> None:
        """End a request early, giving back what it holds."""
        request = self.running.get(request_id)
        if request is not None:
            request.finish_reason = reason
            self._finish(request)
            return
        for request in self.waiting:
            if request.request_id == request_id:
                request.finish_reason = reason
                self.waiting.remove(request)
                return

    def schedule(self) -> SchedulerOutput:
        """Let the running requests catch up, then admit waiting ones while there is room."""
        budget = self._config.max_num_batched_tokens
        entries: list[ScheduledEntry] = []
        new_requests: list[NewRequest] = []

        for request in self.running.values():
            if budget == 0:
                break
            entries.append(self._entry(request, budget))
            budget -= entries[-1].num_tokens

        while self.waiting and budget > 0 and self._free_rows:
            request = self.waiting[0]
            new_block_ids = self._kv.reserve(request, request.num_tokens)
            if new_block_ids is None:
                break
            self.waiting.popleft()
            self.running[request.request_id] = request
            self._rows[request.request_id] = self._free_rows.pop()
            entries.append(self._entry(request, budget, new_block_ids))
            budget -= entries[-1].num_tokens
            new_requests.append(
                NewRequest(request.request_id, request.prompt_token_ids, request.sampling_params)
            )

        self._step += 1
        finished, self._finished_ids = tuple(self._finished_ids), []
        return SchedulerOutput(self._step, tuple(entries), tuple(new_requests), finished)

    def _entry(
        self, request: Request, budget: int, new_block_ids: tuple[tuple[int, ...], ...] = ()
    ) -> ScheduledEntry:
        start = request.num_computed_tokens
        num_tokens = min(request.num_tokens - start, budget)
        return ScheduledEntry(
            request.request_id,
            self._rows[request.request_id],
            start,
            num_tokens,
            samples=start + num_tokens == request.num_tokens,
            new_block_ids=new_block_ids,
        )

    def update(self, output: SchedulerOutput, result: StepResult) -> list[Request]:
        """Advance the counters and append the tokens of a step."""
        advanced = []
        for entry in output.entries:
            request = self.running.get(entry.request_id)
            if request is None:  # aborted while the step ran: its result is dropped
                continue
            request.num_computed_tokens = entry.start + entry.num_tokens
            for token_id in result.token_ids.get(entry.request_id, ()):
                request.append_output(token_id, self._config.max_model_len)
                if request.finish_reason is not None:
                    self._finish(request)
                    break
            if entry.samples:
                advanced.append(request)
        return advanced

    @property
    def has_requests(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.waiting or self.running)

    def _finish(self, request: Request) -> None:
        del self.running[request.request_id]
        self._free_rows.append(self._rows.pop(request.request_id))
        self._kv.free(request)
        self._finished_ids.append(request.request_id)
