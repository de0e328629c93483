"""`NaiveKVCacheManager`: the protocol in the plainest way.

A block's name is the whole text before its end; what may be written to is found by
counting holders; and which blocks are published already is not remembered.
"""

from __future__ import annotations

from quire.kv.block_pool import BlockPool
from quire.kv.kv_cache_manager import BlockIds, Reservation
from quire.request import Request


class NaiveKVCacheManager:
    """`tables[request_id][group]` are a request's blocks."""

    def __init__(self, pools: list[BlockPool], block_size: int, enable_prefix_caching: bool):
        self.pools = pools
        self.block_size = block_size
        self.caching = enable_prefix_caching
        self.tables: dict[str, list[list[int]]] = {}
        self.borrowed: set[str] = set()  # forked, and their last block not yet copied
        self.num_blocks = self.num_free_blocks

    @property
    def num_free_blocks(self) -> int:
        return min(pool.num_free for pool in self.pools)

    def name(self, request: Request, num_blocks: int) -> bytes:
        tokens = request.prompt_token_ids + request.output_token_ids
        return repr((request.extra_keys, tokens[: num_blocks * self.block_size])).encode()

    def match_prefix(self, request: Request) -> int:
        tables: list[list[int]] = [[] for _ in self.pools]
        self.tables[request.request_id] = tables
        while self.caching and (len(tables[0]) + 1) * self.block_size < request.num_tokens:
            name = self.name(request, len(tables[0]) + 1)
            found = [pool.lookup(name) for pool in self.pools]
            if None in found:
                break
            for pool, table, block in zip(self.pools, tables, found, strict=True):
                assert block is not None
                pool.acquire([block])
                table.append(block)
        return len(tables[0]) * self.block_size

    def reserve(self, request: Request, num_tokens: int) -> Reservation | None:
        tables = self.tables.setdefault(request.request_id, [[] for _ in self.pools])
        start = request.num_computed_tokens
        num_new = max(-(-(start + num_tokens) // self.block_size) - len(tables[0]), 0)
        copy = request.request_id in self.borrowed and start % self.block_size > 0
        if self.num_free_blocks < num_new + copy:
            return None
        copies = []
        for pool, table in zip(self.pools, tables, strict=True):
            if copy:
                (target,) = pool.allocate(1)
                copies.append(((table[-1], target),))
                pool.release([table[-1]])
                table[-1] = target
        self.borrowed.discard(request.request_id)
        new_ids = [pool.allocate(num_new) for pool in self.pools]
        for table, ids in zip(tables, new_ids, strict=True):
            table += ids
        return Reservation(tuple(map(tuple, new_ids)), tuple(copies))

    def block_ids(self, request: Request) -> BlockIds:
        return tuple(tuple(table) for table in self.tables[request.request_id])

    def commit(self, request: Request) -> None:
        known = min(request.num_computed_tokens, request.num_tokens)
        for index in range(known // self.block_size if self.caching else 0):
            name = self.name(request, index + 1)
            for pool, table in zip(self.pools, self.tables[request.request_id], strict=True):
                pool.publish(table[index], name)

    def rollback(self, request: Request, num_tokens: int) -> None:
        num_kept = -(-num_tokens // self.block_size)
        for pool, table in zip(self.pools, self.tables[request.request_id], strict=True):
            while len(table) > num_kept:
                pool.release([table.pop()])

    def fork(self, parent: Request, child: Request, num_tokens: int) -> None:
        num_blocks = -(-num_tokens // self.block_size)
        tables = [table[:num_blocks] for table in self.tables[parent.request_id]]
        for pool, table in zip(self.pools, tables, strict=True):
            pool.acquire(table)
        self.tables[child.request_id] = tables
        self.borrowed.add(child.request_id)

    def free(self, request: Request) -> None:
        if request.request_id in self.tables:
            self.rollback(request, 0)
            del self.tables[request.request_id]
        self.borrowed.discard(request.request_id)

    def check(self) -> None:
        for group, pool in enumerate(self.pools):
            pool.check()
            held = {block for tables in self.tables.values() for block in tables[group]}
            assert len(held) + pool.num_free == self.num_blocks
