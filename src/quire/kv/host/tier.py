"""`HostTier`: which cached blocks lie in host memory, and in which of its slots.

Like the block pool it knows names and numbers only. See the chapter "The paged KV cache".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from quire.errors import QuireError


class HostTier:
    """Slots [0, num_blocks) of host memory, given out to block hashes, least recently used first.

    Invariant: a slot is free or belongs to one hash, never both.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise QuireError(f"num_host_blocks={num_blocks}: a tier needs at least 1")
        self._num_blocks = num_blocks
        self._slots: OrderedDict[bytes, int] = OrderedDict()  # the one used last at the end
        self._free = list(range(num_blocks - 1, -1, -1))
        self._pinned: frozenset[bytes] = frozenset()

    def lookup(self, block_hash: bytes) -> int | None:
        """Return the slot of a block, and count that as its last use."""
        slot = self._slots.get(block_hash)
        if slot is not None:
            self._slots.move_to_end(block_hash)
        return slot

    def store(self, block_hash: bytes) -> int | None:
        """Return the slot to save a block to; None: it is there already, or no slot may go."""
        if self.lookup(block_hash) is not None:
            return None
        if self._free:
            slot = self._free.pop()
        else:
            oldest = next(iter(self._slots))
            if oldest in self._pinned:  # looked up just now, like all behind it
                return None
            slot = self._slots.pop(oldest)
        self._slots[block_hash] = slot
        return slot

    @contextmanager
    def pinning(self, block_hashes: Sequence[bytes]) -> Iterator[None]:
        """Keep blocks just looked up: what is about to be loaded must not be written over."""
        self._pinned = frozenset(block_hashes)
        try:
            yield
        finally:
            self._pinned = frozenset()

    def clear(self) -> None:
        """Forget every block."""
        self._slots.clear()
        self._free = list(range(self._num_blocks - 1, -1, -1))

    def check(self) -> None:
        """Raise AssertionError if the invariant is broken."""
        used = [*self._free, *self._slots.values()]
        assert sorted(used) == list(range(self._num_blocks)), (self._free, self._slots)
