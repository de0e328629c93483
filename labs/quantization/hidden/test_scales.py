"""Hidden tests of `nearest` and `search`, beside fractions."""

from __future__ import annotations

import functools
import random
from fractions import Fraction

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from .driving import pure
from .grid_oracle import cost_of, grid_of, nearest, search, settled

NUMBERS = st.integers(0, 10_000)
BITS = st.integers(1, 8)
LADDERS = ([1.0, 0.75, 0.5], [0.5, 1.0, 0.8], [0.9, 0.7, 1.0, 0.6], [1.0, 1.25, 0.875], [1.0])


def _weights(rng, rows, columns, low=-2.0, high=2.0):
    return np.array([[rng.uniform(low, high) for _ in range(columns)] for _ in range(rows)])


def _search(student, variant, make, number, because=""):
    """Judge `make(rng)`: weights, importance, bits, ladder."""

    def case(number):
        args = make(random.Random(number))
        return args, search(variant, *args)

    args, want = settled(case, number)
    pure(student, "search", *args, want=want, because=because)


@given(number=NUMBERS, bits=BITS)
def test_nearest(student, variant, number, bits):
    """Weights inside and far outside the grid, each row on its own."""

    def case(number):
        rng = random.Random(number)
        rows, top = rng.randint(1, 4), 2**bits - 1
        scales = np.array([rng.uniform(0.05, 2) for _ in range(rows)])
        zeros = np.array([rng.choice((0, top, rng.randint(0, top))) for _ in range(rows)])
        weights = _weights(rng, rows, rng.randint(1, 9)) * scales[:, None] * (top + 2) * 0.8
        return (weights, scales, zeros, bits), nearest(variant, weights, scales, zeros, bits)

    args, want = settled(case, number)
    pure(student, "nearest", *args, want=want)


@given(number=NUMBERS, bits=st.integers(2, 8))
@example(number=1, bits=4)
def test_halves(student, variant, number, bits):
    """Halves on both sides of 0, with any zero; near halves are none."""
    rng = random.Random(number)
    top = 2**bits - 1
    zeros = np.array([rng.randint(0, top), 0, top, top // 2])
    scales = np.array([rng.choice((0.25, 0.5, 1.0, 3.0)) for _ in zeros])
    steps = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.0, 1.0])
    steps = np.concatenate([steps, np.array([0.46875, 0.53125, -0.46875, -0.53125])])
    weights = steps[None, :] * scales[:, None]
    want = nearest(variant, weights, scales, zeros, bits)
    student.expect("nearest", weights, scales, zeros, bits, want=want)


def _alone(row, importance, bits, ratio):
    """A row, another, and a ladder of one: the grid is given, whatever it costs."""
    return np.array([row, [value / 2 for value in row]]), np.array(importance), bits, [ratio]


@given(number=NUMBERS, bits=BITS, side=st.integers(-1, 1))
@example(number=1, bits=4, side=1)
@example(number=2, bits=4, side=-1)
@example(number=3, bits=3, side=0)
def test_range(student, variant, number, bits, side):
    """Rows of both signs and of one, whose range then reaches to 0; each end gives way."""

    def make(rng):
        low, high = {-1: (-2.0, -0.5), 0: (-2.0, 2.0), 1: (0.5, 2.0)}[side]
        row = [rng.uniform(low, high) for _ in range(rng.randint(1, 8))]
        ratio = rng.choice((1.0, 0.8, 0.75, 0.5, 1.25))
        return _alone(row, [1.0] * len(row), bits, ratio)

    _search(student, variant, make, number, "the ladder has one number")

    def ignored(rng):
        row = [rng.uniform(-1, 1) for _ in range(6)] + [rng.choice((-3.0, 3.0))]
        return _alone(row, [1.0] * 6 + [0.0], bits, 1.0)

    _search(student, variant, ignored, number, "columns without importance count in the range")
    zero = np.zeros((1, 3)), np.ones(3), bits, [1.0]
    student.expect("search", *zero, want=search(variant, *zero), because="a row of zeros")


@given(number=NUMBERS, bits=st.integers(2, 5), ladder=st.sampled_from(LADDERS))
@example(number=1, bits=2, ladder=LADDERS[0])
@example(number=2, bits=3, ladder=LADDERS[2])
@example(number=3, bits=4, ladder=LADDERS[3])
def test_importance(student, variant, number, bits, ladder):
    """Each row chooses by its own cost; importances from 0 to 1,000."""

    def make(rng):
        rows, columns = rng.randint(1, 6), rng.randint(2, 9)
        importance = [rng.choice((0.0, 0.3, 1.0, 7.0, 50.0, 1000.0)) for _ in range(columns)]
        weights = _weights(rng, rows, columns) * rng.choice((0.02, 1.0, 4.0))
        weights[:, rng.randrange(columns)] *= rng.choice((1.0, 3.0))
        return weights, np.array(importance), bits, ladder

    _search(student, variant, make, number)
    longer = [1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5]

    def alone(rng):
        weights, importance, _, _ = make(rng)
        return weights[:1], importance, bits, longer

    _search(student, variant, alone, number, "the costs of a ladder go up and down")

    def hardly(rng):
        weights, importance, _, _ = make(rng)
        return weights, importance * 2.0**-40, bits, ladder

    _search(student, variant, hardly, number, "the costs are small, and one is still the least")


@functools.cache
def _tied(variant, number):
    """A row whose grids cost the same for two numbers of a ladder, and less than for the third."""
    rng = random.Random(number)
    bits, ladder = 2, rng.choice(([1.0, 0.5, 0.75], [0.75, 1.0, 0.5], [0.5, 0.75, 1.0]))
    while True:
        row = [rng.randint(-16, 16) / 8 for _ in range(rng.randint(2, 4))]
        span = max([*row, 0]) - min([*row, 0])
        if span == 0 or (span * 8) % 3 != 0:
            continue  # so that every scale is one of 1/32
        importance = [float(rng.choice((0, 1, 1, 2, 4))) for _ in row]
        fractions = [Fraction(value) for value in row], [Fraction(value) for value in importance]
        found = []
        for ratio in ladder:
            grid = grid_of(variant, fractions[0], bits, Fraction(ratio))
            found.append((cost_of(variant, *fractions, grid, bits), grid))
        least = min(cost for cost, _ in found)
        if len({grid for cost, grid in found if cost == least}) > 1:
            return np.array([row]), np.array(importance), bits, ladder


@given(number=NUMBERS)
@example(number=1)
@example(number=2)
@example(number=3)
def test_ties(student, variant, number):
    """Equal costs, exactly."""
    args = _tied(variant, number)
    student.expect("search", *args, want=search(variant, *args))
    weights, _, bits, ladder = args
    args = weights, np.zeros(weights.shape[1]), bits, ladder
    student.expect("search", *args, want=search(variant, *args), because="no column counts")
    for wrong in ([], [1.0, 0.0], [0.5, -0.5]):
        student.refuses("search", weights, args[1], bits, wrong, because=f"the ladder {wrong}")


@given(number=NUMBERS, bits=st.integers(2, 8))
@example(number=1, bits=8)
@example(number=2, bits=4)
def test_stored_scale(student, variant, number, bits):
    """Scales that float16 changes, and codes and zeros that go with the changed ones."""

    def make(rng):
        size = rng.choice((1e-4, 1e-3, 0.05, 3.0, 40.0))
        columns = rng.randint(2, 8)
        return _weights(rng, 3, columns) * size, np.ones(columns), bits, [1.0, 0.85]

    for more in range(3):
        _search(student, variant, make, number + 13 * more)
