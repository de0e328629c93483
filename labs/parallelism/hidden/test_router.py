"""Hidden tests of `top` and `dispatch`, beside an oracle that asks each expert by itself."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from .driving import asked, expect, words_of

NUMBERS = st.integers(0, 10_000)


def _chosen(variant, row, k):
    sign = -1 if variant == "ring" else 1
    return sorted(range(len(row)), key=lambda e: (-row[e], sign * e))[:k]


def _weights(variant, row, k):
    values = [row[e] for e in _chosen(variant, row, k)]
    if variant == "pipeline":
        parts = [1 / (1 + math.exp(-v)) for v in values]
    else:
        parts = [math.exp(v - max(row)) for v in values]
    return [part / math.fsum(parts) for part in parts]


def _top(student, variant, rows, k, because=""):
    logits = np.array(rows)
    got, after = student.call_returning([0], "top", logits, k)
    said = student.said("top", logits, k)
    if type(got) is not list or len(got) != 2:
        student.fail(f"called {said}\nexpected two arrays\ngot {got!r:.160}")
    want = np.array([_chosen(variant, row, k) for row in rows])
    student.compare(f"{said}, the experts", got[0], want, because=because)
    if getattr(got[0], "dtype", None) != np.int64:
        student.fail(f"called {said}\nexpected experts of int64\ngot {got[0]!r:.160}")
    want = np.array([_weights(variant, row, k) for row in rows])
    student.compare(f"{said}, the weights", got[1], want, 1e-9, because)
    student.compare(f"{said}, and looked at its argument afterwards", after[0], logits)


@given(number=NUMBERS)
@example(number=1)
@example(number=2)
def test_top(student, variant, number):
    """One to four tokens, with and without equal logits; a k that is none."""
    rng = random.Random(number)
    experts = rng.randint(1, 20)
    rows = [[rng.gauss(0, 2) for _ in range(experts)] for _ in range(rng.randint(1, 4))]
    _top(student, variant, rows, rng.randint(1, experts))
    rows = [[float(rng.randrange(3)) for _ in range(experts)] for _ in range(3)]
    _top(student, variant, rows, rng.randint(1, experts), "equal logits")
    none, k = np.zeros((0, experts)), rng.randint(1, experts)
    for name, one in zip(("experts", "weights"), student.call("top", none, k), strict=True):
        words = f"{student.said('top', none, k)}, the shape of the {name}"
        student.compare(words, list(np.shape(one)), [0, k], because="there are no tokens")
    for k in (0, -1, experts + 1):
        student.refuses("top", np.array(rows), k, because=f"k={k} of {experts} experts")


@given(number=NUMBERS)
@example(number=3)
def test_weights(student, variant, number):
    """Weights of small and of very large logits."""
    rng = random.Random(number)
    experts = rng.randint(2, 8)
    size = 450.0 if variant == "pipeline" else 5000.0
    for scale, shift in ((1.0, 0.0), (1.0, size * 0.9), (1.0, -size * 0.9), (size / 5, 0.0)):
        rows = [[max(-size, min(size, rng.gauss(shift, scale))) for _ in range(experts)]
                for _ in range(2)]  # fmt: skip
        _top(student, variant, rows, rng.randint(1, experts), f"logits around {shift}")


def _order(variant, choice):
    request, position, place, _, weight = choice
    if variant == "experts":
        return (-weight, request, position)
    return (place, request, position) if variant == "ring" else (position, request)


def _answers(variant, lists, parts, capacity):
    """What each rank must return."""
    every = [choice for own in lists for choice in own]
    served, dropped = {}, []
    for expert in {choice[3] for choice in every}:
        mine = sorted((c for c in every if c[3] == expert), key=lambda c: _order(variant, c))
        served[expert] = mine[:capacity]
        dropped += [[c[0], c[1], c[3]] for c in mine[capacity:]]
    sums: dict[tuple[int, int], Fraction] = {}
    for choice in (c for mine in served.values() for c in mine):
        token = choice[0], choice[1]
        sums[token] = sums.get(token, Fraction(0)) + Fraction(choice[4])
    answers = []
    for begin, size in parts:
        kept = [
            [[r, p, float(Fraction(w) / sums[r, p]) if variant == "ring" else w]
             for r, p, _, _, w in served.get(expert, [])]
            for expert in range(begin, begin + size)
        ]  # fmt: skip
        answers.append({"kept": kept, "dropped": sorted(dropped)})
    return answers


def _choices(rng, experts, tokens, k):
    """Choices of tokens, whose weights are often equal."""
    names = rng.sample([(r, p) for r in (2, 3, 11, 20) for p in (0, 1, 2, 10)], tokens)
    found = []
    for request, position in names:
        weights = [rng.choice((0.125, 0.25, 0.375, 0.5)) for _ in range(k)]
        for place, expert in enumerate(rng.sample(range(experts), k)):
            found.append([request, position, place, expert, weights[place]])
    return found


def _spread(rng, choices, ranks, is_split):
    """The tokens on ranks, in any order; `is_split`: choices of one token on several ranks."""
    lists = [[] for _ in range(ranks)]
    home = {}
    for choice in rng.sample(choices, len(choices)):
        token = choice[0], choice[1]
        rank = home.setdefault(token, rng.randrange(ranks))
        lists[rng.randrange(ranks) if is_split else rank].append(choice)
    return lists


def _parts(rng, experts, ranks):
    """Parts of the experts, some of which may be empty."""
    ends = sorted(rng.randint(0, experts) for _ in range(ranks - 1))
    ends = [0, *ends, experts]
    return [[begin, end - begin] for begin, end in pairwise(ends)]


def _dispatch(student, variant, lists, parts, capacity, because=""):
    calls = [(own, part, capacity) for own, part in zip(lists, parts, strict=True)]
    want = _answers(variant, lists, parts, capacity)
    events = expect(student, "dispatch", calls, want, because)
    asked(student, events, ["AllGather"], words_of(student, "dispatch", calls))


@given(number=NUMBERS)
@example(number=4)
@example(number=5)
def test_capacity(student, variant, number):
    """Any capacity from 1 to that which drops nothing."""
    rng = random.Random(number)
    experts, ranks = rng.randint(2, 5), rng.randint(1, 4)
    choices = _choices(rng, experts, rng.randint(1, 12), rng.randint(1, min(3, experts)))
    lists, parts = _spread(rng, choices, ranks, False), _parts(rng, experts, ranks)
    for capacity in (1, rng.randint(2, 12), 16):
        _dispatch(student, variant, lists, parts, capacity)


@given(number=NUMBERS)
@example(number=6)
@example(number=7)
@example(number=8)
def test_one_order(student, variant, number):
    """The same choices on other ranks and in another order: the same are dropped."""
    rng = random.Random(number)
    experts, ranks = rng.randint(2, 4), rng.randint(2, 4)
    choices = _choices(rng, experts, rng.randint(4, 12), rng.randint(1, experts))
    parts, capacity = _parts(rng, experts, ranks), rng.randint(1, 3)
    for is_split in (False, False, True):
        lists = _spread(rng, choices, ranks, is_split)
        _dispatch(student, variant, lists, parts, capacity, "another order on other ranks")
    close = [[request, 5, 0, 0, 0.25 + request * 1e-13] for request in (1, 2, 3)]
    lists = _spread(rng, close, 2, False)
    _dispatch(student, variant, lists, [[0, 1], [1, 0]], 1, "weights that differ by little")


@given(number=NUMBERS)
def test_idle_ranks(student, variant, number):
    """Ranks without choices, without experts, without both; a capacity of 0."""
    rng = random.Random(number)
    choices = _choices(rng, 3, rng.randint(1, 8), 2)
    for lists in ([choices, [], []], [[], [], choices], [[], [], []]):
        some = ([[0, 0], [0, 3], [3, 0]], [[0, 3], [3, 0], [3, 0]], [[0, 1], [1, 1], [2, 1]])
        _dispatch(student, variant, lists, rng.choice(some), rng.randint(1, 3), "an idle rank")
    _dispatch(student, variant, [choices, []], [[0, 2], [2, 1]], 0, "a capacity of 0")
