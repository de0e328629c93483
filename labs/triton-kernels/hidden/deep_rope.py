"""Norm, rotation and the write into the paged cache: an oracle and launches."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.gpu.interpreted import Buffer, compare, output, run

from .driving import TOLERANCE, half

EPS = 1e-5


class Case:
    """Tokens on their way into a cache."""

    def __init__(
        self, rng: np.random.Generator, slots: list[int], heads: int = 2, kv_heads: int = 1,
        size: int = 16, rotary: int | None = None, there: Any = None, eps: float = EPS,
        positions: Any = None, small: float = 1.0, weight: float = 1.0,
    ) -> None:  # fmt: skip
        """Draw a case; `there` numbers the slots of the cache."""
        self.slots, self.heads, self.kv_heads, self.size = np.array(slots), heads, kv_heads, size
        self.rotary, self.eps, tokens = rotary or size, eps, len(slots)
        self.there = np.arange(max(8, *(slot + 1 for slot in slots))) if there is None else there
        self.qkv = half(rng.normal(size=(tokens, heads + 2 * kv_heads, size)) * small)
        self.norms = half(rng.normal(size=(2, size)) * weight)
        angles = rng.random((7, self.rotary // 2)) * 6
        table = np.concatenate([np.cos(angles), np.sin(angles)], 1)
        self.table = table.astype(np.float32).astype(np.float64)
        drawn = rng.integers(0, 7, tokens)
        self.positions = drawn if positions is None else np.array(positions)
        turned = self._turned()
        self.query = turned[:, :heads]
        shape = (len(self.there), kv_heads * size)
        self.keys, self.values = half(rng.normal(size=(2, *shape)))
        self.want_keys, self.want_values = np.full(shape, np.nan), np.full(shape, np.nan)
        for t, slot in enumerate(slots):
            if slot >= 0:
                place = int(np.searchsorted(self.there, slot))
                self.want_keys[place] = turned[t, heads:].reshape(-1)
                self.want_values[place] = self.qkv[t, heads + kv_heads :].reshape(-1)

    def _turned(self) -> np.ndarray:
        """Queries and keys, normed and rotated one pair after another."""
        parts = self.qkv[:, : self.heads + self.kv_heads]
        parts = parts / np.sqrt((parts**2).mean(-1, keepdims=True) + self.eps)
        weight = np.repeat(self.norms, [self.heads, self.kv_heads], 0)
        parts = parts * weight
        found = parts.copy()
        for t, position in enumerate(self.positions):
            for i in range(self.rotary // 2):
                cos, sin = self.table[position, i], self.table[position, self.rotary // 2 + i]
                a, b = parts[t, :, 2 * i], parts[t, :, 2 * i + 1]
                found[t, :, 2 * i], found[t, :, 2 * i + 1] = a * cos - b * sin, b * cos + a * sin
        return found

    def judge(self, student: Any, order: int = 0, because: str = "") -> None:
        """Launch and compare all three outputs."""
        scalars = {
            "tokens": len(self.slots), "heads": self.heads, "kv_heads": self.kv_heads,
            "size": self.size, "rotary": self.rotary,
        }  # fmt: skip
        buffers = {
            "qkv": Buffer("fp16", self.qkv.reshape(1, -1)),
            "query_norm": Buffer("fp16", self.norms[0]),
            "key_norm": Buffer("fp16", self.norms[1]),
            "table": Buffer("fp32", self.table.reshape(1, -1)),
            "positions": Buffer("i64", self.positions),
            "slots": Buffer("i64", self.slots),
            "query": output("fp16", self.query.size),
            "key_cache": Buffer("fp16", self.keys, places=self.there, writable=True),
            "value_cache": Buffer("fp16", self.values, places=self.there, writable=True),
        }
        sizes = {**scalars, "eps": self.eps}
        ran = run(student, "deep_launch", sizes, buffers, scalars, order=order)
        compare(student, ran, "query", self.query.reshape(1, -1), TOLERANCE, because)
        compare(student, ran, "key_cache", self.want_keys, TOLERANCE, because)
        compare(student, ran, "value_cache", self.want_values, 0.0, because)


def numbers(student, rng):
    """Queries, keys and values of several tokens; a margin that counts."""
    Case(rng, [3, 0, 5]).judge(student)
    Case(rng, [2, 1], heads=4, kv_heads=2).judge(student, because="4 query heads, 2 KV heads")
    why = "small numbers, so that eps counts"
    Case(rng, [4], eps=0.01, small=0.1).judge(student, because=why)
    why = "weights of about 32, so that a rounding before the rotation shows where a pair cancels"
    Case(rng, [3, 6, 1], weight=32.0).judge(student, because=why)


def special(student, rng):
    """Tokens without a slot, numbers that are not turned."""
    Case(rng, [2, -1, 6, -1]).judge(student, order=1, because="two tokens have the slot -1")
    Case(rng, [-1]).judge(student, because="the only token has the slot -1")
    for rotary in (8, 6):
        why = f"the first {rotary} of 16 numbers are turned"
        Case(rng, [0, 3], rotary=rotary).judge(student, because=why)


def edges(student, rng):
    """Two numbers turned, all of them, the last position, tokens at one position."""
    Case(rng, [1, 2], rotary=2, positions=[6, 6]).judge(student, because="rotary is 2")
    Case(rng, [7, 5], rotary=14, positions=[0, 6]).judge(student, because="rotary is 14")


def far(student, rng):
    """Slots so large that offsets pass 2³¹."""
    there = np.array([1, 4, (1 << 26) + 3, (1 << 27) + 9])
    slots = [(1 << 27) + 9, 4, -1, (1 << 26) + 3]
    Case(rng, slots, kv_heads=2, there=there).judge(student, order=2)


def any_sizes(student, rng):
    """Numbers of heads that are no powers of two, heads of other sizes."""
    Case(rng, [0], heads=1, kv_heads=1).judge(student)
    Case(rng, [3, 1, -1], heads=3, kv_heads=3, size=32, rotary=20).judge(student, order=3)
    Case(rng, [6, 2], heads=5, kv_heads=1, size=64, rotary=64).judge(student, order=4)
