"""`RoundCosts`: what steps with guesses take, as it was measured when the engine started."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class CatchUp(NamedTuple):
    """Seconds in which a draft model reads what was said without it."""

    alone: float  # of the shortest text alone, whose pass is replayed where passes are captured
    several: float  # of the shortest texts together: a pass that is launched
    a_token: float  # of each token of long texts


NO_CATCH_UP = CatchUp(0.0, 0.0, 0.0)  # the host reads tokens as they come


class RoundCosts:
    """Seconds of a step that verifies k guesses of each of some requests and makes k new ones."""

    def __init__(
        self,
        seconds: Mapping[tuple[int, int], float],
        catch_up: CatchUp = NO_CATCH_UP,
    ) -> None:
        """Take what was measured.

        Args:
            seconds: of a step, by (requests, k).
            catch_up: seconds in which whoever guesses catches up with texts that went on without.
        """
        self._batches: dict[int, list[int]] = {}
        self._seconds: dict[int, list[float]] = {}
        for batch, k in sorted(seconds):
            self._batches.setdefault(k, []).append(batch)
            self._seconds.setdefault(k, []).append(seconds[batch, k])
        self._catch_up = catch_up

    def at(self, batch: int, k: int) -> float:
        """Return the seconds for a batch, between those measured; infinite if k was not."""
        batches, seconds = self._batches.get(k, []), self._seconds.get(k, [])
        i = bisect_left(batches, batch)
        if not batches:
            return float("inf")
        if i == len(batches):  # beyond the largest
            return seconds[-1] * batch / batches[-1]
        if i == 0 or batches[i] == batch:
            return seconds[i]
        share = (batch - batches[i - 1]) / (batches[i] - batches[i - 1])
        return seconds[i - 1] + share * (seconds[i] - seconds[i - 1])

    def catching_up(self, unread: Sequence[float]) -> float:
        """Return the seconds of reading so many tokens of each of some texts."""
        if not unread:
            return 0.0
        at_least = self._catch_up.alone if len(unread) == 1 else self._catch_up.several
        return max(at_least, self._catch_up.a_token * sum(unread))
