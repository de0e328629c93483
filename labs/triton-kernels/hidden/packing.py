"""Words of codes and what they stand for, one code at a time."""

from __future__ import annotations

import numpy as np


def slot_of(variant: str, column: int, group: int) -> tuple[int, int]:
    """The word and the lowest bit of the code of a column of a group."""
    if variant == "words":
        width = group // 8
        return column % width, 28 - 4 * (column // width)
    if variant == "sinks":
        place = column % 8
        return column // 8, 4 * (place // 2 if place % 2 == 0 else 4 + place // 2)
    return column // 8, 28 - 4 * (column % 8)


def pack(variant: str, codes: np.ndarray, group: int, rng: np.random.Generator) -> np.ndarray:
    """Words [n, groups * group / 8] of codes [n, k]; what is no column has any bits."""
    n, k = codes.shape
    groups = -(-k // group)
    full = rng.integers(0, 16, (n, groups * group))
    full[:, :k] = codes
    words = np.zeros((n, groups * group // 8), np.int64)
    for column in range(groups * group):
        word, low = slot_of(variant, column % group, group)
        words[:, column // group * (group // 8) + word] |= full[:, column] << low
    return np.where(words >= 1 << 31, words - (1 << 32), words)


def pack_zeros(variant: str, zeros: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Words [n, ceil(groups / 8)] of zeros [n, groups]."""
    n, groups = zeros.shape
    stored = (zeros - 1) % 16 if variant == "words" else 15 - zeros
    full = rng.integers(0, 16, (n, -(-groups // 8) * 8))
    full[:, :groups] = stored
    words = np.zeros((n, full.shape[1] // 8), np.int64)
    for g in range(full.shape[1]):
        words[:, g // 8] |= full[:, g] << 4 * (g % 8)
    return np.where(words >= 1 << 31, words - (1 << 32), words)


def number(variant: str, code: int) -> int:
    """What a code stands for before its grid is applied."""
    if variant != "rope" or code < 8:
        return code
    return -8 if code == 8 else 8 - code


class Matrix:
    """A random matrix as the task stores it, and its weights in float64."""

    def __init__(
        self, variant: str, rng: np.random.Generator, n: int, k: int, group: int,
        codes: np.ndarray | None = None, plain: bool = False,
    ) -> None:  # fmt: skip
        """Draw one; `plain`: every grid is the same."""
        self.n, self.k, self.group = n, k, group
        groups = -(-k // group)
        codes = rng.integers(0, 16, (n, k)) if codes is None else codes
        self.words = pack(variant, codes, group, rng)
        # All bits of a float16 are in use, so that a weight is none.
        scales = 2.0 ** rng.integers(-6, -2, (n, groups)) * rng.integers(1025, 2048, (n, groups))
        scales = scales / 1024
        self.scales = np.full((n, groups), 0.0625) if plain else scales
        numbers = np.array([number(variant, code) for code in range(16)], float)[codes]
        wide = np.repeat(self.scales, group, 1)[:, :k]
        if variant == "rope":
            offsets = rng.integers(-8, 9, (n, groups)) / 16
            self.grids = np.full((n, groups), 0.25) if plain else offsets
            self.weights = numbers * wide + np.repeat(self.grids, group, 1)[:, :k]
        else:
            zeros = rng.integers(0, 16, (n, groups))
            zeros[rng.random((n, groups)) < 0.3] = 0
            zeros = np.full((n, groups), 8) if plain else zeros
            self.grids = pack_zeros(variant, zeros, rng)
            self.weights = (numbers - np.repeat(zeros, group, 1)[:, :k]) * wide


def rounded(variant: str, weights: np.ndarray, group: int, rng: np.random.Generator) -> Matrix:
    """Weights on the nearest points of grids from the least to the largest of a group."""
    n, k = weights.shape
    made = Matrix(variant, rng, n, k, group)
    begins = np.arange(0, k, group)
    low = np.minimum(np.minimum.reduceat(weights, begins, 1), 0)
    high = np.maximum(np.maximum.reduceat(weights, begins, 1), 0)
    made.scales = np.maximum((high - low) / 15, 2.0**-14).astype(np.float16).astype(np.float64)
    numbers = np.array([number(variant, code) for code in range(16)])
    if variant == "rope":
        middle = (low + 8 * made.scales).astype(np.float16).astype(np.float64)
        zero, offset = np.zeros_like(middle), middle
        made.grids = middle
    else:
        zero = np.clip(np.round(-low / made.scales), 0, 15)
        offset = np.zeros_like(zero)
        made.grids = pack_zeros(variant, zero.astype(np.int64), rng)
    scale, zero, offset = (np.repeat(each, group, 1)[:, :k] for each in (made.scales, zero, offset))
    wanted = np.round((weights - offset) / scale) + zero
    wanted = np.clip(wanted, numbers.min(), numbers.max()).astype(np.int64)
    codes = np.argsort(numbers)[wanted - numbers.min()]
    made.words = pack(variant, codes, group, rng)
    made.weights = (numbers[codes] - zero) * scale + offset
    return made
