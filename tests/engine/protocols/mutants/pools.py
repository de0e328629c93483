"""Wrong block pools."""

from __future__ import annotations

from collections.abc import Iterable

from quire.errors import NoFreeBlocks
from quire.kv.block_pool import LRUBlockPool


class GivesOutTheNullBlock(LRUBlockPool):
    """Padded rows then write into somebody's cache."""

    def allocate(self, num_blocks: int) -> list[int]:
        return [block - 1 for block in super().allocate(num_blocks)]


class MostRecentlyFreedFirst(LRUBlockPool):
    """The order is reversed: what was cached last is evicted first."""

    def _link_last(self, block_id: int) -> None:
        first = self._next[0]
        self._previous[first], self._next[block_id] = block_id, first
        self._previous[block_id], self._next[0] = 0, block_id
        self._num_free += 1


class ReleasesHeadFirst(LRUBlockPool):
    """The blocks of one call are freed in the opposite order."""

    def release(self, block_ids: Iterable[int]) -> None:
        super().release(reversed(list(block_ids)))


class FreesTwice(LRUBlockPool):
    """A free block is freed again without complaint, and is then given out twice."""

    def release(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            self._references[block_id] = max(self._references[block_id] - 1, 0)
            if self._references[block_id] == 0:
                self._link_last(block_id)


class FreesAtTheFirstRelease(LRUBlockPool):
    """References are not counted: one holder's release frees the block of the others."""

    def release(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            self._require_held(block_id, "release")
            self._references[block_id] = 0
            self._link_last(block_id)


class TakesSomeBeforeItFails(LRUBlockPool):
    """Not all or nothing: the blocks taken before the shortage are lost."""

    def allocate(self, num_blocks: int) -> list[int]:
        taken: list[int] = []
        for _ in range(num_blocks):
            if self._num_free == 0:
                raise NoFreeBlocks(f"{num_blocks} blocks asked for and {len(taken)} are free")
            taken += super().allocate(1)
        return taken


class KeepsTheNameOfAReusedBlock(LRUBlockPool):
    """A hash outlives its content: the next request's tokens are found under it."""

    def allocate(self, num_blocks: int) -> list[int]:
        names = dict(self._published)
        block_ids = super().allocate(num_blocks)
        self._published = names
        self._hashes = {block: name for name, block in names.items()}
        return block_ids


class ForgetsAtRelease(LRUBlockPool):
    """A block's name goes with its last holder, so nothing is ever found again."""

    def release(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            super().release([block_id])
            if self._references[block_id] == 0 and block_id in self._hashes:
                del self._published[self._hashes.pop(block_id)]


class AcquiredStaysFree(LRUBlockPool):
    """A cache hit adds a reference but leaves the block where `allocate` finds it."""

    def acquire(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            self._references[block_id] += 1


class LatestOfTwoAlike(LRUBlockPool):
    """Publishing a second block of one content hides the first, which keeps the name too."""

    def publish(self, block_id: int, block_hash: bytes) -> None:
        self._require_held(block_id, "publish")
        self._published[block_hash] = block_id
        self._hashes[block_id] = block_hash


class SecondTakesTheNameAway(LRUBlockPool):
    """The eviction of a duplicate removes the name of the block that is found."""

    def publish(self, block_id: int, block_hash: bytes) -> None:
        self._require_held(block_id, "publish")
        self._published.setdefault(block_hash, block_id)
        self._hashes[block_id] = block_hash

    def check(self) -> None:
        """The inverse does not hold here; only behaviour can tell."""


class PublishesFreeBlocks(LRUBlockPool):
    """Anybody may name a block that nobody holds."""

    def publish(self, block_id: int, block_hash: bytes) -> None:
        self._published.setdefault(block_hash, block_id)
        self._hashes[block_id] = block_hash


class CountsOneTooMany(LRUBlockPool):
    """The null block is counted as free."""

    @property
    def num_free(self) -> int:
        return super().num_free + 1
