"""Words filled slot by slot, as bits in a list; zeros and shards put together row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

Place = tuple[int, int]  # word and lowest bit


def places(variant: str, bits: int, columns: int, group: int) -> tuple[list[Place], int]:
    """Where each column of a row lies, and how many words a row has."""
    slots = 32 // bits
    found: list[Place] = []
    words = 0
    while len(found) < columns:
        count = min(group, columns - len(found))
        needed = (count + slots - 1) // slots
        if variant == "dense":
            way = [(w, 32 - bits - bits * s) for s in range(slots) for w in range(needed)]
        else:
            up = [bits * s for s in range(slots)]
            turns = variant == "doubled"
            way = [(w, low) for w in range(needed) for low in (up[::-1] if turns and w % 2 else up)]
        columns_in_order = list(range(count))
        if variant == "sorted":
            columns_in_order.sort(key=lambda c: (c % 2, c))
        of_column = dict(zip(columns_in_order, way, strict=False))
        found += [(words + of_column[c][0], of_column[c][1]) for c in range(count)]
        words += needed
    return found, words


def pack(variant: str, codes: Any, bits: int, group: int) -> np.ndarray:
    """What `pack` must return."""
    where, words = places(variant, bits, len(codes[0]), group)
    rows = []
    for row in codes:
        lit = [[0] * 32 for _ in range(words)]
        for code, (word, low) in zip(row, where, strict=True):
            for bit in range(bits):
                lit[word][low + bit] = int(code) // 2**bit % 2
        rows.append([sum(on << bit for bit, on in enumerate(one[:31])) - (one[31] << 31)
                     for one in lit])  # fmt: skip
    return np.array(rows, np.int64)


def litter(variant: str, words: np.ndarray, bits: int, columns: int, group: int, rng: Any) -> Any:
    """The words with anything in the bits that hold no code."""
    where, _ = places(variant, bits, columns, group)
    used: dict[int, int] = {}
    for word, low in where:
        used[word] = used.get(word, 0) | ((1 << bits) - 1) << low
    found = words.copy()
    for row in found:
        for word in range(len(row)):
            free = 0xFFFFFFFF & ~used.get(word, 0)
            value = (int(row[word]) & 0xFFFFFFFF & ~free) | (rng.getrandbits(32) & free)
            row[word] = value - 2**32 if value >= 2**31 else value
    return found


def changed(variant: str, zero: int, bits: int) -> int:
    """A zero as it is stored."""
    if variant == "dense":
        return 2**bits - 1 if zero == 0 else zero - 1
    if variant == "doubled":
        middle = 2**bits // 2
        return zero - middle if zero >= middle else zero + middle
    return 2**bits - 1 - zero


def shard(
    variant: str, codes: Any, scales: Any, zeros: Any | None, bits: int, group: int, block: int
) -> dict[str, Any]:
    """A shard; `scales` and `zeros` have a row for each block, `zeros` may be None."""
    words_of_zeros = None
    if zeros is not None:
        stored = [[changed(variant, int(z), bits) for z in row] for row in zeros]
        words_of_zeros = pack(variant, stored, bits, len(stored[0]))
    return {
        "rows": len(codes), "columns": len(codes[0]), "bits": bits, "group": group, "block": block,
        "words": pack(variant, codes, bits, group), "scales": np.array(scales, float),
        "zeros": words_of_zeros,
    }  # fmt: skip


def random_shard(variant: str, rng: Any, **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A shard, and the codes, scales and zeros of each of its rows."""
    bits = given.get("bits") or rng.choice((2, 3, 4, 5, 8))
    columns = given.get("columns") or rng.randint(1, 24)
    group = given.get("group") or rng.randint(1, columns + 3)
    rows = given.get("rows") or rng.randint(1, 5)
    block = given.get("block") or rng.randint(1, rows + 1)
    groups, blocks = -(-columns // group), -(-rows // block)
    codes = [[rng.randrange(2**bits) for _ in range(columns)] for _ in range(rows)]
    scales = [[rng.randint(1, 99) / 64 for _ in range(groups)] for _ in range(blocks)]
    zeros = None
    if given.get("has_zeros", True):
        zeros = [[rng.randrange(2**bits) for _ in range(groups)] for _ in range(blocks)]
    made = shard(variant, codes, scales, zeros, bits, group, block)
    middle = [[2 ** (bits - 1)] * groups] * blocks
    fused = {
        "codes": codes,
        "scales": [scales[row // block] for row in range(rows)],
        "zeros": [(zeros or middle)[row // block] for row in range(rows)],
    }
    return made, fused


def together(parts: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """What `fuse` must return of shards whose rows are these."""
    return {
        name: np.array([row for part in parts for row in part[name]])
        for name in ("codes", "scales", "zeros")
    }
