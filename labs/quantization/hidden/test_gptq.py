"""Hidden tests of `gptq`, beside the best that is left, in fractions."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from .driving import pure
from .gptq_oracle import gptq
from .grid_oracle import settled

NUMBERS = st.integers(0, 10_000)
LADDER = [1.0, 0.875, 0.75]


def hessian_of(rng, columns, related=1.0):
    """Σ x xᵀ over inputs of small whole numbers whose columns resemble one another."""
    total = np.zeros((columns, columns))
    for _ in range(2 * columns + 3):
        common = rng.randint(-3, 3)
        x = np.array([rng.randint(-3, 3) + related * common for _ in range(columns)])
        x = x * np.array([1 + (k * 7 + 3) % 4 for k in range(columns)])
        total += np.outer(x, x)
    return total


def killed(hessian, dead):
    """The hessian with these columns dead."""
    hessian = hessian.copy()
    hessian[dead, :] = 0
    hessian[:, dead] = 0
    return hessian


def weights_of(rng, rows, columns):
    """Weights of about the same size."""
    return np.array([[rng.gauss(0, 1) for _ in range(columns)] for _ in range(rows)])


def judge(student, variant, make, number, because=""):
    """Judge `make(rng)`: the arguments of `gptq`."""

    def case(number):
        args = make(random.Random(number))
        return args, gptq(variant, *args)

    args, want = settled(case, number)
    student.expect("gptq", *args, want=want, because=because)
    return want


@given(number=NUMBERS, columns=st.integers(2, 6))
@example(number=1, columns=2)
@example(number=2, columns=5)
def test_pushes(student, variant, number, columns):
    """One group, no damping: what one column gets wrong is paid by those behind it."""

    def make(rng):
        bits = rng.choice((2, 3, 4))
        weights = weights_of(rng, rng.randint(1, 3), columns)
        return weights, hessian_of(rng, columns), bits, columns, [1.0], 0.0

    judge(student, variant, make, number)


@given(number=NUMBERS, columns=st.integers(1, 6))
@example(number=1, columns=1)
def test_unrelated_columns(student, variant, number, columns):
    """A diagonal: each weight is rounded by itself, halves and all."""

    def make(rng):
        diagonal = np.diag([float(rng.choice((1, 2, 5, 40))) for _ in range(columns)])
        steps = [[rng.randint(-12, 12) / 4 for _ in range(columns)] for _ in range(3)]
        group = rng.randint(1, columns)
        return np.array(steps), diagonal, rng.choice((2, 3)), group, LADDER, 0.25

    judge(student, variant, make, number, "the columns are not related")


@given(number=NUMBERS, columns=st.integers(3, 7), group=st.integers(1, 3))
@example(number=1, columns=5, group=2)
@example(number=2, columns=4, group=3)
@example(number=3, columns=6, group=2)
def test_groups(student, variant, number, columns, group):
    """Grids are found when the loop comes to them; the last group may be shorter."""

    def make(rng):
        weights = weights_of(rng, rng.randint(1, 3), columns)
        return weights, hessian_of(rng, columns), rng.choice((2, 3)), group, LADDER, 0.0625

    want = judge(student, variant, make, number)
    groups = -(-columns // group)
    assert want["scales"].shape[1] == groups


@given(number=NUMBERS, columns=st.integers(2, 6), damp=st.sampled_from([0.01, 0.1, 0.5, 2.0]))
@example(number=1, columns=3, damp=0.5)
@example(number=2, columns=4, damp=2.0)
@example(number=3, columns=5, damp=0.5)
def test_damping(student, variant, number, columns, damp):
    """Damping that is felt, with dead columns and without; an inverse that needs it."""

    def make(rng):
        hessian = hessian_of(rng, columns)
        if columns > 2 and rng.random() < 0.6:
            hessian = killed(hessian, rng.sample(range(columns), rng.randint(1, columns - 2)))
        return weights_of(rng, 2, columns), hessian, 2, columns, [1.0, 0.75], damp

    def few_inputs(rng):
        x = np.array([rng.choice((-2, -1, 1, 2)) for _ in range(columns)], float)
        return weights_of(rng, 2, columns), np.outer(x, x), 3, columns, [1.0], max(damp, 0.1)

    judge(student, variant, make, number)
    judge(student, variant, few_inputs, number, "there was one input, so only the damping helps")


@given(number=NUMBERS, columns=st.integers(2, 6), damp=st.sampled_from([0.0, 0.1]))
@example(number=1, columns=3, damp=0.0)
@example(number=2, columns=5, damp=0.0)
@example(number=3, columns=5, damp=0.1)
def test_dead(student, variant, number, columns, damp):
    """Dead columns anywhere, all of them too; the others are as if they were not there."""

    def make(rng):
        dead = rng.sample(range(columns), rng.randint(1, columns - 1))
        hessian = killed(hessian_of(rng, columns), dead)
        weights = weights_of(rng, 2, columns)
        weights[:, dead] *= rng.choice((1.0, 3.0))
        return weights, hessian, rng.choice((2, 4)), rng.randint(1, columns), LADDER, damp

    judge(student, variant, make, number)

    def none_alive(rng):
        hessian = np.zeros((columns, columns))
        return weights_of(rng, 2, columns), hessian, 3, 2, LADDER, damp

    judge(student, variant, none_alive, number, "all columns are dead")

    def small(rng):
        weights, hessian, *more = make(rng)
        return weights, hessian * 2.0**-40, *more

    judge(student, variant, small, number, "only a column with 0 is dead: small inputs kill none")

    def one_small(rng):
        hessian, scale = hessian_of(rng, columns), np.ones(columns)
        scale[rng.randrange(columns)] = 2.0**-18
        weights = weights_of(rng, 2, columns)
        return weights, hessian * np.outer(scale, scale), 3, columns, [1.0], max(damp, 0.1)

    judge(student, variant, one_small, number, "a column whose inputs are small is live")


@given(number=NUMBERS)
@example(number=1)
def test_any_layer(student, variant, number):
    """Any layer; the arguments stay as they are."""

    def make(rng):
        columns = rng.randint(1, 7)
        hessian = hessian_of(rng, columns, rng.choice((0.0, 1.0, 2.0)))
        if rng.random() < 0.3:
            hessian = killed(hessian, [rng.randrange(columns)])
        group, bits = rng.randint(1, columns + 2), rng.choice((1, 2, 3, 4, 8))
        ladder, damp = rng.choice((LADDER, [0.75, 0.875])), rng.choice((0.01, 0.3))
        return weights_of(rng, 3, columns), hessian, bits, group, ladder, damp

    def case(number):
        args = make(random.Random(number))
        return args, gptq(variant, *args)

    args, want = settled(case, number)
    pure(student, "gptq", *args, want=want)
