"""What two ideas of the chapter "Triton kernels" compute: the order of tiles, the running softmax.

A tiled product reads, for each tile of its output, a stripe of rows of the left matrix and a
stripe of columns of the right one. Which stripes a last-level cache still holds depends on the
order of the tiles alone: `fetches` plays it through. `OnlineSoftmax` is the softmax of numbers
that arrive in blocks, with the values they weigh. The explorables "Tiles and the L2 cache" and
"Softmax in blocks" evaluate both in the browser.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quire.errors import QuireError
from quire.sampling.values import is_number, plain


# docs: tile-order begin
def tile_of(program: int, down: int, across: int, group: int) -> tuple[int, int]:
    """Return row and column of a program's tile: `group` rows of tiles, column by column.

    With a group of 1 that is row by row, with a group of `down` column by column.

    Args:
        program: its number, from 0.
        down, across: tiles of the output from top to bottom and from left to right.
        group: rows of tiles that are computed together.

    Raises:
        QuireError: a number is below 1 or no integer, or there is no such program.
    """
    for name, value in (("down", down), ("across", across), ("group", group)):
        _require_count(name, value)
    if not isinstance(program, int) or not 0 <= program < down * across:
        raise QuireError(f"program={program!r}: {down} × {across} tiles have 0 to "
                         f"{down * across - 1}")  # fmt: skip
    first = program // (group * across) * group
    height = min(down - first, group)
    inside = program % (group * across)
    return first + inside % height, inside // height


# docs: tile-order end


@dataclass(frozen=True)
class Fetch:
    """What one program's tile took from memory; what it did not was in the cache."""

    row: int
    column: int
    rows_fetched: bool  # the stripe of the left matrix
    columns_fetched: bool  # the stripe of the right one
    cached: tuple[tuple[str, int], ...]  # ("row" or "column", its number), the oldest use first

    @property
    def count(self) -> int:
        """Stripes that came from memory: 0, 1 or 2."""
        return self.rows_fetched + self.columns_fetched


# docs: fetches begin
def fetches(down: int, across: int, group: int, capacity: int) -> list[Fetch]:
    """Play the programs of a product through a cache that forgets what was used longest ago.

    The model: programs one after another; a stripe is read whole, and the cache holds `capacity`
    of them. Left out: many programs run at once and walk along their stripes together, so that
    what is shared at one time is read once even without room for it; the output also passes
    through the cache; and a real cache does not forget strictly by age.

    Args:
        down, across, group: see `tile_of`.
        capacity: stripes that the cache holds, at least 2: a tile needs both of its own.

    Raises:
        QuireError: a number is out of its range.
    """
    _require_count("capacity", capacity)
    if capacity < 2:
        raise QuireError(f"capacity={capacity}: a tile needs two stripes at once")
    cache: OrderedDict[tuple[str, int], None] = OrderedDict()
    played = []
    for program in range(down * across):
        row, column = tile_of(program, down, across, group)
        missed = []
        for stripe in (("row", row), ("column", column)):
            missed.append(stripe not in cache)
            cache[stripe] = None
            cache.move_to_end(stripe)
            if len(cache) > capacity:
                cache.popitem(last=False)
        played.append(Fetch(row, column, missed[0], missed[1], tuple(cache)))
    return played


# docs: fetches end


def fetched_stripes(down: int, across: int, group: int, capacity: int) -> int:
    """Return how many stripes a product takes from memory; see `fetches`."""
    return sum(fetch.count for fetch in fetches(down, across, group, capacity))


# docs: online-softmax begin
@dataclass(frozen=True)
class OnlineSoftmax:
    """The softmax of the scores so far and the values that it mixes, relative to the maximum.

    total = Σ exp(score − maximum) and mixed = Σ exp(score − maximum) · value; so the mixture is
    mixed / total, whatever the maximum is [dao2022flash].
    """

    maximum: float = -math.inf
    total: float = 0.0
    mixed: tuple[float, ...] = ()  # empty before the first block

    def add(self, scores: Sequence[float], values: Sequence[Sequence[float]]) -> OnlineSoftmax:
        """Return the state after one more block.

        Args:
            scores: of the block's keys; −inf: a key that is not seen.
            values: for each key its value, all of one length.

        Raises:
            QuireError: no key, other numbers of scores and values, a NaN or +inf.
        """
        _require_block(scores, values, self.mixed)
        factor = self.factor(scores)
        base = self.base(scores)
        weights = [math.exp(score - base) for score in scores]
        old = self.mixed or (0.0,) * len(values[0])
        mixed = tuple(
            factor * before + sum(w * value[i] for w, value in zip(weights, values, strict=True))
            for i, before in enumerate(old)
        )
        highest = max(self.maximum, *scores)
        return OnlineSoftmax(highest, factor * self.total + sum(weights), mixed)

    def base(self, scores: Sequence[float]) -> float:
        """Return what is subtracted from a block's scores: the maximum, or 0 if there is none.

        Before any key is seen the maximum is −inf, and −inf − (−inf) is no number.
        """
        highest = max(self.maximum, *scores)
        return 0.0 if highest == -math.inf else highest

    def factor(self, scores: Sequence[float]) -> float:
        """Return by what `total` and `mixed` shrink when a block arrives: exp(old − new maximum).

        It is 1 where the block holds no larger score, and 0 where nothing was seen before.
        """
        return math.exp(self.maximum - self.base(scores))

    def output(self) -> tuple[float, ...]:
        """Return the mixture of values, weights adding up to 1; zeros if no key was seen."""
        return tuple(each / (self.total or 1.0) for each in self.mixed)


# docs: online-softmax end


def online_softmax(
    scores: Sequence[float], values: Sequence[Sequence[float]], block: int
) -> list[OnlineSoftmax]:
    """Return the states after each block of `block` keys; the last block may be shorter.

    Raises:
        QuireError: see `OnlineSoftmax.add`; a block of less than one key.
    """
    _require_count("block", block)
    if not scores:
        raise QuireError("scores is empty: a softmax needs one score at least")
    states = [OnlineSoftmax()]
    for start in range(0, len(scores), block):
        stop = start + block
        states.append(states[-1].add(scores[start:stop], values[start:stop]))
    return states[1:]


def _require_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise QuireError(f"{name}={value!r}: must be an integer of at least 1")


def _require_block(
    scores: Sequence[float], values: Sequence[Sequence[float]], mixed: Iterable[float]
) -> None:
    if not scores or len(scores) != len(values):
        raise QuireError(f"{len(scores)} scores and {len(values)} values: a block has one value "
                         "for each score, and at least one")  # fmt: skip
    widths = {len(value) for value in values} | ({len(tuple(mixed))} if mixed else set())
    if len(widths) != 1:
        raise QuireError(f"values of {sorted(widths)} numbers: all need the same length")
    for score in scores:
        if not is_number(plain(score)) or math.isnan(plain(score)) or plain(score) == math.inf:
            raise QuireError(f"score={score!r}: must be a number, or −inf for a key not seen")
