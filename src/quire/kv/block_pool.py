"""`BlockPool`: which blocks of the KV cache are held, cached or free.

It knows ids, reference counts and hashes; no requests, no tokens, no tensors. See the
chapter "The paged KV cache".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from quire.errors import NoFreeBlocks, QuireError


class BlockPool(Protocol):
    """Swap point: gives out block ids and finds cached blocks again.

    A block is free when nobody holds a reference to it. A free block that was published
    keeps its content until `allocate` gives it out again; until then `lookup` finds it.
    """

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` could give out now."""
        ...

    def allocate(self, num_blocks: int) -> list[int]:
        """Take the least recently freed blocks, one reference each; their hashes go.

        Raises:
            NoFreeBlocks: there are fewer; none was taken.
        """
        ...

    def acquire(self, block_ids: Iterable[int]) -> None:
        """Add a reference to each block, free or held."""
        ...

    def release(self, block_ids: Iterable[int]) -> None:
        """Drop a reference of each held block; those without any are free, in this order."""
        ...

    def publish(self, block_id: int, block_hash: bytes) -> None:
        """Let `lookup` find a held block whose every position is computed.

        Of two blocks with one hash the first stays the one that is found.
        """
        ...

    def lookup(self, block_hash: bytes) -> int | None:
        """Return the block published under a hash, held or free."""
        ...

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        ...


class LRUBlockPool:
    """Every operation takes constant time per block.

    The free blocks form a ring from the least to the most recently freed, linked through
    two lists indexed by block id. Block 0, the null block, is never given out and so can be
    the ring's head: `_next[0]` is the next block to be given out, `_previous[0]` the last
    one freed. A block in the middle leaves the ring, on a cache hit, without a search.

    Invariants: a block of [1, num_blocks) is in the ring if and only if its reference count
    is 0; `_published` and `_hashes` are inverse to each other.
    """

    def __init__(self, num_blocks: int) -> None:
        """Manage the ids [1, num_blocks); `num_blocks` counts the null block as well."""
        if num_blocks < 2:
            raise QuireError(
                f"num_blocks={num_blocks}: a pool needs at least 2, the null block and one to use"
            )
        self._num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._next = [*range(1, num_blocks), 0]
        self._previous = [num_blocks - 1, *range(num_blocks - 1)]
        self._num_free = num_blocks - 1
        self._published: dict[bytes, int] = {}  # block by hash
        self._hashes: dict[int, bytes] = {}  # hash by block

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones among them."""
        return self._num_free

    # docs: allocate begin
    def allocate(self, num_blocks: int) -> list[int]:
        """Take blocks from the ring's front and forget what they cached."""
        if num_blocks > self._num_free:
            raise NoFreeBlocks(
                f"{num_blocks} blocks asked for and {self._num_free} of {self._num_blocks - 1} "
                "are free: free a request's blocks first, or give the cache more"
            )
        block_ids = []
        for _ in range(num_blocks):
            block_id = self._next[0]
            self._unlink(block_id)
            self._references[block_id] = 1
            block_hash = self._hashes.pop(block_id, None)
            if block_hash is not None:
                del self._published[block_hash]
            block_ids.append(block_id)
        return block_ids

    def acquire(self, block_ids: Iterable[int]) -> None:
        """Add a reference; a free block leaves the ring."""
        for block_id in block_ids:
            if self._references[block_id] == 0:
                self._unlink(block_id)
            self._references[block_id] += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """Drop a reference; a block without any goes to the ring's back, hash and all."""
        for block_id in block_ids:
            self._require_held(block_id, "release")
            self._references[block_id] -= 1
            if self._references[block_id] == 0:
                self._link_last(block_id)

    # docs: allocate end

    def publish(self, block_id: int, block_hash: bytes) -> None:
        """Name a block's content, unless a block of the same content has the name."""
        self._require_held(block_id, "publish")
        if block_hash not in self._published and block_id not in self._hashes:
            self._published[block_hash] = block_id
            self._hashes[block_id] = block_hash

    def lookup(self, block_hash: bytes) -> int | None:
        """Return the block published under a hash."""
        return self._published.get(block_hash)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        ring = self._ring()
        assert len(ring) == len(set(ring)) == self._num_free, ring
        unused = [i for i in range(1, self._num_blocks) if self._references[i] == 0]
        assert sorted(ring) == unused, (ring, unused)
        assert min(self._references) >= 0, self._references
        assert self._references[0] == 0, "the null block was given out"
        assert {block: name for name, block in self._published.items()} == self._hashes

    def _ring(self) -> list[int]:
        """Return the free blocks from the least to the most recently freed."""
        ring: list[int] = []
        block_id = self._next[0]
        while block_id != 0 and len(ring) < self._num_blocks:
            assert self._previous[self._next[block_id]] == block_id, block_id
            ring.append(block_id)
            block_id = self._next[block_id]
        return ring

    def _unlink(self, block_id: int) -> None:
        before, after = self._previous[block_id], self._next[block_id]
        self._next[before], self._previous[after] = after, before
        self._num_free -= 1

    def _link_last(self, block_id: int) -> None:
        last = self._previous[0]
        self._next[last], self._previous[block_id] = block_id, last
        self._next[block_id], self._previous[0] = 0, block_id
        self._num_free += 1

    def _require_held(self, block_id: int, operation: str) -> None:
        if not 0 < block_id < self._num_blocks or self._references[block_id] == 0:
            raise QuireError(
                f"{operation} of block {block_id}, which nobody holds: ids are in "
                f"[1, {self._num_blocks}), and a block is released once per reference"
            )
