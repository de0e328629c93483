"""`RoundCosts`: what steps with guesses take, as it was measured when the engine started."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping


class RoundCosts:
    """Seconds of a step that verifies k guesses of each of some requests and makes k new ones."""

    def __init__(
        self,
        seconds: Mapping[tuple[int, int], float],
        catch_up: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Take what was measured.

        Args:
            seconds: of a step, by (requests, k).
            catch_up: seconds in which whoever guesses catches up with texts that went on without
                guesses: of the shortest, and of each token of long ones.
        """
        self._batches: dict[int, list[int]] = {}
        self._seconds: dict[int, list[float]] = {}
        for batch, k in sorted(seconds):
            self._batches.setdefault(k, []).append(batch)
            self._seconds.setdefault(k, []).append(seconds[batch, k])
        self._at_least, self._a_token = catch_up

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

    def catching_up(self, num_tokens: float) -> float:
        """Return the seconds of reading so many tokens, of all requests together."""
        return max(self._at_least, self._a_token * num_tokens) if num_tokens > 0 else 0.0
