"""What the explorables of the chapter "Triton kernels" ask: sizes, and scores in blocks.

Both evaluate `quire.analysis.kernels`, so their data is a case to begin with, checked here to be
one that teaches: an order that pays, one that is too wide for a small cache, a block with a new
maximum and one without.

    python book/_static/explorables/record_kernels.py

writes both files of `data/`.
"""

from __future__ import annotations

from typing import Any

from data_files import write_data

from quire.analysis.kernels import OnlineSoftmax, fetched_stripes

TILES = 16  # from top to bottom and from left to right
CAPACITY, SMALL = 12, 6  # stripes that the cache holds: in the first question, in the second
ASKED = 4  # rows of tiles in a group, in the first question
CHOICES = (1, 4, 8, 16)
SIZE, TILE, ELEMENT_BYTES = 2048, 128, 2  # of the matrices, of a tile; bfloat16

# Chosen by hand, one decimal each, so that a reader can follow with a pocket calculator.
SCORES = (0.5, 1.0, -0.4, 0.2, 1.3, 3.0, 0.0, 2.1, 2.0, -1.0, 1.6, 0.7, 2.4, 3.4, -0.2, 1.1)
VALUES = (0.9, -0.3, 0.4, 1.0, -0.8, 0.6, 0.1, -0.5, 1.2, 0.3, -0.9, 0.5, -0.1, 0.8, -0.6, 0.2)
BLOCK = 4


def tiles_and_l2(model: str) -> dict[str, Any]:
    """A square product of 16 × 16 tiles, and caches of 12 and of 6 stripes."""
    large = {group: fetched_stripes(TILES, TILES, group, CAPACITY) for group in CHOICES}
    small = {group: fetched_stripes(TILES, TILES, group, SMALL) for group in CHOICES}
    assert large[ASKED] * 3 < large[1] == large[TILES]
    assert min(small, key=lambda group: small[group]) == ASKED
    assert small[ASKED] * 3 < small[8]
    return {
        "tiles": TILES,
        "capacity": CAPACITY,
        "small": SMALL,
        "asked": ASKED,
        "choices": list(CHOICES),
        "size": SIZE,
        "tile": TILE,
        "stripe_bytes": SIZE * TILE * ELEMENT_BYTES,
    }


def online_softmax(model: str) -> dict[str, Any]:
    """Four blocks of four scores, each with a value of one number."""
    state, factors = OnlineSoftmax(), []
    for start in range(0, len(SCORES), BLOCK):
        scores = SCORES[start : start + BLOCK]
        factors.append(state.factor(scores))
        state = state.add(scores, [[value] for value in VALUES[start : start + BLOCK]])
    assert factors[0] == 0 < factors[1] < 0.5
    assert factors[2] == 1 > factors[3]
    return {"scores": list(SCORES), "values": list(VALUES), "block": BLOCK}


MAKERS = {"tiles-and-l2": tiles_and_l2, "online-softmax": online_softmax}


if __name__ == "__main__":
    write_data(MAKERS)
