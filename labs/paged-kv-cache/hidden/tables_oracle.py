"""`BlockTables` of the specification without a pool: holders are counted in the tables."""

from __future__ import annotations

from typing import Any

from .driving import Refused


class TablesOracle:
    """All variants; `special` is the window, the host blocks, or nothing."""

    def __init__(self, variant: str, num_blocks: int, block_size: int, special: int) -> None:
        self.variant, self.block_size, self.special = variant, block_size, special
        self.all_blocks = range(1, num_blocks)
        self.tables: dict[str, list[int]] = {}
        self.lengths: dict[str, int] = {}
        self.names: dict[int, bytes] = {}
        self.hosted: dict[str, dict[int, int]] = {}  # host block by place, of requests swapped out

    def num_free(self) -> int:
        """Blocks in no table."""
        return len(self._free())

    def table(self, request: str) -> list[int]:
        """Blocks of a request."""
        return self.tables[request]

    def start(self, request: str) -> None:
        """Begin a request."""
        self.tables[request], self.lengths[request] = [], 0

    def free(self, request: str) -> None:
        """End a request."""
        del self.tables[request], self.lengths[request]
        self.hosted.pop(request, None)
        self._settle()

    def append(self, request: str, count: int) -> dict[str, Any] | None:
        """Make room, or return None."""
        self._refuse(request in self.hosted)
        table, length = self.tables[request], self.lengths[request]
        if self.variant == "window":
            for i in range(len(table)):
                if (i + 1) * self.block_size <= length - self.special + 1:
                    table[i] = 0
            self._settle()
        positions = range(length, length + count)
        wanted = sorted({p // self.block_size for p in positions})
        held = [i for i in wanted if i < len(table)]
        frozen = [i for i in held if self._holders(table[i]) > 1 or table[i] in self.names]
        free = self._free()
        if len(frozen) + len(wanted) - len(held) > len(free):
            return None
        copies = [[table[i], target] for i, target in zip(frozen, free, strict=False)]
        new = free[len(frozen) : len(frozen) + len(wanted) - len(held)]
        for i, (_, target) in zip(frozen, copies, strict=True):
            table[i] = target
        table += new
        self.lengths[request] += count
        self._settle()
        return {"new": new, "copies": copies}

    def fork(self, parent: str, child: str, length: int) -> None:
        """Share a beginning."""
        self._refuse(child in self.tables)
        self._check_length(parent, length)
        blocks = -(-length // self.block_size)
        self.tables[child], self.lengths[child] = self.tables[parent][:blocks], length

    def truncate(self, request: str, length: int) -> None:
        """Forget an end."""
        self._check_length(request, length)
        del self.tables[request][-(-length // self.block_size) :]
        self.lengths[request] = length
        self._settle()

    def commit(self, request: str, names: list[bytes]) -> None:
        """Name blocks."""
        self._refuse(request in self.hosted)
        for block, name in zip(self.tables[request], names, strict=False):
            if block != 0 and block not in self.names and name not in self.names.values():
                self.names[block] = name

    def swap_out(self, request: str) -> list[list[int]] | None:
        """Move what nobody else holds to the host."""
        self._refuse(request in self.hosted)
        table = self.tables[request]
        alone = [i for i, block in enumerate(table) if self._holders(block) == 1]
        taken = {host for places in self.hosted.values() for host in places.values()}
        free = [host for host in range(self.special) if host not in taken]
        if len(alone) > len(free):
            return None
        self.hosted[request] = dict(zip(alone, free, strict=False))
        moves = [[table[i], host] for i, host in self.hosted[request].items()]
        for i in alone:
            table[i] = 0
        self._settle()
        return moves

    def swap_in(self, request: str) -> list[list[int]] | None:
        """Move it back."""
        self._refuse(request not in self.hosted)
        free = self._free()
        if len(free) < len(self.hosted[request]):
            return None
        moves = []
        for (place, host), block in zip(self.hosted.pop(request).items(), free, strict=False):
            self.tables[request][place] = block
            moves.append([host, block])
        return moves

    def reorder(self, beams: list[str], parents: list[str]) -> None:
        """All at once."""
        before = {p: (list(self.tables[p]), self.lengths[p]) for p in parents}
        for beam, parent in zip(beams, parents, strict=True):
            table, self.lengths[beam] = before[parent]
            self.tables[beam] = list(table)
        self._settle()

    def append_all(self, beams: list[str], count: int) -> list[dict[str, Any]] | None:
        """All or none."""
        saved = {b: list(t) for b, t in self.tables.items()}, dict(self.lengths), dict(self.names)
        answers = []
        for beam in beams:
            answer = self.append(beam, count)
            if answer is None:
                self.tables, self.lengths, self.names = saved
                return None
            answers.append(answer)
        return answers

    def _holders(self, block: int) -> int:
        return sum(block in table for table in self.tables.values())

    def _free(self) -> list[int]:
        return [block for block in self.all_blocks if self._holders(block) == 0]

    def _settle(self) -> None:
        """A block that is in no table loses its name: the quota is 0."""
        self.names = {b: name for b, name in self.names.items() if self._holders(b) > 0}

    @staticmethod
    def _refuse(wrong: bool) -> None:
        if wrong:
            raise Refused("ValueError")

    def _check_length(self, request: str, length: int) -> None:
        self._refuse(request in self.hosted or length > self.lengths[request])
        if self.variant == "window":
            seen = range(max(0, length - self.special + 1), length + 1)
            places = {p // self.block_size for p in seen}
            kept = self.tables[request][: -(-length // self.block_size)]
            self._refuse(any(kept[i] == 0 for i in places if i < len(kept)))
