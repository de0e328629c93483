"""`KVCacheManager`: which blocks hold a request's keys and values.

It keeps a block table per request and KV group, reuses the blocks of earlier requests
that begin alike, and knows no scheduling. See the chapter "The paged KV cache".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from quire.errors import QuireError
from quire.kv.block_hash import extend_chain
from quire.kv.block_pool import BlockPool
from quire.request import Request

BlockIds = tuple[tuple[int, ...], ...]  # per KV group
Copies = tuple[tuple[tuple[int, int], ...], ...]  # per KV group: (from, to)
NULL_BLOCK = 0  # in a table: nothing is kept of these positions (`WindowedKVCacheManager`)


@dataclass(frozen=True)
class Reservation:
    """What `reserve` changed in a request's block tables, per KV group; () is nothing.

    A copy (from, to) replaces block `from` in the table and must be carried out before
    anything of the step is written. Only the first reservation after `fork` has any.
    """

    new_block_ids: BlockIds = ()  # appended to the table
    copies: Copies = ()


NOTHING_NEW = Reservation()


class KVCacheManager(Protocol):
    """Swap point: decides which blocks a request's keys and values go to.

    The scheduler owns `request.num_computed_tokens`; the manager only reads it.
    """

    @property
    def block_size(self) -> int:
        """Positions in a block."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks that requests can hold, free or not."""
        ...

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds, in the fullest KV group."""
        ...

    def match_prefix(self, request: Request) -> int:
        """Let a request's table begin with cached blocks; return how many tokens they hold.

        At least one token is left: without a query there is nothing to sample from.
        """
        ...

    def reserve(self, request: Request, num_tokens: int) -> Reservation | None:
        """Make room for positions [num_computed_tokens, num_computed_tokens + num_tokens).

        Returns None, having changed nothing, when the cache is too full: the caller then
        waits or preempts.
        """
        ...

    def block_ids(self, request: Request) -> BlockIds:
        """Return a request's block tables."""
        ...

    def commit(self, request: Request) -> None:
        """Let later requests find the blocks whose tokens are all computed and known."""
        ...

    def rollback(self, request: Request, num_tokens: int) -> None:
        """Give back the blocks behind the first `num_tokens` positions."""
        ...

    def fork(self, parent: Request, child: Request, num_tokens: int) -> None:
        """Let `child` begin with the parent's first `num_tokens` positions, in its blocks."""
        ...

    def free(self, request: Request) -> None:
        """Give back all blocks of a request; one without any is left alone."""
        ...

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        ...


# docs: table begin
@dataclass
class _Table:
    """The blocks of one request: position p is in `blocks[group][p // block_size]`.

    Invariant: blocks [0, num_shared) can be found or are held by others, so the request no
    longer writes to them; the rest is its own. A fork's parent goes on writing behind the
    positions that its child shares, where the child does not read.
    """

    blocks: list[list[int]]  # per KV group, all of one length
    num_shared: int = 0
    # docs: table end


class PagedKVCacheManager:
    """Block tables over one pool a KV group; blocks are shared by their tokens' hash."""

    def __init__(
        self, pools: list[BlockPool], block_size: int, enable_prefix_caching: bool
    ) -> None:
        """`pools[group]` are the blocks of a KV group, all free; every group has as many."""
        self._pools = pools
        self._block_size = block_size
        self._enable_prefix_caching = enable_prefix_caching
        self._num_blocks = self.num_free_blocks
        self._tables: dict[str, _Table] = {}
        # A preempted request comes back, so its hashes stay until it has finished.
        self._chains: dict[str, list[bytes]] = {}
        self.num_queried_tokens = 0  # of all prefix look-ups so far, and
        self.num_hit_tokens = 0  # how many of them were found

    @property
    def block_size(self) -> int:
        """Positions in a block."""
        return self._block_size

    @property
    def num_blocks(self) -> int:
        """Blocks that requests can hold, free or not."""
        return self._num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds, in the fullest KV group."""
        return min(pool.num_free for pool in self._pools)

    @property
    def usage(self) -> float:
        """Share of the blocks that are held."""
        return 1 - self.num_free_blocks / self._num_blocks

    # docs: match-prefix begin
    def match_prefix(self, request: Request) -> int:
        """Hold the longest chain of cached blocks that the request's tokens begin with."""
        if not self._enable_prefix_caching:
            return 0
        blocks: list[list[int]] = [[] for _ in self._pools]
        for block_hash in self._chain(request, (request.num_tokens - 1) // self._block_size):
            found = [pool.lookup(block_hash) for pool in self._pools]
            cached = [block_id for block_id in found if block_id is not None]
            if len(cached) < len(self._pools):
                break
            for ids, block_id in zip(blocks, cached, strict=True):
                ids.append(block_id)
        for pool, ids in zip(self._pools, blocks, strict=True):
            pool.acquire(ids)
        num_hits = len(blocks[0])
        self._add_table(request, _Table(blocks, num_shared=num_hits))
        self.num_queried_tokens += request.num_tokens
        self.num_hit_tokens += num_hits * self._block_size
        return num_hits * self._block_size

    # docs: match-prefix end

    # docs: reserve begin
    def reserve(self, request: Request, num_tokens: int) -> Reservation | None:
        """Grow the table to the blocks needed, in every KV group or in none."""
        table = self._tables.get(request.request_id)
        if table is None:
            table = self._add_table(request, _Table([[] for _ in self._pools]))
        end = request.num_computed_tokens + num_tokens
        num_new = max(-(-end // self._block_size) - len(table.blocks[0]), 0)
        first = request.num_computed_tokens // self._block_size  # the first block written
        copy = first < table.num_shared
        if num_new == 0 and not copy:
            return NOTHING_NEW
        if any(pool.num_free < num_new + copy for pool in self._pools):
            return None
        new_ids = tuple(tuple(pool.allocate(num_new)) for pool in self._pools)
        for blocks, ids in zip(table.blocks, new_ids, strict=True):
            blocks.extend(ids)
        return Reservation(new_ids, self._copy_block(table, first) if copy else ())

    def _copy_block(self, table: _Table, index: int) -> Copies:
        """Replace a shared block by one of the request's own; return what to copy."""
        copies = []
        for pool, blocks in zip(self._pools, table.blocks, strict=True):
            source, (target,) = blocks[index], pool.allocate(1)
            blocks[index] = target
            pool.release([source])
            copies.append(((source, target),))
        table.num_shared = index
        return tuple(copies)

    # docs: reserve end

    def block_ids(self, request: Request) -> BlockIds:
        """Return a request's block tables."""
        return tuple(tuple(ids) for ids in self._tables[request.request_id].blocks)

    # docs: commit begin
    def commit(self, request: Request) -> None:
        """Publish the blocks that became full since the last call."""
        table = self._tables[request.request_id]
        if request.num_computed_tokens // self._block_size <= table.num_shared:
            return
        if not self._enable_prefix_caching:
            return
        # The device may already compute a sampled token that the host does not know yet.
        num_known = min(request.num_computed_tokens, request.num_tokens)
        num_full = num_known // self._block_size
        chain = self._chain(request, num_full)
        for index in range(table.num_shared, num_full):
            for pool, blocks in zip(self._pools, table.blocks, strict=True):
                pool.publish(blocks[index], chain[index])
        table.num_shared = max(table.num_shared, num_full)

    # docs: commit end

    def rollback(self, request: Request, num_tokens: int) -> None:
        """Give back the blocks behind the first `num_tokens` positions, the last one first."""
        table = self._tables[request.request_id]
        num_kept = -(-num_tokens // self._block_size)
        for pool, blocks in zip(self._pools, table.blocks, strict=True):
            pool.release(reversed(blocks[num_kept:]))
            del blocks[num_kept:]
        table.num_shared = min(table.num_shared, num_kept)

    def fork(self, parent: Request, child: Request, num_tokens: int) -> None:
        """Share blocks; the child's first `reserve` copies the last one if it is partial."""
        if num_tokens > parent.num_computed_tokens:
            raise QuireError(
                f"fork of {num_tokens} tokens of request {parent.request_id!r}, which has "
                f"{parent.num_computed_tokens} computed: fork once its step is queued"
            )
        num_blocks = -(-num_tokens // self._block_size)
        blocks = [ids[:num_blocks] for ids in self._tables[parent.request_id].blocks]
        for pool, ids in zip(self._pools, blocks, strict=True):
            pool.acquire(_held(ids))
        self._add_table(child, _Table(blocks, num_shared=num_blocks))

    def free(self, request: Request) -> None:
        """Release the table from its end: a prefix is worth most, so it is evicted last."""
        table = self._tables.pop(request.request_id, None)
        if table is not None:
            for pool, blocks in zip(self._pools, table.blocks, strict=True):
                pool.release(reversed(_held(blocks)))
        if request.finish_reason is not None:
            self._chains.pop(request.request_id, None)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        for group, pool in enumerate(self._pools):
            pool.check()
            held = {b for t in self._tables.values() for b in _held(t.blocks[group])}
            assert len(held) + pool.num_free == self._num_blocks, (group, sorted(held))
            own = [b for t in self._tables.values() for b in _held(t.blocks[group][t.num_shared :])]
            assert len(own) == len(set(own)), (group, sorted(own))
        for table in self._tables.values():
            assert len({len(blocks) for blocks in table.blocks}) == 1, table
            assert 0 <= table.num_shared <= len(table.blocks[0]), table

    def _add_table(self, request: Request, table: _Table) -> _Table:
        if request.request_id in self._tables:
            raise QuireError(
                f"request {request.request_id!r} has a block table: free it before it begins anew"
            )
        self._tables[request.request_id] = table
        return table

    def _chain(self, request: Request, num_blocks: int) -> list[bytes]:
        """Return the names of a request's first `num_blocks` blocks."""
        chain = self._chains.setdefault(request.request_id, [])
        extend_chain(chain, request, num_blocks, self._block_size)
        return chain[:num_blocks]


def _held(blocks: list[int]) -> list[int]:
    return [block for block in blocks if block != NULL_BLOCK]
