"""Where a training run stands in its schedule: by its steps, or by its time if time is shorter.

The learning rate falls to zero at the end of a schedule, so a run that is cut off in the middle is
worth little. A run with a limit in seconds therefore moves through the schedule by whichever is
ahead, the steps done or the time spent, and ends with the rate fallen either way.
"""

from __future__ import annotations

import time
from collections.abc import Callable

COMPILED = 10  # steps after which nothing is compiled any more, so that time counts


class Pace:
    """Invariant: `at` never falls, and is at least the number of finished steps."""

    def __init__(
        self, steps: int, seconds: float | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """seconds: limit on the time after the first `COMPILED` steps; None sets none."""
        self.steps = steps
        self.seconds = seconds
        self.clock = clock
        self.done = 0
        self.at = 0.0  # place in the schedule, in steps
        self._began: float | None = None

    def advance(self) -> None:
        """Counts one finished step."""
        self.done += 1
        self.at = max(self.at, float(self.done))
        if self.seconds is None or self.done < COMPILED:
            return
        now = self.clock()
        if self._began is None:
            self._began = now
        self.at = max(self.at, self.steps * (now - self._began) / self.seconds)

    @property
    def ended(self) -> bool:
        return self.at >= self.steps
