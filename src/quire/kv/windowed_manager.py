"""`WindowedKVCacheManager`: blocks that no later query sees are given back while a request runs.

A query at position p sees the window (p - window, p] and the sinks [0, sinks). A window alone
ruins a model that was trained without one: much of its attention rests on the first few
positions, which a softmax that must add up to 1 uses as a place to put what it has no use
for, and which sinks keep (StreamingLLM, Xiao et al. 2024). Positions are those of the text:
the paper counts them within the cache instead, to go on beyond a model's longest sequence.
See the chapter "The paged KV cache".
"""

from __future__ import annotations

from quire.kv.block_pool import BlockPool
from quire.kv.kv_cache_manager import NULL_BLOCK, PagedKVCacheManager
from quire.request import Request


class WindowedKVCacheManager(PagedKVCacheManager):
    """A table keeps its length: column b stays the block of positions [b · size, (b + 1) · size).

    Invariant, for the n positions computed of a request: in group g a block is the null block
    only if all its positions lie in [sinks, n + 1 - windows[g]).
    """

    def __init__(
        self,
        pools: list[BlockPool],
        block_size: int,
        enable_prefix_caching: bool,
        windows: list[int | None],
        sinks: int,
    ) -> None:
        """`windows[group]` positions are seen by a KV group; None: all of them."""
        super().__init__(pools, block_size, enable_prefix_caching)
        self._windows = windows
        self._first_block = -(-sinks // block_size)  # the first one without a sink
        self._num_released: dict[str, list[int]] = {}  # columns passed, per group
        self.num_released_blocks = 0  # so far, of running requests

    # docs: release-unseen begin
    def commit(self, request: Request) -> None:
        """Publish full blocks, then release those that the next query does not see."""
        super().commit(request)
        table = self._tables[request.request_id].blocks
        passed = self._num_released.setdefault(
            request.request_id, [self._first_block] * len(self._pools)
        )
        # With a step in flight, more are computed than are known; the known ones go first.
        num_known = min(request.num_computed_tokens, request.num_tokens)
        for group, (pool, blocks, window) in enumerate(
            zip(self._pools, table, self._windows, strict=True)
        ):
            if window is None:
                continue
            end = max(0, num_known + 1 - window) // self._block_size
            unseen = slice(passed[group], end)
            released = [block for block in blocks[unseen] if block != NULL_BLOCK]
            pool.release(released)
            blocks[unseen] = [NULL_BLOCK] * len(blocks[unseen])
            passed[group] = max(end, passed[group])
            self.num_released_blocks += len(released)

    # docs: release-unseen end

    def free(self, request: Request) -> None:
        """Release what the request still holds."""
        self._num_released.pop(request.request_id, None)
        super().free(request)
