"""Wrong schedulers."""

from __future__ import annotations

from dataclasses import replace

from quire.config import EngineConfig
from quire.kv.kv_cache_manager import KVCacheManager, Reservation
from quire.messages import SchedulerOutput, StepResult
from quire.policy import WaitingQueue
from quire.request import FinishReason, Request
from quire.scheduler import TokenBudgetScheduler, _Tracked
from quire.step_builder import StepBuilder


class ExceedsTheBudget(TokenBudgetScheduler):
    """A prompt is computed in one piece, however long."""

    def _catch_up(self, tracked: _Tracked, budget: int) -> int:
        return super()._catch_up(tracked, 10**6)


class PrefillFirst(TokenBudgetScheduler):
    """New prompts take the budget before those that are being answered."""

    def schedule(self) -> SchedulerOutput:
        self._running = dict(
            sorted(self._running.items(), key=lambda item: bool(item[1].request.output_token_ids))
        )
        return super().schedule()


class SamplesAfterEveryChunk(TokenBudgetScheduler):
    """The end of a chunk is taken for the end of the prompt."""

    def schedule(self) -> SchedulerOutput:
        output = super().schedule()
        return replace(output, entries=tuple(replace(e, samples=True) for e in output.entries))


class ComputesPastTheLimit(TokenBudgetScheduler):
    """With overlap, a step is queued for a request whose last token is in flight."""

    def _catch_up(self, tracked: _Tracked, budget: int) -> int:
        return min(tracked.request.num_unscheduled_tokens, budget)


class ComputesTheLastTokenToo(TokenBudgetScheduler):
    """The limit is off by one."""

    def add(self, request: Request) -> None:
        super().add(request)
        self._tracked[request.request_id].last_position += 1


class StopsOneTokenEarly(TokenBudgetScheduler):
    """The limit is off by one, the other way: the last token never comes."""

    def add(self, request: Request) -> None:
        super().add(request)
        self._tracked[request.request_id].last_position -= 1


class WaitsForTheResult(TokenBudgetScheduler):
    """A request with a token in flight is not scheduled: the device idles between steps."""

    def _catch_up(self, tracked: _Tracked, budget: int) -> int:
        return 0 if tracked.request.num_placeholders else super()._catch_up(tracked, budget)


class SetDecidesTheOrder(TokenBudgetScheduler):
    """Entries come in the order of a set of ids, another on each rank."""

    def schedule(self) -> SchedulerOutput:
        output = super().schedule()
        by_id = {entry.request_id: entry for entry in output.entries}
        return replace(output, entries=tuple(by_id[request_id] for request_id in set(by_id)))


class PreemptsTheOldest(TokenBudgetScheduler):
    """The request that has the most to lose is sent back."""

    def _preempt(self, step: StepBuilder) -> _Tracked:
        victim = next(iter(self._running.values()))
        step.preempt(victim.request)
        self._wait_again(victim)
        return victim


class PreemptsWhoeverAsks(TokenBudgetScheduler):
    """Priority decides who starts, and is forgotten when room is short."""

    def _preempt(self, step: StepBuilder) -> _Tracked:
        victim = max(self._running.values(), key=lambda tracked: tracked.arrival)
        step.preempt(victim.request)
        self._wait_again(victim)
        return victim


class PreemptedGoesToTheBack(TokenBudgetScheduler):
    """A steady flow of new requests starves it."""

    def _wait_again(self, tracked: _Tracked) -> None:
        tracked.arrival = self._num_arrived
        self._num_arrived += 1
        super()._wait_again(tracked)


class PreemptedKeepsItsCount(TokenBudgetScheduler):
    """It goes on where it was, in blocks that hold nothing of it."""

    def _wait_again(self, tracked: _Tracked) -> None:
        computed = tracked.request.num_computed_tokens
        super()._wait_again(tracked)
        tracked.request.num_computed_tokens = computed

    def _share_prefix(self, request: Request, parent: _Tracked | None) -> int:
        return request.num_computed_tokens or super()._share_prefix(request, parent)


class PreemptedStaysInTheStep(TokenBudgetScheduler):
    """A request that loses its blocks after its turn is computed all the same."""

    def _preempt(self, step: StepBuilder) -> _Tracked:
        entries = dict(step.entries)
        victim = super()._preempt(step)
        step.entries = entries
        return victim


class PreemptedForgetsItsOutput(TokenBudgetScheduler):
    """What was said already is said again, differently or twice."""

    def _wait_again(self, tracked: _Tracked) -> None:
        super()._wait_again(tracked)
        tracked.request.output_token_ids.clear()


class TakesLateResults(TokenBudgetScheduler):
    """A result of before the preemption is appended to the life after it."""

    def _admit(self, tracked: _Tracked, parent: _Tracked | None, step: StepBuilder) -> bool:
        admitted = super()._admit(tracked, parent, step)
        tracked.admitted_step = 0
        return admitted


class OvertakesTheHead(TokenBudgetScheduler):
    """Whoever finds room goes first: a long prompt waits for ever."""

    def _admit_waiting(self, step: StepBuilder) -> None:
        kept = []
        while self._waiting and self._free_rows and step.budget > 0:
            tracked = self._waiting.pop()
            parent = self._parent(tracked.request)
            ready = parent is None or self._has_prompt(parent, step)
            if not ready or not self._admit(tracked, parent, step):
                kept.append(tracked)
        for tracked in kept:
            self._waiting.push(tracked, tracked.arrival)


class LastComeFirstServed(TokenBudgetScheduler):
    """The queue is a stack."""

    def __init__(self, config: EngineConfig, kv: KVCacheManager) -> None:
        super().__init__(config, kv)
        self._waiting = WaitingQueue(lambda tracked: -tracked.arrival)


class HighNumbersFirst(TokenBudgetScheduler):
    """Priority the wrong way round."""

    def _rank(self, tracked: _Tracked) -> float:
        return -super()._rank(tracked)


class ChargesNobody(TokenBudgetScheduler):
    """The fair policy never hears what was computed."""

    def schedule(self) -> SchedulerOutput:
        self._policy.scheduled = lambda entries: None  # type: ignore[method-assign]
        return super().schedule()


class RefusesNothing(TokenBudgetScheduler):
    """A request that can never fit waits at the head of the queue for ever."""

    def add(self, request: Request) -> None:
        blocks, self._kv._num_blocks = self._kv.num_blocks, 10**6  # type: ignore[attr-defined]
        super().add(request)
        self._kv._num_blocks = blocks  # type: ignore[attr-defined]


class RefusesWhatFits(TokenBudgetScheduler):
    """The last token is counted, though it is never written."""

    def add(self, request: Request) -> None:
        super().add(request)
        tokens = len(request.prompt_token_ids) + request.sampling_params.max_tokens
        if tokens > self._kv.num_blocks * self._kv.block_size:
            raise ValueError(f"{tokens} tokens do not fit")


class TwoOfOneName(TokenBudgetScheduler):
    """The second request of an id replaces the first, whose blocks leak."""

    def add(self, request: Request) -> None:
        self._tracked.pop(request.request_id, None)
        super().add(request)


class NoWatermark(TokenBudgetScheduler):
    """Whoever fits is admitted, and the next new block preempts."""

    def __init__(self, config: EngineConfig, kv: KVCacheManager) -> None:
        super().__init__(config, kv)
        self._watermark = 0


class WatermarkForTheFirst(TokenBudgetScheduler):
    """Blocks are kept free for running requests that do not exist."""

    def _admit(self, tracked: _Tracked, parent: _Tracked | None, step: StepBuilder) -> bool:
        free = self._kv.num_free_blocks - -(-tracked.request.num_tokens // self._kv.block_size)
        return free >= self._watermark and super()._admit(tracked, parent, step)


class AbortLeaksBlocks(TokenBudgetScheduler):
    """An aborted request's blocks are nobody's."""

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> None:
        tracked = self._tracked.get(request_id)
        if tracked is not None and tracked.row is not None:
            free, self._kv.free = self._kv.free, lambda request: None  # type: ignore[method-assign]
            super().abort(request_id, reason)
            self._kv.free = free  # type: ignore[method-assign]
        else:
            super().abort(request_id, reason)


class AbortLeaksTheRow(TokenBudgetScheduler):
    """Each abort leaves room for one request fewer."""

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> None:
        rows = list(self._free_rows)
        super().abort(request_id, reason)
        self._free_rows = rows


class AbortedStillWaits(TokenBudgetScheduler):
    """Only running requests can be aborted."""

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> None:
        if request_id in self._running:
            super().abort(request_id, reason)


class AbortIsNotReported(TokenBudgetScheduler):
    """The runner never hears that the row is free."""

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> None:
        super().abort(request_id, reason)
        self._finish_reasons.pop(request_id, None)


class FreesTheRowTwice(TokenBudgetScheduler):
    """Two requests share a row."""

    def _stop_running(self, tracked: _Tracked) -> None:
        row = tracked.row
        super()._stop_running(tracked)
        assert row is not None
        self._free_rows.insert(0, row)


class NeverCommits(TokenBudgetScheduler):
    """Prefix caching is on, and nothing is found."""

    def update(self, output: SchedulerOutput, result: StepResult) -> list[Request]:
        self._kv.commit = lambda request: None  # type: ignore[method-assign]
        return super().update(output, result)


class PromptLogprobsFromTheCache(TokenBudgetScheduler):
    """Nobody computes the positions whose log-probabilities were asked for."""

    def _share_prefix(self, request: Request, parent: _Tracked | None) -> int:
        if parent is not None:
            return super()._share_prefix(request, parent)
        return self._kv.match_prefix(request)


class ForksTooEarly(TokenBudgetScheduler):
    """A child copies its parent's last block in the step that is to write it."""

    def _has_prompt(self, parent: _Tracked, step: StepBuilder) -> bool:
        num_computed = parent.request.num_computed_tokens
        return parent.row is not None and num_computed >= len(parent.request.prompt_token_ids) - 1


class ForksTheWholePrompt(TokenBudgetScheduler):
    """The child has nothing left to sample from."""

    def _share_prefix(self, request: Request, parent: _Tracked | None) -> int:
        if parent is None:
            return super()._share_prefix(request, parent)
        self._kv.fork(parent.request, request, len(request.prompt_token_ids))
        return len(request.prompt_token_ids)


class NeverForks(TokenBudgetScheduler):
    """Every sample computes the prompt for itself."""

    def _parent(self, request: Request) -> _Tracked | None:
        return None


class LosesTheCopies(TokenBudgetScheduler):
    """The device is not told to copy the block that parent and child shared."""

    def schedule(self) -> SchedulerOutput:
        return replace(super().schedule(), block_copies=())


class SamplesHoldUpTheQueue(TokenBudgetScheduler):
    """A sample that waits for its parent keeps everybody behind it waiting."""

    def _admit_waiting(self, step: StepBuilder) -> None:
        while self._waiting and self._free_rows and step.budget > 0:
            tracked = self._waiting.pop()
            parent = self._parent(tracked.request)
            ready = parent is None or self._has_prompt(parent, step)
            if not ready or not self._admit(tracked, parent, step):
                self._waiting.push(tracked, tracked.arrival)
                return


class OrphansWait(TokenBudgetScheduler):
    """A sample waits for a parent that is gone."""

    def _parent(self, request: Request) -> _Tracked | None:
        parent = super()._parent(request)
        if parent is None and request.parent_id is not None and not request.output_token_ids:
            return _Tracked(request, 0, 0)
        return parent


class IgnoresFailure(TokenBudgetScheduler):
    """Positions of a step that never ran count as computed."""

    def retract(self, output: SchedulerOutput) -> None:
        """Nothing."""


class PublishesBeforeItLooks(TokenBudgetScheduler):
    """Full blocks get their names while rejected drafts still count as computed."""

    def update(self, output: SchedulerOutput, result: StepResult) -> list[Request]:
        for entry in output.entries:
            tracked = self._running.get(entry.request_id)
            if tracked is None or not entry.num_draft_tokens:
                continue
            request, drafts = tracked.request, entry.num_draft_tokens
            # As if the drafts were the request's own tokens.
            request.output_token_ids += [1] * drafts
            self._kv.commit(request)
            del request.output_token_ids[-drafts:]
        return super().update(output, result)


class CountsRejectedDrafts(TokenBudgetScheduler):
    """What was computed for a rejected draft passes for the token that took its place."""

    def update(self, output: SchedulerOutput, result: StepResult) -> list[Request]:
        before = {
            entry.request_id: self._tracked[entry.request_id].request.num_computed_tokens
            for entry in output.entries
            if entry.num_draft_tokens and entry.request_id in self._tracked
        }
        advanced = super().update(output, result)
        for request in advanced:
            if request.finish_reason is None and request.request_id in before:
                request.num_computed_tokens = before[request.request_id]
        return advanced


class DraftsOverTheBudget(TokenBudgetScheduler):
    """The budget bounds known tokens only."""

    def _catch_up(self, tracked: _Tracked, budget: int) -> int:
        num_tokens = super()._catch_up(tracked, budget)
        return num_tokens and num_tokens + max(
            0, tracked.request.num_unscheduled_tokens - max(num_tokens, budget)
        )


class DraftsPastTheLimit(TokenBudgetScheduler):
    """Drafts are computed where no token may be."""

    def _catch_up(self, tracked: _Tracked, budget: int) -> int:
        num_tokens = super()._catch_up(tracked, budget)
        return num_tokens and min(budget, tracked.request.num_unscheduled_tokens)


class DraftsOutliveAPreemption(TokenBudgetScheduler):
    """A resumed request brings drafts for a row that the device has given away."""

    def _wait_again(self, tracked: _Tracked) -> None:
        drafts = tracked.request.num_draft_tokens + tracked.request.num_unverified
        super()._wait_again(tracked)
        tracked.request.num_draft_tokens = drafts


class PreemptsForDrafts(TokenBudgetScheduler):
    """Somebody loses what was computed for the sake of a guess."""

    def _reserve(
        self, tracked: _Tracked, num_tokens: int, step: StepBuilder
    ) -> tuple[int, Reservation | None]:
        return num_tokens, self._kv.reserve(tracked.request, num_tokens)
