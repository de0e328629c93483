"""A ledger that keeps what stands in the caches: the token of every computed position."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Life:
    """A request between two preemptions."""

    tokens: list[int]
    cache: list[int] = field(default_factory=list)  # token by position, of the large model
    small: list[int] = field(default_factory=list)  # of the draft model
    out: int = 0  # blocks published


@dataclass
class Step:
    """A step in flight."""

    life: Life
    computed: list[int]
    drafts: list[int]
    samples: bool
    open: bool = True


class LedgerOracle:
    """What `Ledger` must do."""

    NAME = "Ledger"

    def __init__(self, block_size: int, max_len: int) -> None:
        self.block_size, self.max_len = block_size, max_len
        self.lives: dict[str, Life] = {}
        self.steps: list[Step] = []

    def add(self, request: str, tokens: list[int]) -> None:
        """Take one."""
        if request in self.lives:
            raise ValueError(request)
        self.lives[request] = Life([*tokens])

    def _life(self, request: str) -> Life:
        if request not in self.lives:
            raise ValueError(request)
        return self.lives[request]

    def _flying(self, life: Life) -> list[Step]:
        return [step for step in self.steps if step.open and step.life is life]

    def state(self, request: str) -> list[int]:
        """Known, computed, drafts in flight."""
        life = self._life(request)
        drafts = sum(len(step.drafts) for step in self._flying(life))
        return [len(life.tokens), len(life.cache), drafts]

    def behind(self, request: str) -> int:
        """What the draft model lacks."""
        life = self._life(request)
        return max(0, len(life.tokens) - len(life.small))

    def plan(self, request: str, drafts: list[int], budget: int) -> list[Any]:
        """The next step."""
        life = self._life(request)
        waiting = life.tokens[len(life.cache) :]
        samples = len(waiting) <= budget
        if self._flying(life) or (samples and len(life.tokens) >= self.max_len):
            raise ValueError(request)
        fitting: list[int] = []
        if samples:
            for token in drafts:
                if len(waiting) + len(fitting) == budget:
                    break
                if len(life.tokens) + len(fitting) + 2 > self.max_len:
                    break
                fitting.append(token)
        if drafts:
            life.small = [*life.tokens, *drafts[:-1]]
        computed = [*waiting, *fitting][:budget]
        self.steps.append(Step(life, computed, fitting, samples))
        return [len(self.steps), len(life.cache), computed, len(fitting), samples]

    def settle(self, step: int, tokens: list[int]) -> list[list[Any]]:
        """What a step said."""
        if not 1 <= step <= len(self.steps):
            raise ValueError(step)
        made = self.steps[step - 1]
        life = made.life
        if not made.open:
            raise ValueError(step)
        if not any(life is other for other in self.lives.values()):
            made.open = False
            return []
        if made.samples:
            kept = tokens[:-1]
            if not tokens or len(kept) > len(made.drafts) or kept != made.drafts[: len(kept)]:
                raise ValueError(tokens)
        elif tokens:
            raise ValueError(tokens)
        made.open = False
        kept = tokens[:-1]
        life.cache += made.computed[: len(made.computed) - len(made.drafts) + len(kept)]
        del life.small[len(life.tokens) + len(kept) :]
        life.tokens += tokens
        published = []
        while (life.out + 1) * self.block_size <= len(life.cache):
            begin = life.out * self.block_size
            published.append([life.out, life.cache[begin : begin + self.block_size]])
            life.out += 1
        return published

    def preempt(self, request: str) -> None:
        """Begin anew."""
        self.lives[request] = Life(self._life(request).tokens[:])

    def end(self, request: str) -> None:
        """Forget one."""
        self._life(request)
        del self.lives[request]
