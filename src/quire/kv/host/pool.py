"""`OffloadingBlockPool`: any block pool, with a tier below it that evicted blocks go to."""

from __future__ import annotations

from collections.abc import Iterable

from quire.kv.block_pool import BlockPool
from quire.kv.host.tier import HostTier
from quire.messages import Transfer


class OffloadingBlockPool:
    """A cached block that `allocate` gives out again is saved first.

    Saving at eviction, not when a block becomes full, moves only what did not survive in the
    cache; that it waits until the room is needed is paid for by the request that needs it.
    """

    def __init__(
        self, pool: BlockPool, tier: HostTier, group: int, transfers: list[Transfer]
    ) -> None:
        """`transfers` is where this pool's saves are appended; the order is the order of time."""
        self._pool, self._tier = pool, tier
        self._group, self._transfers = group, transfers
        self._hashes: dict[int, bytes] = {}  # of the blocks that `lookup` finds

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones among them."""
        return self._pool.num_free

    # docs: save-evicted begin
    def allocate(self, num_blocks: int) -> list[int]:
        """Take blocks; those that were cached are saved before anything is written to them."""
        block_ids = self._pool.allocate(num_blocks)
        for block_id in block_ids:
            block_hash = self._hashes.pop(block_id, None)
            slot = None if block_hash is None else self._tier.store(block_hash)
            if slot is not None:
                self._transfers.append(Transfer(self._group, "save", block_id, slot))
        return block_ids

    # docs: save-evicted end

    def publish(self, block_id: int, block_hash: bytes) -> None:
        """Publish, and remember the name if it is this block's."""
        self._pool.publish(block_id, block_hash)
        if self._pool.lookup(block_hash) == block_id:
            self._hashes[block_id] = block_hash

    def acquire(self, block_ids: Iterable[int]) -> None:
        """Add a reference to each block."""
        self._pool.acquire(block_ids)

    def release(self, block_ids: Iterable[int]) -> None:
        """Drop a reference of each block."""
        self._pool.release(block_ids)

    def lookup(self, block_hash: bytes) -> int | None:
        """Return the block published under a hash."""
        return self._pool.lookup(block_hash)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        self._pool.check()
        self._tier.check()
        assert all(self._pool.lookup(name) == block for block, name in self._hashes.items())
