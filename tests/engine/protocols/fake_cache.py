"""`FakeCache`: blocks that hold, instead of keys and values, what those would depend on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

Tables = Sequence[Sequence[int]]  # a request's blocks, per KV group


class FakeCache:
    """`memory[group][block][offset]` is what was written there last."""

    def __init__(self, num_groups: int, block_size: int) -> None:
        self.memory: list[dict[int, list[Any]]] = [
            defaultdict(lambda: [None] * block_size) for _ in range(num_groups)
        ]
        self.block_size = block_size

    def copy(self, copies: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Carry out copies (from, to) per group, all at once."""
        for memory, pairs in zip(self.memory, copies, strict=False):
            contents = [list(memory[source]) for source, _ in pairs]
            for (_, target), content in zip(pairs, contents, strict=True):
                memory[target] = content

    def write(self, tables: Tables, position: int, content: Any) -> None:
        """Write one position of a request, in every group."""
        block, offset = divmod(position, self.block_size)
        for memory, table in zip(self.memory, tables, strict=True):
            assert block < len(table), f"position {position} has no block in {table}"
            assert table[block] != 0, "the null block is in a table"
            memory[table[block]][offset] = content

    def read(self, tables: Tables, length: int) -> list[Any]:
        """Return what the first positions of a request hold, the same in every group."""
        found: list[list[Any]] = []
        for memory, table in zip(self.memory, tables, strict=True):
            contents = [content for block in table for content in memory[block]]
            assert len(contents) >= length, f"{length} positions in {table}"
            found.append(contents[:length])
        assert all(contents == found[0] for contents in found), "the KV groups differ"
        return found[0]
