"""`StepBuilder`: a `SchedulerOutput` in the making, and the tokens it may still hold."""

from __future__ import annotations

from itertools import chain

from quire.kv.kv_cache_manager import BlockIds, Copies
from quire.messages import NewRequest, ScheduledEntry, SchedulerOutput
from quire.request import Request


class StepBuilder:
    """Collects the decisions of one step, in their order.

    Invariant: `budget` is the step's token budget less the tokens of `entries`, never below 0.
    """

    def __init__(self, step: int, budget: int) -> None:
        self.step = step
        self.budget = budget
        self.entries: dict[str, ScheduledEntry] = {}  # by request id
        self.preempted_ids: list[str] = []
        self._new_requests: list[NewRequest] = []
        self._hit_tokens: dict[str, int] = {}
        self._copies: list[Copies] = []

    def schedule(
        self, request: Request, row: int, num_tokens: int, new_block_ids: BlockIds
    ) -> None:
        """Compute a request's next positions; what is queued counts as computed from now on.

        Positions behind the tokens that are known hold drafts. Drafts that find no room in the
        step are dropped: the next ones are proposed for other positions.
        """
        start, num_known = request.num_computed_tokens, request.num_known_unscheduled
        ahead = request.num_unverified
        num_drafts = max(0, num_tokens - num_known)
        samples = num_tokens >= num_known
        self.entries[request.request_id] = ScheduledEntry(
            request.request_id, row, start, num_tokens, samples, new_block_ids, num_drafts, ahead
        )
        self.budget -= num_tokens
        request.num_computed_tokens += num_tokens
        request.num_placeholders += samples
        request.num_draft_tokens, request.num_unverified = 0, ahead + num_drafts

    def admit(self, request: Request, row: int, copies: Copies) -> None:
        """Give a request a row, with the tokens known so far; its cached ones are computed."""
        self._new_requests.append(
            NewRequest(
                request.request_id,
                row,
                request.prompt_token_ids + request.output_token_ids,
                len(request.prompt_token_ids),
                request.sampling_params,
                request.seed,
            )
        )
        self._hit_tokens[request.request_id] = request.num_computed_tokens
        if copies:
            self._copies.append(copies)

    def preempt(self, request: Request) -> None:
        """Take a request out of the step, if its turn came first, and note why it is gone."""
        entry = self.entries.pop(request.request_id, None)
        if entry is not None:
            self.budget += entry.num_tokens
        self.preempted_ids.append(request.request_id)

    def num_computed_before(self, request: Request) -> int:
        """Return how many of a running request's positions earlier steps compute."""
        entry = self.entries.get(request.request_id)
        return request.num_computed_tokens if entry is None else entry.start

    def build(self, finish_reasons: dict[str, str], num_free_blocks: int) -> SchedulerOutput:
        """Return the message; `finish_reasons` are of those that ended since the last one."""
        groups = zip(*self._copies, strict=True)
        return SchedulerOutput(
            step=self.step,
            entries=tuple(self.entries.values()),
            new_requests=tuple(self._new_requests),
            block_copies=tuple(tuple(chain.from_iterable(group)) for group in groups),
            finished_ids=tuple(finish_reasons),
            finish_reasons=finish_reasons,
            preempted_ids=tuple(self.preempted_ids),
            hit_tokens=self._hit_tokens,
            num_free_blocks=num_free_blocks,
        )
