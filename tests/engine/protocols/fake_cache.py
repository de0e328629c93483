"""`FakeCache`: blocks that hold, instead of keys and values, what those would depend on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Content = tuple[Any, ...]  # a position's: extra keys and every token up to it


class FakeCache:
    """`memory[group][block, offset]` is what was written there last."""

    def __init__(self, num_groups: int, block_size: int) -> None:
        self.memory: list[dict[tuple[int, int], Any]] = [{} for _ in range(num_groups)]
        self.block_size = block_size

    def copy(self, copies: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Carry out copies (from, to) per group, all at once."""
        for memory, pairs in zip(self.memory, copies, strict=False):
            old = dict(memory) if pairs else {}
            for source, target in pairs:
                for offset in range(self.block_size):
                    memory[target, offset] = old.get((source, offset))

    def write(self, tables: Sequence[Sequence[int]], position: int, content: Any) -> None:
        """Write one position of a request with these block tables, in every group."""
        block, offset = divmod(position, self.block_size)
        assert len(tables) == len(self.memory), "one table a KV group"
        for memory, table in zip(self.memory, tables, strict=True):
            assert block < len(table), f"position {position} has no block in {table}"
            assert table[block] != 0, "the null block is in a table"
            memory[table[block], offset] = content

    def read(self, tables: Sequence[Sequence[int]], position: int) -> Any:
        """Return what a position holds, the same in every group."""
        block, offset = divmod(position, self.block_size)
        found = [
            memory.get((table[block], offset))
            for memory, table in zip(self.memory, tables, strict=True)
        ]
        assert all(content == found[0] for content in found), f"groups differ: {found}"
        return found[0]
