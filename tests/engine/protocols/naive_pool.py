"""`NaiveBlockPool`: the protocol in the plainest way, a list that is searched."""

from __future__ import annotations

from collections.abc import Iterable

from quire.errors import NoFreeBlocks, QuireError


class NaiveBlockPool:
    """`holders[b]` counts references; `free` lists the ids from the least recently freed."""

    def __init__(self, num_blocks: int) -> None:
        self.free = list(range(1, num_blocks))
        self.holders = dict.fromkeys(self.free, 0)
        self.names: list[tuple[bytes, int]] = []  # in order of publication

    @property
    def num_free(self) -> int:
        return len(self.free)

    def allocate(self, num_blocks: int) -> list[int]:
        if num_blocks > len(self.free):
            raise NoFreeBlocks(f"{num_blocks} blocks asked for and {len(self.free)} are free")
        taken = self.free[:num_blocks]
        self.names = [(name, block) for name, block in self.names if block not in taken]
        self.acquire(taken)
        return taken

    def acquire(self, block_ids: Iterable[int]) -> None:
        for block in block_ids:
            self.holders[block] += 1
        self.free = [block for block in self.free if self.holders[block] == 0]

    def release(self, block_ids: Iterable[int]) -> None:
        for block in block_ids:
            if self.holders.get(block, 0) == 0:
                raise QuireError(f"release of block {block}, which nobody holds")
            self.holders[block] -= 1
            if self.holders[block] == 0:
                self.free.append(block)

    def publish(self, block_id: int, block_hash: bytes) -> None:
        if self.holders.get(block_id, 0) == 0:
            raise QuireError(f"publish of block {block_id}, which nobody holds")
        if self.lookup(block_hash) is None:
            self.names.append((block_hash, block_id))

    def lookup(self, block_hash: bytes) -> int | None:
        return next((block for name, block in self.names if name == block_hash), None)

    def check(self) -> None:
        assert sorted(self.free) == [b for b, count in self.holders.items() if count == 0]
