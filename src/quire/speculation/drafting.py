"""`Drafting`: what a runner asks of whoever guesses, on the host or on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from quire.messages import ScheduledEntry, SchedulerOutput


class Drafting(Protocol):
    """Writes guesses behind the known tokens of the device's rows, step by step."""

    def begin(self, output: SchedulerOutput) -> None:
        """Take the tokens of requests that a step gives a row."""
        ...

    def queue(self, output: SchedulerOutput) -> None:
        """Queue what guesses on the device, behind a step that was queued there."""
        ...

    def probabilities(self, rows: Tensor, turns: Tensor) -> Tensor | None:
        """Return what guesses were drawn from, float32 [N, V]; None if they were not drawn.

        Args:
            rows: int64 [N], whose guesses.
            turns: int64 [N], which of its guesses, 0 the first.
        """
        ...

    def propose(
        self,
        entries: Sequence[ScheduledEntry],
        told: Mapping[str, Sequence[int]],
        num_guesses: int | None,
    ) -> dict[str, int]:
        """Return how many guesses lie behind a step's tokens, where the host makes them.

        Args:
            entries: of the requests that the step chose for.
            told: their tokens, by request id; one that fails has none.
            num_guesses: at most so many; None: as many as there may be.
        """
        ...
