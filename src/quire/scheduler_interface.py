"""`Scheduler`: what the engine asks of whoever chooses a step's work."""

from __future__ import annotations

from typing import Protocol

from quire.messages import SchedulerOutput, StepResult
from quire.request import FinishReason, Request


class Scheduler(Protocol):
    """Swap point: chooses each step's work and learns its result.

    `schedule` may be called again before the last step's `update`: what is queued on the
    device counts as computed, and a token sampled there as a placeholder. So do the drafts that
    are verified there, until `update` takes back what was rejected.
    """

    def add(self, request: Request) -> None:
        """Take a new request.

        Raises:
            InvalidRequestError: it could never run, or one of its id has not ended.
        """
        ...

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> None:
        """End a request early; unknown ids are ignored."""
        ...

    def schedule(self) -> SchedulerOutput:
        """Return the next step's work; no entries when there is none."""
        ...

    def guess(self, output: SchedulerOutput, most: int) -> SchedulerOutput:
        """Return the step just scheduled with at most so many guesses behind its tokens.

        What a model guesses behind a step is the request's next drafts, and only the scheduler
        counts them (`Request.num_draft_tokens`); what the host guesses comes with the result.
        """
        ...

    def update(self, output: SchedulerOutput, result: StepResult) -> list[Request]:
        """Record a step's tokens, in order of the steps; return the requests that got any.

        Among them is one that ends without: its prompt was to be scored, no more.
        """
        ...

    def retract(self, output: SchedulerOutput) -> None:
        """Take back a step that was never carried out: its requests compute it again."""
        ...

    @property
    def has_requests(self) -> bool:
        """Whether any request waits or runs."""
        ...
