"""`TokenBudgetScheduler`: decides which positions of which requests the next step computes.

There is no prefill phase and no decode phase: each step lets a request catch up from
`num_computed_tokens` to the tokens it has, within one token budget (as vLLM V1 does).
Chunked prefill, prefix hits, preemption and overlap are all that one rule. See the chapter
"Batching".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from quire.config import EngineConfig
from quire.errors import InvalidRequestError
from quire.kv.kv_cache_manager import BlockIds, KVCacheManager, Reservation
from quire.messages import SchedulerOutput, StepResult
from quire.policy import WaitingQueue, make_policy
from quire.request import FinishReason, Request
from quire.speculation.room import DraftRoom
from quire.step_builder import StepBuilder


@dataclass
class _Tracked:
    """What the scheduler knows of a request that has not ended."""

    request: Request
    arrival: int  # its number among all requests
    last_position: int  # of the last token it may have, which is never computed; see `add`
    row: int | None = None  # while it runs
    num_places: int = 0  # positions in its blocks, while it runs
    admitted_step: int = 0  # results of earlier steps belong to a life before preemption


class TokenBudgetScheduler:
    """Running requests first, in order of admission; then waiting ones while there is room.

    A request is tracked from `add` to its end, and either waits or runs; one that runs has
    blocks and a row in [0, max_num_seqs) of its own. The first waiting request that finds
    no room keeps those behind it waiting, or a long prompt would be overtaken for ever.
    """

    def __init__(self, config: EngineConfig, kv: KVCacheManager) -> None:
        """Schedule at most `config.scheduling.max_num_seqs` requests over the blocks of `kv`."""
        self._config = config
        self._kv = kv
        self._room = DraftRoom(kv, config.speculation)
        self._policy = make_policy(config.scheduling.policy)
        self._watermark = int(config.scheduling.watermark * kv.num_blocks)
        self._tracked: dict[str, _Tracked] = {}
        self._waiting: WaitingQueue[_Tracked] = WaitingQueue(self._rank)
        self._running: dict[str, _Tracked] = {}  # in order of admission
        self._free_rows = list(range(config.scheduling.max_num_seqs - 1, -1, -1))
        self._finish_reasons: dict[str, str] = {}  # of those ended since the last step
        self._num_arrived = 0
        self._num_steps = 0

    @property
    def has_requests(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._tracked)

    def add(self, request: Request) -> None:
        """Queue a request that fits into the cache when it is alone."""
        if request.request_id in self._tracked:
            raise InvalidRequestError(f"request_id={request.request_id!r} has not ended yet")
        num_prompt_tokens = len(request.prompt_token_ids)
        max_tokens = request.sampling_params.output_limit
        last_position = min(num_prompt_tokens + max_tokens, self._config.model.max_model_len) - 1
        if max_tokens == 0:  # to score a prompt takes all of it; what it samples is dropped
            last_position = num_prompt_tokens
        num_blocks = -(-last_position // self._kv.block_size)
        if num_blocks > self._kv.num_blocks:
            raise InvalidRequestError(
                f"a prompt of {num_prompt_tokens} tokens with max_tokens={max_tokens} can need "
                f"{num_blocks} blocks of {self._kv.block_size} tokens and the KV cache has "
                f"{self._kv.num_blocks}: shorten the prompt, lower max_tokens, or give the cache "
                "more blocks"
            )
        tracked = _Tracked(request, self._num_arrived, last_position)
        self._num_arrived += 1
        self._tracked[request.request_id] = tracked
        self._policy.arrived(request)
        self._waiting.push(tracked, tracked.arrival)

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> None:
        """End a request early, giving back what it holds."""
        tracked = self._tracked.get(request_id)
        if tracked is not None:
            if tracked.row is None:
                self._waiting.remove(tracked.arrival)
            tracked.request.finish_reason = reason
            self._end(tracked)

    # docs: schedule begin
    def schedule(self) -> SchedulerOutput:
        """Let the running requests catch up, then admit waiting ones while there is room."""
        self._num_steps += 1
        step = StepBuilder(self._num_steps, self._config.scheduling.max_num_batched_tokens)
        self._continue_running(step)
        if not step.preempted_ids:  # otherwise the cache is full
            self._admit_waiting(step)
        self._policy.scheduled(step.entries.values())
        finish_reasons, self._finish_reasons = self._finish_reasons, {}
        return step.build(finish_reasons, self._kv.num_free_blocks)

    def _continue_running(self, step: StepBuilder) -> None:
        for tracked in list(self._running.values()):
            request, row = tracked.request, tracked.row
            if row is None:  # preempted by a request before it
                continue
            num_tokens = self._catch_up(tracked, step.budget)
            if num_tokens <= 0:
                continue
            num_tokens, reservation = self._reserve(tracked, num_tokens, step)
            while reservation is None and self._preempt(step) is not tracked:
                reservation = self._kv.reserve(request, num_tokens)
            if reservation is not None:
                step.schedule(request, row, num_tokens, reservation.new_block_ids)
                self._count_guesses(tracked, reservation.new_block_ids)

    def _catch_up(self, tracked: _Tracked, budget: int) -> int:
        """Return how far a request catches up: to its tokens, its limit or the budget's end."""
        request = tracked.request
        if request.num_unverified > 0 and not self._room.num_lookahead:
            return 0  # the host's guesses are being checked; its next ones start from the result
        until_limit = tracked.last_position - request.num_computed_tokens
        return min(request.num_unscheduled_tokens, until_limit, budget)

    # docs: schedule end

    def _reserve(
        self, tracked: _Tracked, num_tokens: int, step: StepBuilder
    ) -> tuple[int, Reservation | None]:
        """Make room for a request's next positions, without its drafts if that is all there is."""
        request = tracked.request
        if self._room.num_lookahead == request.num_draft_tokens == 0:  # no guess needs room
            return num_tokens, self._kv.reserve(request, num_tokens)
        num_behind = max(0, len(self._running) - len(step.entries) - 1)
        return self._room.reserve(
            request, num_tokens, tracked.last_position, num_behind, step.budget
        )

    def _count_guesses(self, tracked: _Tracked, new_block_ids: BlockIds) -> None:
        """Count what a model guesses behind the tokens of a step: as far as there are places."""
        if self._room.num_lookahead > 0:
            tracked.num_places += self._kv.block_size * len(next(iter(new_block_ids), ()))
            request = tracked.request
            request.num_draft_tokens = self._room.num_guesses(request, tracked.num_places)

    # docs: preempt begin
    def _preempt(self, step: StepBuilder) -> _Tracked:
        """Let the running request that ranks last wait again; it is computed anew later."""
        victim = max(self._running.values(), key=lambda t: (self._rank(t), t.arrival))
        step.preempt(victim.request)
        self._wait_again(victim)
        return victim

    # docs: preempt end

    # docs: admit begin
    def _admit_waiting(self, step: StepBuilder) -> None:
        still_waiting = []
        while self._waiting and self._free_rows and step.budget > 0:
            tracked = self._waiting.pop()
            parent = self._parent(tracked.request)
            if parent is not None and not self._has_prompt(parent, step):
                still_waiting.append(tracked)
            elif not self._admit(tracked, parent, step):
                still_waiting.append(tracked)
                break
        for tracked in still_waiting:
            self._waiting.push(tracked, tracked.arrival)

    def _admit(self, tracked: _Tracked, parent: _Tracked | None, step: StepBuilder) -> bool:
        """Start a request if the cache has room for all its tokens so far.

        A prompt let in with room for its first chunk only could be preempted for the second.
        The watermark keeps some blocks for the growth of those that run.
        """
        request, kv = tracked.request, self._kv
        request.num_computed_tokens = start = self._share_prefix(request, parent)
        num_blocks = -(-request.num_tokens // kv.block_size) - start // kv.block_size
        watermark = self._watermark if self._running else 0
        reservation = None
        if kv.num_free_blocks - num_blocks >= watermark:
            num_tokens = request.num_tokens - start
            reservation = self._room.reserve_ahead(request, num_tokens, tracked.last_position)
        if reservation is None:
            kv.free(request)
            request.num_computed_tokens = 0
            return False
        tracked.row = row = self._free_rows.pop()
        tracked.admitted_step = step.step
        self._running[request.request_id] = tracked
        step.admit(request, row, reservation.copies)
        blocks = kv.block_ids(request)
        step.schedule(request, row, self._catch_up(tracked, step.budget), blocks)
        self._count_guesses(tracked, blocks)
        return True

    # docs: admit end

    # docs: parallel-samples begin
    def _parent(self, request: Request) -> _Tracked | None:
        """Return the first sample of a prompt, whose blocks a new sample is to share."""
        if request.parent_id is None or request.output_token_ids:
            return None
        return self._tracked.get(request.parent_id)

    def _has_prompt(self, parent: _Tracked, step: StepBuilder) -> bool:
        """Whether earlier steps compute all of a prompt but its last token."""
        num_computed = step.num_computed_before(parent.request)
        return parent.row is not None and num_computed >= len(parent.request.prompt_token_ids) - 1

    def _share_prefix(self, request: Request, parent: _Tracked | None) -> int:
        """Let a request begin with blocks that exist; return how many tokens they hold."""
        if parent is not None:
            # The last prompt token is the child's own: it samples from there, with its seed.
            num_shared = len(request.prompt_token_ids) - 1
            self._kv.fork(parent.request, request, num_shared)
            return num_shared
        if request.sampling_params.prompt_logprobs is not None:
            return 0  # every position of the prompt is asked for
        return self._kv.match_prefix(request)

    # docs: parallel-samples end

    def guess(self, output: SchedulerOutput, most: int) -> SchedulerOutput:
        """Let a model guess at most so many tokens behind each request of a step."""
        for entry in output.entries:
            request = self._tracked[entry.request_id].request
            request.num_draft_tokens = min(request.num_draft_tokens, most)
        return replace(output, num_guesses=most)

    # docs: update begin
    def update(self, output: SchedulerOutput, result: StepResult) -> list[Request]:
        """Append a step's tokens, publish full blocks, end what is complete."""
        advanced = []
        for entry in output.entries:
            tracked = self._running.get(entry.request_id)
            if tracked is None or output.step < tracked.admitted_step:
                continue  # ended or preempted since: the result is dropped
            request = tracked.request
            if entry.samples:
                if entry.num_unverified > 0:  # the verdicts ahead are known by now
                    entry.start, entry.num_unverified = request.num_tokens - 1, 0
                tokens = result.token_ids[entry.request_id]
                request.accept(tokens, entry.num_draft_tokens, self._config.model.max_model_len)
                drafts = result.num_draft_tokens.get(entry.request_id, request.num_draft_tokens)
                if request.num_placeholders == 0:  # else a queued step has its next position
                    request.num_draft_tokens = drafts
                advanced.append(request)
            self._kv.commit(request)  # only now: a rejected draft must not name a block
            if request.finish_reason is not None:
                self._end(tracked)
        return advanced

    # docs: update end

    def retract(self, output: SchedulerOutput) -> None:
        """Let the requests of a step that failed on its way to the device begin anew."""
        for entry in output.entries:
            tracked = self._running.get(entry.request_id)
            if tracked is not None and output.step >= tracked.admitted_step:
                self._wait_again(tracked)

    def _end(self, tracked: _Tracked) -> None:
        request = tracked.request
        assert request.finish_reason is not None
        if tracked.row is not None:
            self._stop_running(tracked)
        self._kv.free(request)  # one that waited holds no blocks, but its prefix is known
        del self._tracked[request.request_id]
        self._finish_reasons[request.request_id] = request.finish_reason
        self._policy.ended(request)

    def _wait_again(self, tracked: _Tracked) -> None:
        """Send a running request back; what it had computed is lost, what it said is not."""
        self._stop_running(tracked)
        tracked.request.forget_computed()
        self._waiting.push(tracked, tracked.arrival)

    def _stop_running(self, tracked: _Tracked) -> None:
        assert tracked.row is not None
        self._kv.free(tracked.request)
        self._free_rows.append(tracked.row)
        tracked.row, tracked.num_places = None, 0
        del self._running[tracked.request.request_id]

    def _rank(self, tracked: _Tracked) -> float:
        return self._policy.rank(tracked.request)
