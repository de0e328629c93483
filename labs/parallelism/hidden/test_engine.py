"""Hidden tests of `project`, `norm` and `pick`, beside one rank that has all, and in quire."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from .driving import asked, count, expect, words_of
from .in_quire import engine
from .shards_oracle import random_ratio, split

NUMBERS = st.integers(0, 10_000)


def _parts(rng, total):
    return split("experts", total, random_ratio(rng))


def _random(rng, *shape):
    return np.array([rng.gauss(0, 1) for _ in range(int(np.prod(shape)))]).reshape(shape)


@given(number=NUMBERS)
@example(number=1)
@example(number=2)
def test_project(student, variant, number):
    """Terms of a sum on one to five ranks, some without inputs; a bias with a 0, and none."""
    rng = random.Random(number)
    tokens, inputs, outputs = rng.randint(1, 4), rng.randint(0, 9), rng.randint(1, 5)
    x, weight = _random(rng, tokens, inputs), _random(rng, outputs, inputs)
    parts = _parts(rng, inputs)
    some = _random(rng, outputs)
    some[rng.randrange(outputs)] = 0.0
    for bias in (some, None):
        calls = [(x[:, b : b + s], weight[:, b : b + s], bias) for b, s in parts]
        want = x @ weight.T + (0 if bias is None else bias)
        events = expect(student, "project", calls, [want] * len(parts), f"parts {parts}")
        said = words_of(student, "project", calls)
        asked(student, events, ["AllReduce"], said)
        terms = [own @ w.T for own, w, _ in calls]
        student.compare(f"{said}, what each rank gives", events[0][1], terms, 1e-9)


@given(number=NUMBERS)
@example(number=3)
def test_norm(student, variant, number):
    """Numbers of very unlike sizes on the ranks, a token of zeros."""
    rng = random.Random(number)
    tokens, width = rng.randint(1, 4), rng.randint(1, 12)
    x, weight = _random(rng, tokens, width), _random(rng, width)
    x *= np.array([rng.choice((0.01, 1, 100)) for _ in range(width)])
    x[rng.randrange(tokens)] *= rng.choice((0, 1, 1e-3))
    eps, parts = rng.choice((1e-6, 0.1)), _parts(rng, width)
    calls = [(x[:, b : b + s], weight[b : b + s], width, eps) for b, s in parts]
    whole = x / np.sqrt((x * x).mean(1, keepdims=True) + eps) * weight
    want = [whole[:, b : b + s] for b, s in parts]
    events = expect(student, "norm", calls, want, f"parts {parts} of {width}")
    said = words_of(student, "norm", calls)
    asked(student, events, ["AllReduce"], said)
    given_ = [list(np.shape(one)) for one in events[0][1]]
    student.compare(f"{said}, the shapes of what ranks give", given_, [[tokens]] * len(parts))


@given(number=NUMBERS)
@example(number=4)
@example(number=5)
def test_pick(student, variant, number):
    """Equal logits on one rank and on several, close ones; no part of any, parts in any order."""
    rng = random.Random(number)
    rows, vocab = rng.randint(1, 4), rng.randint(1, 12)
    few = np.array([[float(rng.randrange(3) - 5) for _ in range(vocab)] for _ in range(rows)])
    masked = np.where(_random(rng, rows, vocab) > 0, few, -np.inf)
    close, low = 1 + few * 1e-14, few * 1e300
    for one, first in ((few, 0), (masked, 0), (close, 150_000), (low, 0)):
        parts = rng.sample(own := _parts(rng, vocab), len(own))
        calls = [(one[:, b : b + s], first + b) for b, s in parts]
        want = []
        for row in one.tolist():
            best = [first + token for token, value in enumerate(row) if value == max(row)]
            want.append(best[-1] if variant == "ring" else best[0])
        events = expect(student, "pick", calls, [want] * len(parts), f"parts {parts}")
        said = words_of(student, "pick", calls)
        asked(student, events, ["AllGather"], said)
        for rank, value in enumerate(events[0][1]):
            if count(value) > 2 * rows:
                student.fail(f"called {said}\nexpected at most two numbers a row from rank {rank}"
                             f"\ngot {value!r:.160}")  # fmt: skip


def test_in_quire(student, variant, seed):
    """`project` ends each half of a layer of quire-mini-draft; each term and sum is compared."""
    engine(variant).judge(student, seed, is_whole=False)


def test_whole_notebook(student, variant, seed):
    """The same with your own `shards`, `cut` and `all_reduce`."""
    engine(variant).judge(student, seed, is_whole=True)
