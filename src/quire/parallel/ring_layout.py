"""Which positions of a prompt each rank of a ring has, and which keys its queries see.

A causal query sees the keys at and before its position, so pieces of a prompt are not equal work.
Cut in order into one piece a rank, the last rank sees all keys and the first one few. A *zigzag*
gives each rank a piece from the front and its mirror image from the back: what the one lacks, the
other has, and in every hop of a ring every rank has the same work. See the page
"Stages, rings, machines".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class RingLayout(Protocol):
    """The rows of a prompt by rank. A rank's own rows are in ascending order."""

    @property
    def num_tokens(self) -> int:
        """Of the prompt."""
        ...

    @property
    def size(self) -> int:
        """Ranks."""
        ...

    def length(self, rank: int) -> int:
        """Return how many rows a rank has."""
        ...

    def rows(self, rank: int) -> Tensor:
        """Return a rank's positions in the prompt, int64 [length], ascending."""
        ...

    def seen(self, rank: int, source: int) -> tuple[slice, slice] | None:
        """Return which of a rank's queries see which keys of another rank, all of these.

        The slices are of the two ranks' rows. None: no query sees any.
        """
        ...


@dataclass(frozen=True)
class Zigzag:
    """Of 2 · size pieces in order, rank r has piece r and piece 2 · size - 1 - r.

    Pieces differ by one token at most, the longer ones first.
    """

    num_tokens: int
    size: int

    def length(self, rank: int) -> int:
        """Return the length of both pieces."""
        return self._piece(rank) + self._piece(2 * self.size - 1 - rank)

    def rows(self, rank: int) -> Tensor:
        """Return the rows of the first piece, and those of its mirror image behind them."""
        mirror = 2 * self.size - 1 - rank
        return torch.cat([_range(self._begin(p), self._piece(p)) for p in (rank, mirror)])

    # docs: seen begin
    def seen(self, rank: int, source: int) -> tuple[slice, slice]:
        """The rank with the smaller number has the earliest and the latest rows of the two."""
        if source < rank:
            return slice(None), slice(self._piece(source))  # all queries, the first piece's keys
        return slice(self._piece(rank), None), slice(None)  # the second piece's queries, all keys

    # docs: seen end

    def _begin(self, piece: int) -> int:
        base, longer = divmod(self.num_tokens, 2 * self.size)
        return piece * base + min(piece, longer)

    def _piece(self, piece: int) -> int:
        return self._begin(piece + 1) - self._begin(piece)


@dataclass(frozen=True)
class InOrder:
    """Each rank has one piece; they differ by one token at most, the longer ones first."""

    num_tokens: int
    size: int

    def length(self, rank: int) -> int:
        """Return the length of the piece."""
        return len(self.rows(rank))

    def rows(self, rank: int) -> Tensor:
        """Return the rows of the piece."""
        base, longer = divmod(self.num_tokens, self.size)
        return _range(rank * base + min(rank, longer), base + (rank < longer))

    def seen(self, rank: int, source: int) -> tuple[slice, slice] | None:
        """Whole pieces, or nothing."""
        return (slice(None), slice(None)) if source < rank else None


def zigzag(num_tokens: int, rank: int, size: int) -> Tensor:
    """Return the positions that a rank of a zigzag has, int64 [its length], ascending."""
    return Zigzag(num_tokens, size).rows(rank)


def _range(begin: int, length: int) -> Tensor:
    return torch.arange(begin, begin + length)
