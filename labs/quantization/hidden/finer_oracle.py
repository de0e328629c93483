"""What the depth task stores and reads: streams of bits, scales as codes, columns by importance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from .gptq_oracle import loop
from .grid_oracle import NEAR, TooClose, code_of, cost_of, remembered, search_row

# ---- dense


def stream_of(bits: Sequence[int], zeros: Sequence[int], codes: Sequence[Sequence[int]]) -> str:
    """A row's bits, first to last, of its groups' widths, zeros and codes."""
    parts = []
    for width, zero, of_group in zip(bits, zeros, codes, strict=True):
        parts.append(str(width - 3))
        parts += [f"{number:0{width}b}"[::-1] for number in [zero, *of_group]]
    return "".join(parts)


def words_of(streams: Sequence[str], more: int = 0, filler: str = "0") -> dict[str, np.ndarray]:
    """`words` and `starts` of rows; `more` words and bits of `filler` behind each row's end."""
    words: list[int] = []
    starts = []
    for stream in streams:
        starts.append(len(words))
        count = -(-len(stream) // 32) + more
        missing = 32 * count - len(stream)
        full = stream + (filler * (missing // len(filler) + 1))[:missing]
        own = [int(full[32 * i : 32 * i + 32][::-1], 2) for i in range(count)]
        words += [word - 2**32 if word >= 2**31 else word for word in own]
    return {"words": np.array(words, np.int64), "starts": np.array(starts, np.int64)}


@remembered
def write_dense(
    weights: Any, importance: Any, group: int, ladder: Sequence[float], limit: float
) -> tuple[dict[str, np.ndarray], list[list[int]]]:
    """What `write` must return, and the bits of each group."""
    streams, scales, widths = [], [], []
    h = [Fraction(value) for value in importance]
    for row in weights:
        row = [Fraction(value) for value in row]
        grids, bits, codes = [], [], []
        for begin in range(0, len(row), group):
            part, of_part = row[begin : begin + group], h[begin : begin + group]
            width = 3
            grid = search_row("dense", part, of_part, 3, ladder)
            cost = cost_of("dense", part, of_part, grid, 3)
            if 0 < abs(cost - Fraction(limit)) < NEAR * max(cost, Fraction(limit)):
                raise TooClose
            if cost > Fraction(limit):
                width = 4
                grid = search_row("dense", part, of_part, 4, ladder)
            grids.append(grid)
            bits.append(width)
            codes.append([code_of("dense", w, grid, width) for w in part])
        streams.append(stream_of(bits, [zero for _, zero in grids], codes))
        scales.append([float(scale) for scale, _ in grids])
        widths.append(bits)
    return {**words_of(streams), "scales": np.array(scales)}, widths


# ---- doubled


def exponent_of(scales: Sequence[Fraction]) -> int:
    """The smallest e with no scale above 255 · 2^e."""
    e = -60
    while max(scales) > 255 * Fraction(2) ** e:
        e += 1
    return e


@remembered
def write_doubled(
    weights: Any, importance: Any, scales: Any, zeros: Any, bits: int, group: int, block: int
) -> dict[str, np.ndarray]:
    """What `write` must return."""
    found: dict[str, list[Any]] = {"codes": [], "zeros": [], "exponents": [], "steps": []}
    h = [Fraction(value) for value in importance]
    for row, of_row, zero_of in zip(weights, scales, zeros, strict=True):
        row, of_row = [*map(Fraction, row)], [*map(Fraction, of_row)]
        exponents = [
            exponent_of(of_row[begin : begin + block]) for begin in range(0, len(of_row), block)
        ]
        codes, steps = [], []
        for g, scale in enumerate(of_row):
            unit = Fraction(2) ** exponents[g // block]
            part, of_part = row[g * group : (g + 1) * group], h[g * group : (g + 1) * group]
            around = {math.floor(scale / unit), math.ceil(scale / unit)}
            tried = []
            for step in sorted(around & set(range(1, 256)), reverse=True):
                grid = step * unit, int(zero_of[g])
                tried.append((cost_of("doubled", part, of_part, grid, bits), step, grid))
            if len(tried) == 2:
                one, other = tried[0][0], tried[1][0]
                if one != other and abs(one - other) <= NEAR * max(one, other):
                    raise TooClose
            _, step, grid = min(tried, key=lambda one: one[0])  # the larger comes first
            steps.append(step)
            codes += [code_of("doubled", w, grid, bits) for w in part]
        found["codes"].append(codes)
        found["zeros"].append([int(z) for z in zero_of])
        found["exponents"].append(exponents)
        found["steps"].append(steps)
    return {name: np.array(rows) for name, rows in found.items()}


# ---- sorted


def order_of(hessian: Any) -> list[int]:
    """The columns as they are visited."""
    return sorted(range(len(hessian)), key=lambda k: (-hessian[k][k], k))


@remembered
def write_sorted(
    weights: Any, hessian: Any, bits: int, group: int, ladder: Sequence[float], damp: float,
    static: bool,
) -> dict[str, np.ndarray]:  # fmt: skip
    """What `write` must return."""
    order = order_of(hessian)
    if static:
        neighbours = [k // group for k in range(len(order))]
        return loop("sorted", weights, hessian, bits, ladder, damp, order, neighbours, early=True)
    turn = {k: i for i, k in enumerate(order)}
    group_of = [turn[k] // group for k in range(len(order))]
    found = loop("sorted", weights, hessian, bits, ladder, damp, order, group_of)
    return found | {"g_idx": np.array(group_of)}
