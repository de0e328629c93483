"""Decode attention with sinks, split over pages: a paged cache, an oracle, launches."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.gpu.interpreted import Buffer, Ran, compare, output, run

from .driving import TOLERANCE, half


class Case:
    """Sequences in a paged cache."""

    def __init__(
        self, rng: np.random.Generator, lengths: list[int], heads: int = 2, kv_heads: int = 1,
        size: int = 16, page: int = 4, splits: int = 2, blocks: np.ndarray | None = None,
        sinks: Any = None, scale: float = 0.25, spread: float = 1.0, values: float = 1.0,
        is_below: bool = False,
    ) -> None:  # fmt: skip
        """Draw a case; `blocks` numbers the blocks there are, `is_below`: no score is above 0."""
        self.lengths, self.heads, self.kv_heads = np.array(lengths), heads, kv_heads
        self.size, self.page, self.splits, self.scale = size, page, splits, scale
        pages = [-(-length // page) for length in lengths]
        self.table = max(1, *pages) + 1
        self.blocks = np.arange(sum(pages) + 2) if blocks is None else blocks
        self.query = half(rng.normal(size=(len(lengths), heads, size)) * spread)
        shape = (len(self.blocks), page, kv_heads, size)
        self.key, self.value = half(rng.normal(size=shape)), half(rng.normal(size=shape) * values)
        if is_below:
            self.query, self.key = np.abs(self.query), -np.abs(self.key)
        self.sinks = rng.normal(size=heads) if sinks is None else np.full(heads, float(sinks))
        self.sinks = self.sinks.astype(np.float32).astype(np.float64)
        order = iter(rng.permutation(len(self.blocks)))
        self.block_table = np.full((len(lengths), self.table), -(10**6))
        used = np.zeros((len(self.blocks), page), bool)
        self.want = np.zeros((len(lengths), heads, size))
        for s, length in enumerate(lengths):
            mine = [int(next(order)) for _ in range(pages[s])]
            self.block_table[s, : len(mine)] = self.blocks[mine]
            for block in range(len(mine)):
                used[mine[block], : max(0, min(page, length - block * page))] = True
            keys = self.key[mine].reshape(-1, kv_heads, size)[:length]
            values = self.value[mine].reshape(-1, kv_heads, size)[:length]
            for h in range(heads):
                kv = h // (heads // kv_heads)
                scores = np.append(keys[:, kv] @ self.query[s, h] * scale, self.sinks[h])
                if np.isneginf(scores).all():
                    continue
                weights = np.exp(scores - scores.max())
                self.want[s, h] = (weights[:-1] / weights.sum()) @ values[:, kv]
        self.key[~used], self.value[~used] = np.nan, np.nan

    def judge(
        self, student: Any, order: int = 0, because: str = "", left: np.ndarray | None = None,
        tolerance: float = TOLERANCE,
    ) -> Ran:  # fmt: skip
        """Launch and compare."""
        seqs = len(self.lengths)
        scalars = {
            "seqs": seqs, "heads": self.heads, "kv_heads": self.kv_heads, "size": self.size,
            "page": self.page, "table": self.table, "splits": self.splits,
        }  # fmt: skip
        shape = (1, self.splits * seqs * self.heads * (self.size + 2))
        width = self.page * self.kv_heads * self.size
        buffers = {
            "query": Buffer("fp16", self.query.reshape(1, -1)),
            "key_cache": Buffer("fp16", self.key.reshape(-1, width), places=self.blocks),
            "value_cache": Buffer("fp16", self.value.reshape(-1, width), places=self.blocks),
            "block_table": Buffer("i32", self.block_table.reshape(1, -1)),
            "lengths": Buffer("i32", self.lengths),
            "sinks": Buffer("fp32", self.sinks),
            "workspace": Buffer("fp32", left, shape, writable=True),
            "out": output("fp16", seqs * self.heads * self.size),
        }
        sizes = {**scalars, "scale": self.scale}
        ran = run(student, "deep_launch", sizes, buffers, scalars, order=order)
        compare(student, ran, "out", self.want.reshape(1, -1), tolerance, because)
        return ran


def numbers(student, rng):
    """Sinks that matter, groups of query heads, scores of 60,000."""
    Case(rng, [8, 5]).judge(student)
    Case(rng, [6], heads=6, kv_heads=2).judge(student, because="3 query heads a KV head")
    Case(rng, [7, 9], sinks=4.0).judge(student, because="sinks of 4 take most of the weight")
    case = Case(rng, [9], scale=1000.0, sinks=50_000.0, spread=8.0)
    # A score of 60,000 is off by some thousandths in float32.
    case.judge(student, because="scores of many thousands", tolerance=1e-2)
    case = Case(rng, [9], scale=1000.0, spread=8.0, sinks=-60_000.0)
    case.judge(student, because="scores of many thousands, sinks of -60,000", tolerance=1e-2)
    case = Case(rng, [9], scale=400.0, spread=8.0, sinks=-60_000.0, is_below=True)
    case.judge(student, because="all scores far below 0, sinks of -60,000", tolerance=1e-2)
    case = Case(rng, [7, 19], size=32, scale=0.3, splits=3, values=32.0)
    case.judge(student, because="values up to a hundred, which nearly cancel in some outputs")


def special(student, rng):
    """NaN behind the last token, no block behind the last page, runs of pages, what was left."""
    case = Case(rng, [1, 11], splits=3)
    first = case.judge(student, order=1)
    why = "the workspace holds what another call left"
    left = np.nan_to_num(first.data["workspace"], posinf=0.0, neginf=0.0) + 3.0
    case.judge(student, order=2, left=left, because=why)
    case = Case(rng, [16], heads=1, splits=4, page=4)
    ran = case.judge(student)
    most, one = int(ran.launches[0]["most_read"]), 2 * 2 * 4 * 16
    if ran.read("key_cache") != 2 * 16 * 16 or most > one + 256:
        student.fail(
            f"called {ran.said}\nexpected 4 programs that read a page of keys and values each, "
            f"{one} bytes, the cache once\ngot {ran.read('key_cache')} bytes read of `key_cache` "
            f"and a program that reads {most} bytes in all"
        )


def edges(student, rng):
    """Empty splits, sequences of length 0, sinks of minus infinity."""
    Case(rng, [3, 0, 4], splits=4).judge(student, because="splits without a page, a length of 0")
    Case(rng, [5, 9], sinks=-np.inf, splits=5).judge(student, because="no sinks")
    case = Case(rng, [0, 6], sinks=-np.inf, splits=2)
    case.judge(student, because="no sinks and a length of 0")


def far(student, rng):
    """Blocks whose numbers are so large that offsets pass 2³¹."""
    blocks = np.array([0, 3, (1 << 25) + 1, (1 << 25) + 7, (1 << 26) + 5])
    Case(rng, [9, 4], blocks=blocks, heads=2, kv_heads=2).judge(student, order=5)


def any_sizes(student, rng):
    """Pages, heads and sizes that are no powers of two, one of each."""
    Case(rng, [1], heads=1, splits=1).judge(student)
    Case(rng, [17, 3], heads=3, kv_heads=3, size=32, page=8).judge(student, order=6)
    Case(rng, [20], heads=5, kv_heads=1, size=64, page=16, splits=3).judge(student, order=7)
