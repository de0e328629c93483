"""`Cache` of the specification: a block's name is all that its keys and values depend on."""

from __future__ import annotations

from typing import Any

from .driving import Refused
from .pool_oracle import PoolOracle
from .test_names import depends_on


class CacheOracle:
    """`Cache` over the slow pool."""

    def __init__(self, num_blocks: int, block_size: int, quota: int) -> None:
        self.pool = PoolOracle(num_blocks, quota)
        self.block_size = block_size
        self.tables: dict[str, list[int]] = {}
        self.contexts: dict[str, tuple[Any, ...]] = {}

    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return self.pool.num_free()

    def table(self, request: str) -> list[int]:
        """Blocks of a request."""
        return self.tables[request]

    def match_prefix(
        self, request: str, tokens: list[int], salt: str, images: list[list[Any]], client: str
    ) -> int:
        """Find the longest chain that may be used."""
        names = depends_on(tokens, self.block_size, salt, images)
        found = [self.pool.lookup(name) for name in names]
        table: list[int] = []
        for count in range(len(found) + 1):
            end = count * self.block_size
            cuts = any(start < end < stop for start, stop, _ in images)
            if None in found[:count] or end >= len(tokens):
                break
            if not cuts:
                table = [block for block in found[:count] if block is not None]
        self.pool.acquire(table)
        self.tables[request], self.contexts[request] = table, (salt, images, client)
        return len(table) * self.block_size

    def reserve(self, request: str, start: int, count: int) -> list[int] | None:
        """Make room or return None."""
        table = self.tables[request]
        places = {p // self.block_size for p in range(start, start + count)}
        needed = len(places - set(range(len(table))))
        try:
            new = self.pool.allocate(needed)
        except Refused:
            return None
        table.extend(new)
        return new

    def commit(self, request: str, tokens: list[int], num_computed: int) -> None:
        """Publish what is computed and known."""
        salt, images, client = self.contexts[request]
        names = depends_on(tokens, self.block_size, salt, images)
        for i, name in enumerate(names):
            if (i + 1) * self.block_size <= num_computed:
                self.pool.publish(self.tables[request][i], name, client)

    def free(self, request: str) -> None:
        """Release from the end."""
        for block in reversed(self.tables.pop(request, [])):
            self.pool.release([block])
