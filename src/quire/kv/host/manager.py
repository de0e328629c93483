"""`OffloadingKVCacheManager`: a prefix match that goes on in host memory.

Preemption by swap is the same mechanism. A preempted request's full blocks are cached like
any others; they are saved when they are given out to someone else, and loaded when the
request comes back. Only its last, partial block is computed again.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import takewhile

from quire.kv.block_pool import BlockPool
from quire.kv.host.pool import OffloadingBlockPool
from quire.kv.host.tier import HostTier
from quire.kv.kv_cache_manager import PagedKVCacheManager
from quire.messages import Transfer
from quire.request import Request


class OffloadingKVCacheManager(PagedKVCacheManager):
    """Block tables over pools with a tier below each.

    `take_transfers` must be carried out in their order, before the step's own writes. The
    host's memory and the cache then hold what the manager believes at every point of the list.
    """

    def __init__(
        self,
        pools: list[BlockPool],
        block_size: int,
        enable_prefix_caching: bool,
        num_host_blocks: int,
    ) -> None:
        """`num_host_blocks` slots of host memory for each KV group."""
        self._transfers: list[Transfer] = []
        self._tiers = [HostTier(num_host_blocks) for _ in pools]
        tiered: list[BlockPool] = [
            OffloadingBlockPool(pool, tier, group, self._transfers)
            for group, (pool, tier) in enumerate(zip(pools, self._tiers, strict=True))
        ]
        super().__init__(tiered, block_size, enable_prefix_caching)
        self.num_saved_blocks = 0  # so far, over all groups
        self.num_loaded_tokens = 0  # of `num_hit_tokens`, those that host memory held

    # docs: load-prefix begin
    def match_prefix(self, request: Request) -> int:
        """Hold the cached blocks that the request begins with, then load those that follow."""
        num_hits = super().match_prefix(request)
        num_loaded = self._load(request, num_hits // self._block_size) * self._block_size
        self.num_loaded_tokens += num_loaded
        self.num_hit_tokens += num_loaded
        return num_hits + num_loaded

    def _load(self, request: Request, first: int) -> int:
        """Take free blocks for the saved ones that follow, and note their loads; return how many.

        The new blocks join the request's table; they get their names, like computed ones, once
        the step that loads them is done.
        """
        chain = self._chain(request, (request.num_tokens - 1) // self._block_size)[first:]
        saved = list(takewhile(self._is_saved, chain))
        num_needed = -(-request.num_tokens // self._block_size) - first
        if not saved or num_needed > self.num_free_blocks:  # it would not be let in
            return 0
        with ExitStack() as pins:
            for tier in self._tiers:
                pins.enter_context(tier.pinning(saved))
            ids = [pool.allocate(len(saved)) for pool in self._pools]
        blocks = self._tables[request.request_id].blocks
        for group, (tier, targets) in enumerate(zip(self._tiers, ids, strict=True)):
            blocks[group].extend(targets)
            for block_hash, target in zip(saved, targets, strict=True):
                slot = tier.lookup(block_hash)
                assert slot is not None, "pinned"
                self._transfers.append(Transfer(group, "load", slot, target))
        return len(saved)

    # docs: load-prefix end

    def _is_saved(self, block_hash: bytes) -> bool:
        return all(tier.lookup(block_hash) is not None for tier in self._tiers)

    def take_transfers(self) -> tuple[Transfer, ...]:
        """Return what was decided since the last call, in order, for the next step."""
        taken = tuple(self._transfers)
        self._transfers.clear()
        self.num_saved_blocks += sum(transfer.kind == "save" for transfer in taken)
        return taken

    def forget_host(self) -> None:
        """Take no saved block for granted: a step failed, perhaps before its saves."""
        for tier in self._tiers:
            tier.clear()
