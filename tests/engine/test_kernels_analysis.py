"""`quire.analysis.kernels`: orders of tiles and their misses, and the softmax in blocks."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from quire.analysis.kernels import (
    OnlineSoftmax,
    fetched_stripes,
    fetches,
    online_softmax,
    tile_of,
)
from quire.errors import QuireError


@pytest.mark.parametrize("sizes", [(1, 1), (3, 5), (4, 4), (7, 2), (5, 8)])
def test_every_tile_comes_once(sizes: tuple[int, int]) -> None:
    down, across = sizes
    for group in range(1, down + 3):
        tiles = [tile_of(program, down, across, group) for program in range(down * across)]
        assert sorted(tiles) == [(i, j) for i in range(down) for j in range(across)]
    by_row = [tile_of(program, down, across, 1) for program in range(down * across)]
    assert by_row == sorted(by_row)
    by_column = [tile_of(program, down, across, down) for program in range(down * across)]
    assert by_column == sorted(by_column, key=lambda tile: tile[::-1])


def test_groups_go_down_their_first_column_first() -> None:
    """Five rows in groups of two: the last group has one row."""
    tiles = [tile_of(program, 5, 2, 2) for program in range(10)]
    assert tiles == [
        (0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (3, 0), (2, 1), (3, 1), (4, 0), (4, 1),
    ]  # fmt: skip


def test_misses_by_hand() -> None:
    """2 × 3 tiles row by row, a cache of three stripes: the first row leaves A0, B1, B2."""
    played = fetches(2, 3, 1, 3)
    assert [(fetch.rows_fetched, fetch.columns_fetched) for fetch in played] == [
        (True, True), (False, True), (False, True), (True, True), (False, True), (False, True),
    ]  # fmt: skip
    assert played[2].cached == (("column", 1), ("row", 0), ("column", 2))
    assert played[3].cached == (("column", 2), ("row", 1), ("column", 0))


def test_misses_equal_a_cache_of_ages() -> None:
    """Random products against a cache written in another way: a list of the times of last use."""
    rng = random.Random(0)
    for _ in range(100):
        down, across, group = (rng.randint(1, 9) for _ in range(3))
        capacity = rng.randint(2, 12)
        last_use: dict[tuple[str, int], int] = {}
        for now, fetch in enumerate(fetches(down, across, group, capacity)):
            for i, (stripe, fetched) in enumerate(
                ((("row", fetch.row), fetch.rows_fetched),
                 (("column", fetch.column), fetch.columns_fetched))
            ):  # fmt: skip
                newer = sum(use > last_use.get(stripe, -1) for use in last_use.values())
                assert fetched == (stripe not in last_use or newer >= capacity)
                last_use[stripe] = 2 * now + i


def test_counts_of_the_chapter() -> None:
    """16 × 16 tiles: (16 / g)(g + 16) stripes where a group fits, and row by row 16 + 256."""
    for group in (2, 4, 8):
        assert fetched_stripes(16, 16, group, 12) == 16 // group * (group + 16)
    assert fetched_stripes(16, 16, 1, 12) == fetched_stripes(16, 16, 16, 12) == 16 + 256
    assert fetched_stripes(16, 16, 8, 6) == 288  # a group that does not fit is worse than none
    assert {fetched_stripes(16, 16, group, 32) for group in range(1, 17)} == {32}  # each once


def test_online_softmax_equals_the_softmax_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    for block in (1, 3, 4, 16, 50):
        scores = torch.randn(16, generator=generator, dtype=torch.float64) * 30 + 500
        values = torch.randn(16, 3, generator=generator, dtype=torch.float64)
        states = online_softmax(scores.tolist(), values.tolist(), block)
        assert len(states) == math.ceil(16 / block)
        for number, state in enumerate(states, 1):
            seen = min(number * block, 16)
            expected = scores[:seen].softmax(-1) @ values[:seen]
            np.testing.assert_allclose(state.output(), expected.numpy(), rtol=1e-12)
            assert state.maximum == float(scores[:seen].max())


def test_factor_is_one_without_a_new_maximum() -> None:
    state = OnlineSoftmax().add([1.0, 0.5], [[1.0], [2.0]])
    assert state.factor([0.9, -3.0]) == 1
    assert state.factor([3.0]) == pytest.approx(math.exp(-2))
    assert OnlineSoftmax().factor([3.0]) == 0


def test_masked_blocks_leave_no_nan() -> None:
    """Keys not seen before, between and behind: as if they were not there; all: zeros."""
    hidden = [-math.inf] * 2
    values = [[float(i)] for i in range(6)]
    states = online_softmax([*hidden, 1.0, 2.0, *hidden], values, 2)
    assert (states[0].maximum, states[0].total, states[0].output()) == (-math.inf, 0, (0.0,))
    expected = (2 * math.exp(1) + 3 * math.exp(2)) / (math.exp(1) + math.exp(2))
    assert states[1].output() == states[2].output() == pytest.approx((expected,))
    assert online_softmax(hidden, values[:2], 1)[-1].output() == (0.0,)


def test_bad_input_is_named() -> None:
    for arguments, said in (
        ((6, 2, 3, 1), "program=6: 2 × 3 tiles have 0 to 5"),
        ((0, 0, 3, 1), "down=0"),
        ((0, 2, 3, 0), "group=0"),
    ):
        with pytest.raises(QuireError, match=said):
            tile_of(*arguments)
    with pytest.raises(QuireError, match="capacity=1: a tile needs two"):
        fetches(2, 2, 1, 1)
    with pytest.raises(QuireError, match="scores is empty"):
        online_softmax([], [], 2)
    with pytest.raises(QuireError, match="block=0"):
        online_softmax([1.0], [[1.0]], 0)
    for scores, values, said in (
        ([1.0], [], "1 scores and 0 values"),
        ([math.nan], [[1.0]], "score=nan"),
        ([math.inf], [[1.0]], "score=inf"),
        ([1.0, 2.0], [[1.0], [1.0, 2.0]], "same length"),
    ):
        with pytest.raises(QuireError, match=said):
            OnlineSoftmax().add(scores, values)
