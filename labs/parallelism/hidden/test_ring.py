"""Hidden tests of `all_reduce`, beside ranks that all go step by step."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from .driving import expect, messages, refuses, sent_by, words_of

NUMBERS = st.integers(0, 10_000)


def _messages(variant, xs, parts):
    """What each rank sends, [to, numbers]."""
    n = len(parts)
    begins = [sum(parts[:p]) for p in range(n)]
    held = [[x[b : b + size].tolist() for b, size in zip(begins, parts, strict=True)] for x in xs]
    sent = [[] for _ in range(n)]
    for step in range(2 * n - 2):
        moving = []
        for rank in range(n):
            if variant == "ring":
                part, to = (rank + step) % n, (rank - 1) % n
            else:
                part, to = (rank - step - (variant == "pipeline")) % n, (rank + 1) % n
            moving.append((to, part, list(held[rank][part])))
            if parts[part]:
                sent[rank].append([to, np.array(held[rank][part])])
        for to, part, numbers in moving:
            if step < n - 1:
                numbers = [a + b for a, b in zip(held[to][part], numbers, strict=True)]
            held[to][part] = numbers
    return sent


def _judge(student, variant, xs, parts, because=""):
    want = _messages(variant, xs, parts)
    sent, said = _sums(student, xs, parts, because)
    for rank, own in enumerate(want):
        words = f"{said}, and looked at what rank {rank} sends, [to, numbers]"
        student.compare(words, sent_by(sent, rank), own, 1e-9, because)


def _sums(student, xs, parts, because=""):
    """Every rank returns the sum; the messages, and the call in words."""
    calls = [(rank, x, parts) for rank, x in enumerate(xs)]
    events = expect(student, "all_reduce", calls, [sum(xs)] * len(xs), because)
    said = words_of(student, "all_reduce", calls)
    return messages(student, events, said), said


def _numbers(rng, ranks, parts):
    return [np.array([rng.gauss(0, 1) for _ in range(sum(parts))]) for _ in range(ranks)]


@given(number=NUMBERS)
@example(number=1)
def test_sum(student, variant, number):
    """One to six ranks and parts of any size: each returns the sum, and its array stays."""
    rng = random.Random(number)
    n = rng.randint(1, 5)
    parts = [rng.randint(1, 5) for _ in range(n)]
    xs = _numbers(rng, n, parts)
    huge = [x * 10.0 ** (5 * rank) for rank, x in enumerate(xs)]
    _sums(student, huge, parts, "ranks of very unlike numbers")
    alone = _numbers(rng, 1, [4])
    _sums(student, alone, [4], "a single rank")


@given(number=NUMBERS)
@example(number=2)
def test_messages(student, variant, number):
    """What a rank sends in which step, with parts of any size."""
    rng = random.Random(number)
    n = rng.randint(2, 6)
    parts = [rng.randint(1, 4) for _ in range(n)]
    _judge(student, variant, _numbers(rng, n, parts), parts)


@given(number=NUMBERS)
@example(number=3)
def test_empty_parts(student, variant, number):
    """Some parts are empty, all but one, all."""
    rng = random.Random(number)
    n = rng.randint(2, 5)
    parts = [rng.choice((0, 0, 1, 3)) for _ in range(n)]
    _judge(student, variant, _numbers(rng, n, parts), parts)
    parts = [0] * n
    if rng.random() < 0.8:
        parts[rng.randrange(n)] = 3
    _judge(student, variant, _numbers(rng, n, parts), parts, "all parts are empty but one, or all")


@given(number=NUMBERS, n=st.integers(2, 9))
@example(number=4, n=2)
@example(number=5, n=3)
@example(number=6, n=8)
@example(number=7, n=9)
def test_no_standstill(student, variant, number, n):
    """Two to nine ranks; full parts, and some empty ones."""
    rng = random.Random(number)
    parts = rng.choice(([1] * n, [rng.randint(0, 1) for _ in range(n)]))
    xs = _numbers(rng, n, parts)
    _sums(student, xs, parts, f"{n} ranks")


@given(number=NUMBERS)
def test_refuses(student, variant, number):
    """Parts that do not add up to the array, and sizes below 0."""
    rng = random.Random(number)
    n = rng.randint(1, 4)
    parts = [rng.randint(0, 3) for _ in range(n)]
    for more in (1, 2, -1):
        if sum(parts) + more >= 0:
            x = np.zeros(sum(parts) + more)
            why = f"parts {parts} of {len(x)} numbers"
            refuses(student, "all_reduce", rng.randrange(n), x, parts, because=why)
    why = "a size below 0"
    refuses(student, "all_reduce", 0, np.zeros(2), [3, -1], because=why)
    refuses(student, "all_reduce", 1, np.zeros(0), [-2, 2], because=why)
