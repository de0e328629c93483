"""The pool of the specification, written the slow way: every rule is a search over all blocks."""

from __future__ import annotations

from dataclasses import dataclass

from .driving import Refused


@dataclass
class Block:
    """What the pool knows of one block."""

    number: int
    references: int = 0
    name: bytes | None = None
    client: str = ""
    uses: int = 0
    freed: int = 0  # when, by the oracle's clock


class PoolOracle:
    """`BlockPool`, with `Refused` for its exceptions."""

    def __init__(self, num_blocks: int, quota: int) -> None:
        self.quota = quota
        self.clock = 0
        self.blocks = [Block(i) for i in range(1, num_blocks)]

    def num_free(self) -> int:
        """Blocks without a reference."""
        return len(self._free())

    def references(self, block: int) -> int:
        """References of a block."""
        return self.blocks[block - 1].references

    def name(self, block: int) -> bytes | None:
        """The name of a block."""
        return self.blocks[block - 1].name

    def lookup(self, name: bytes) -> int | None:
        """The block of a name."""
        return next((b.number for b in self.blocks if b.name == name), None)

    def allocate(self, count: int) -> list[int]:
        """Take free blocks in the order of the specification."""
        if count > self.num_free():
            raise Refused("NoFreeBlocks")
        taken = sorted(self._free(), key=self._turn)[:count]
        for block in taken:
            block.name, block.references = None, 1
        return [block.number for block in taken]

    def acquire(self, blocks: list[int]) -> None:
        """Add references."""
        chosen = self._chosen(blocks)
        if any(b.references == 0 and b.name is None for b in chosen):
            raise Refused("ValueError")
        for block in chosen:
            block.references += 1
            block.uses += block.name is not None

    def release(self, blocks: list[int]) -> None:
        """Drop references."""
        chosen = self._chosen(blocks)
        if any(b.references < blocks.count(b.number) for b in chosen):
            raise Refused("ValueError")
        for block in chosen:
            block.references -= 1
            if block.references == 0:
                self.clock += 1
                block.freed = self.clock
                kept = [b for b in self._free() if b.name is not None and b.client == block.client]
                if block.name is not None and len(kept) > self.quota:
                    min(kept, key=self._turn).name = None

    def publish(self, block: int, name: bytes, client: str) -> None:
        """Name a block."""
        (chosen,) = self._chosen([block])
        if chosen.references == 0:
            raise Refused("ValueError")
        if chosen.name is None and self.lookup(name) is None:
            chosen.name, chosen.client, chosen.uses = name, client, 0

    def _free(self) -> list[Block]:
        return [b for b in self.blocks if b.references == 0]

    def _chosen(self, blocks: list[int]) -> list[Block]:
        if not all(1 <= number <= len(self.blocks) for number in blocks):
            raise Refused("ValueError")
        return [self.blocks[number - 1] for number in blocks]

    @staticmethod
    def _turn(block: Block) -> tuple[int, int, int]:
        if block.name is None:
            return 0, 0, block.number
        return 1, block.uses, block.freed
