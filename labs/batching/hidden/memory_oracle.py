"""Blocks as a list of owners: one item for every block of the memory."""

from __future__ import annotations

import math
from typing import Any


class MemoryOracle:
    """What `Memory` must do."""

    NAME = "Memory"

    def __init__(self, num_blocks: int, block_size: int, spare: int) -> None:
        self.num_blocks, self.block_size, self.spare = num_blocks, block_size, spare
        self.owners: list[str] = []
        self.first: dict[str, int] = {}  # when it got its first block
        self.length: dict[str, int] = {}
        self.clock = 0

    def num_free(self) -> int:
        """Blocks of nobody."""
        return self.num_blocks - len(self.owners)

    def fits(self, prompt: int, output: int) -> bool:
        """Whether all positions that are ever computed have blocks."""
        return math.ceil((prompt + output - 1) / self.block_size) <= self.num_blocks

    def free(self, request: str) -> None:
        """Nobody's again."""
        self.owners = [owner for owner in self.owners if owner != request]

    def place(self, entries: list[list[Any]]) -> list[str]:
        """Give blocks; say who gives way."""
        gone: list[str] = []
        for request, _, start, count in entries:
            if request not in gone:
                self._turn(request, start + count, gone)
        return gone

    def _turn(self, request: str, end: int, gone: list[str]) -> None:
        want = math.ceil(end / self.block_size)
        if request not in self.owners:
            free = self.num_free() - (self.spare if self.owners else 0)
            if gone or want > free:
                gone.append(request)
                return
            self.clock += 1
            self.first[request] = self.clock
        while want - self.owners.count(request) > self.num_free():
            order = sorted(set(self.owners), key=lambda r: (self.length[r], -self.first[r]))
            self.free(order[0])
            gone.append(order[0])
            if order[0] == request:
                return
        self.owners += [request] * (want - self.owners.count(request))
        self.length[request] = end
