"""The buckets again, with fractions and one history a client: nothing shared with the master."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import strategies as st

CLIENTS = st.sampled_from(["ada", "bob", "cy"])
REQUESTS = st.tuples(CLIENTS, st.integers(0, 12), st.integers(0, 1500))
DAYS = st.lists(REQUESTS, min_size=1, max_size=25)
RATES, BURSTS = st.integers(1, 9), st.integers(1, 10)


class Oracle:
    """What should happen, in tokens as fractions."""

    def __init__(self, rate: int, burst: int, variant: str | None = None) -> None:
        self.rate, self.burst, self.variant = rate, Fraction(burst), variant
        self.levels: dict[str, Fraction] = {}
        self.times: dict[str, int] = {}

    def admit(self, client: str, tokens: int, now: int) -> bool:
        waited = Fraction(now - self.times.get(client, now), 1000)
        level = min(self.burst, self.levels.get(client, self.burst) + waited * self.rate)
        let_in = level > 0 if self.variant == "debt" else level >= tokens
        if let_in:
            level -= tokens
        elif self.variant == "fee":
            level = max(Fraction(0), level - 1)
        self.levels[client], self.times[client] = level, now
        return let_in

    def finish(self, client: str, unused: int) -> None:
        self.levels[client] = min(self.burst, self.levels[client] + unused)

    def level(self, client: str) -> int:
        return int(1000 * self.levels.get(client, self.burst))
