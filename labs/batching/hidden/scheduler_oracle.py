"""A continuous scheduler that keeps every entry and works out the rest from them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Facts:
    """What is known of a request from its `add` to its end."""

    name: str
    client: str
    priority: int
    prompt: int
    output: int
    first: int  # where it begins to compute
    number: int
    born: int  # calls of `schedule` before it was added
    said: int = 0


@dataclass
class Life:
    """A request that runs without a break: the entries it has had."""

    facts: Facts
    seat: int
    start: int
    entries: dict[int, tuple[int, int]] = field(default_factory=dict)  # step: (end, tokens then)
    open: set[int] = field(default_factory=set)  # steps that said a token, not told yet

    @property
    def end(self) -> int:
        """The position that comes next."""
        return max((end for end, _ in self.entries.values()), default=self.start)

    @property
    def tokens(self) -> int:
        """Tokens known, those of steps in flight included."""
        return self.facts.prompt + self.facts.said + len(self.open)


class SchedulerOracle:
    """What `Scheduler` must do."""

    NAME = "Scheduler"

    def __init__(self, num_seats: int, per_client: int, patience: int) -> None:
        self.num_seats, self.per_client, self.patience = num_seats, per_client, patience
        self.waiting: list[Facts] = []
        self.lives: list[Life] = []
        self.number = self.calls = 0
        self.planned: dict[int, list[Life]] = {}  # by step

    def add(
        self, name: str, client: str, priority: int, prompt: int, output: int, cached: int
    ) -> None:
        """Take a request."""
        if self._life(name) or name in [facts.name for facts in self.waiting]:
            raise ValueError(name)
        self.number += 1
        first = min(cached, prompt - 1)
        self.waiting.append(
            Facts(name, client, priority, prompt, output, first, self.number, self.calls)
        )

    def abort(self, name: str) -> None:
        """End one early."""
        self.waiting = [facts for facts in self.waiting if facts.name != name]
        self.lives = [life for life in self.lives if life.facts.name != name]

    def schedule(self) -> list[list[object]]:
        """The next step."""
        while (facts := self._most_urgent()) is not None:
            taken = [life.seat for life in self.lives]
            free = [seat for seat in range(self.num_seats) if seat not in taken]
            if not free:
                break
            self.waiting.remove(facts)
            self.lives.append(Life(facts, free[0], facts.first))
        self.calls += 1
        entries: list[list[object]] = []
        for life in self.lives:
            start = life.end
            end = min(life.tokens, life.facts.prompt + life.facts.output - 1)
            if end > start:
                entries.append([life.facts.name, life.seat, start, end - start])
                life.entries[self.calls] = (end, life.tokens)
                if end == life.tokens:
                    life.open.add(self.calls)
        self.planned[self.calls] = [life for life in self.lives if self.calls in life.entries]
        return entries

    def _most_urgent(self) -> Facts | None:
        clients = [life.facts.client for life in self.lives]
        open_ = [f for f in self.waiting if clients.count(f.client) < self.per_client]
        return min(open_, key=self._urgency, default=None)

    def _urgency(self, facts: Facts) -> tuple[int, int]:
        return facts.priority - (self.calls - facts.born) // self.patience, facts.number

    def trim(self, name: str, count: int) -> None:
        """Compute less of an entry."""
        life = self._life(name)
        if life is None or self.calls not in life.entries or self.calls not in self.planned:
            raise ValueError(name)
        if count < 0:
            raise ValueError(count)
        end, tokens = life.entries.pop(self.calls)
        start = life.end
        life.entries[self.calls] = (min(end, start + count), tokens)
        if start + count > end:
            raise ValueError(name)
        if start + count < end:
            life.open.discard(self.calls)

    def preempt(self, name: str) -> None:
        """Send a running request back."""
        life = self._life(name)
        if life is None:
            raise ValueError(name)
        self.lives.remove(life)
        life.facts.first = 0
        self.waiting.append(life.facts)

    def update(self, step: int, ended: list[str]) -> list[str]:
        """What a step said."""
        finished = []
        for life in self.planned.pop(step):
            if life in self.lives and step in life.open:
                life.open.remove(step)
                life.facts.said += 1
                if life.facts.name in ended or life.facts.said == life.facts.output:
                    self.lives.remove(life)
                    finished.append(life.facts.name)
        return finished

    def _life(self, name: str) -> Life | None:
        return next((life for life in self.lives if life.facts.name == name), None)
