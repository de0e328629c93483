"""Hidden tests of `split`, `shards` and `cut`, beside an oracle that names every row."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from .driving import pure
from .shards_oracle import (
    COLUMNS,
    ROWS,
    WHOLE,
    cut,
    is_tied,
    random_model,
    random_ratio,
    shape,
    shards,
    split,
)

NUMBERS = st.integers(0, 10_000)


@given(number=NUMBERS)
@example(number=1)
@example(number=2)
def test_largest_remainders(student, variant, number):
    """Any total and ratio whose remainders decide; totals and ratios beyond what floats hold."""
    rng = random.Random(number)
    ratio = random_ratio(rng, 7)
    totals = [rng.randint(0, 200) for _ in range(4)]
    for total in [*totals, 0, sum(ratio), 1]:
        if not is_tied(total, ratio):
            pure(student, "split", total, ratio, want=split(variant, total, ratio))
    big = [rng.randint(1, 10**17) for _ in range(rng.randint(2, 5))]
    total = rng.randint(10**16, 10**18)
    why = "numbers that a float does not hold"
    pure(student, "split", total, big, want=split(variant, total, big), because=why)
    near = [10**16, 10**16 + 1, 10**16 + 2]
    for shuffled in (near, near[::-1]):
        want = split(variant, 4, shuffled)
        pure(student, "split", 4, shuffled, want=want, because="shares that differ by little")


@given(number=NUMBERS)
@example(number=3)
def test_equal_remainders(student, variant, number):
    """Ranks with equal remainders, in which floats differ, and with equal and unequal ratios."""
    rng = random.Random(number)
    tried = 0
    while tried < 4:
        whole = rng.choice((2, 3, 4, 6, 9, 12))
        ratio = [rng.choice((1, whole + 1, 2 * whole + 1, 2)) for _ in range(rng.randint(2, 6))]
        total = rng.randint(1, 40)
        if is_tied(total, ratio):
            pure(student, "split", total, ratio, want=split(variant, total, ratio))
            tried += 1
    for total, ratio in ((2, [4, 1, 1]), (2, [1, 1, 4]), (2, [1, 4, 1]), (5, [1, 1, 1]),
                         (2, [1, 3]), (2, [3, 1]), (6, [3, 3, 1, 1])):  # fmt: skip
        pure(student, "split", total, ratio, want=split(variant, total, ratio))


@given(number=NUMBERS)
@example(number=4)
@example(number=5)
def test_kv_heads(student, variant, number):
    """More ranks than KV heads, KV heads on two ranks, ranks without heads."""
    rng = random.Random(number)
    for _ in range(4):
        model, ratio = random_model(rng), random_ratio(rng)
        pure(student, "shards", model, ratio, want=shards(variant, model, ratio))
    model = {"hidden": 2, "heads": 8, "kv_heads": 2, "head_size": 2, "ffn": 5, "vocab": 7}
    for ratio in ([1] * 8, [3, 1], [1, 6, 1], [5, 2, 1], [7, 1, 0]):
        want = shards(variant, model, ratio)
        pure(student, "shards", model, ratio, want=want, because="eight heads on two KV heads")
    model |= {"kv_heads": rng.choice((12, 18, 36)), "heads": 36}
    want = shards(variant, model, [2, 5, 5])
    why = "so many KV heads that the order of a set is another than theirs"
    pure(student, "shards", model, [2, 5, 5], want=want, because=why)


def _weight(rng, size):
    return np.array([rng.gauss(0, 1) for _ in range(int(np.prod(size)))]).reshape(size)


def _all_ranks(student, variant, rng, names):
    model, ratio = random_model(rng), random_ratio(rng)
    for name in names:
        weight = _weight(rng, shape(variant, name, model))
        for rank, shard in enumerate(shards(variant, model, ratio)):
            want = cut(variant, name, weight, model, shard)
            pure(student, "cut", name, weight, model, shard, want=want, because=f"rank {rank}")


@given(number=NUMBERS)
@example(number=6)
@example(number=7)
def test_rows(student, variant, number):
    """Every weight that is cut by rows, on all ranks of a random ratio."""
    _all_ranks(student, variant, random.Random(number), ROWS)


@given(number=NUMBERS)
@example(number=8)
def test_columns(student, variant, number):
    """`o_proj` and `down_proj`, on all ranks of a random ratio."""
    _all_ranks(student, variant, random.Random(number), COLUMNS)


@given(number=NUMBERS)
def test_whole(student, variant, number):
    """What is kept whole, also on a rank that has nothing else."""
    rng = random.Random(number)
    _all_ranks(student, variant, rng, WHOLE)
    model = random_model(rng)
    shard = shards(variant, model, [1, 0])[1]
    for name in WHOLE:
        weight = _weight(rng, shape(variant, name, model))
        pure(student, "cut", name, weight, model, shard, want=weight, because="it has no heads")


@given(number=NUMBERS)
def test_refuses(student, variant, number):
    """Ratios that are none, names that are not in the table, shapes that are others."""
    rng = random.Random(number)
    for ratio in ([], [0], [0, 0, 0], [3, -1], [-1, -1], [2, -2]):
        student.refuses("split", rng.randint(0, 9), ratio, because=f"the ratio {ratio}")
    model = {"hidden": 3, "heads": 4, "kv_heads": 2, "head_size": 2, "ffn": 5, "vocab": 7}
    shard = shards(variant, model, [2, 1])[rng.randrange(2)]
    for name in ("q_proj", "qkv"):
        student.refuses("cut", name, np.zeros((8, 3)), model, shard, because="no such name")
    for name in rng.sample((*ROWS, *COLUMNS, *WHOLE), 3):
        whole = shape(variant, name, model)
        others = [(whole[0] + 1, *whole[1:]), (whole[0] - 1, *whole[1:]), (*whole, 1)]
        if len(whole) == 2:
            others += [whole[::-1], (whole[0], whole[1] + 1), (whole[0] * whole[1],)]
        for other in others:
            why = f"the whole has the shape {whole}"
            student.refuses("cut", name, np.zeros(other), model, shard, because=why)
