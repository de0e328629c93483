"""Products of a layer token by token, of the weights that its shards stand for."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from .grid_oracle import NEAR, TooClose, rounded
from .pack_oracle import random_shard, together


def eight_bits(variant: str, token: Any, careful: bool = True) -> list[float]:
    """A token's numbers, rounded to 8 bits by themselves."""
    largest = max(abs(float(value)) for value in token)
    if largest == 0:
        return [0.0] * len(token)
    step = largest / 127
    exact = float(Fraction(largest) / 127) == step and Fraction(step) * 127 == Fraction(largest)
    found = []
    for value in token:
        quotient = Fraction(float(value)) / Fraction(step)
        if not careful and abs(quotient - (quotient // 1) - Fraction(1, 2)) < NEAR:
            raise TooClose
        found.append(rounded(variant, quotient, exact) * step)
    return found


def weights_of(fused: dict[str, Any], group: int) -> np.ndarray:
    """The weights that fused shards stand for."""
    groups = [k // group for k in range(len(fused["codes"][0]))]
    return np.array(
        [
            [(c - z[g]) * s[g] for c, g in zip(codes, groups, strict=True)]
            for codes, z, s in zip(fused["codes"], fused["zeros"], fused["scales"], strict=True)
        ],
        float,
    )


def products(variant: str, x: Any, weights: np.ndarray, inputs: str) -> np.ndarray:
    """What `apply` must return."""
    if inputs == "token":
        x = [eight_bits(variant, token) for token in x]
    return np.array([[float(np.dot(row, token)) for row in weights] for token in x])


def random_layer(variant: str, rng: Any, **given: Any) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Shards of a layer, and the weights that they stand for."""
    columns = given.pop("columns", None) or rng.randint(1, 20)
    same = {"bits": rng.choice((2, 3, 4, 8)), "columns": columns, "group": rng.randint(1, columns)}
    pairs = [
        random_shard(variant, rng, **same | {"has_zeros": rng.random() < 0.7} | given)
        for _ in range(rng.randint(1, 3))
    ]
    fused = together([fused for _, fused in pairs])
    return [made for made, _ in pairs], weights_of(fused, same["group"])


def size_of(shards: list[dict[str, Any]]) -> int:
    """What `bytes` must return."""
    total = 0
    for shard in shards:
        zeros = [] if shard["zeros"] is None else shard["zeros"].ravel().tolist()
        total += 4 * (len(shard["words"].ravel()) + len(zeros)) + 2 * len(shard["scales"].ravel())
    return total
