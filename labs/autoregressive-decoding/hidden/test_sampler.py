"""Hidden tests of `distribution` and `draw`: probabilities, not draws, are judged."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from .sampling_oracle import NEUTRAL, TooClose, distribution, draw

TOLERANCE = 1e-9
VOCAB = 8
LOGITS = st.lists(
    st.integers(-40, 40).map(lambda n: n / 8), min_size=VOCAB, max_size=VOCAB
)  # eighths: ties happen
OUTPUT = st.lists(st.integers(0, VOCAB - 1), max_size=14)
PARAMS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.3, 0.7, 1.0, 2.0]),
        "top_k": st.integers(0, VOCAB),
        "top_p": st.sampled_from([0.2, 0.45, 0.7, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.06, 0.35]),
        "allowed": st.none()
        | st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=VOCAB, unique=True),
        "quota": st.none() | st.integers(1, 3),
        "span": st.integers(0, 12),
    }
)


def _judge(student, logits, output, because="", **changes):
    params = NEUTRAL | changes
    try:
        want = distribution(logits, output, params)
    except TooClose:
        assume(False)
    student.expect(
        "distribution",
        np.array(logits),
        output,
        params,
        want=np.array(want),
        tolerance=TOLERANCE,
        because=because,
    )


@given(
    logits=LOGITS,
    temperature=st.sampled_from([0.2, 0.5, 1.5, 3.0]),
    top_k=st.integers(0, VOCAB),
    top_p=st.sampled_from([0.15, 0.5, 0.85, 1.0]),
)
def test_temperature_and_truncation(student, variant, logits, temperature, top_k, top_p):
    """Temperature, top-k and top-p where nothing is banned."""
    _judge(student, logits, [1, 1], temperature=temperature, top_k=top_k, top_p=top_p)


def test_order_of_the_cuts(student, variant, seed):
    """top-k before top-p, whose mass is that of the k; the temperature before all three."""
    logits = _raised([math.log(p) for p in (0.3, 0.2, 0.15, 0.12, 0.1, 0.06, 0.04, 0.03)], seed)
    why = "the three largest hold 0.46, 0.31 and 0.23 of their mass"
    _judge(student, logits, [], why, top_k=3, top_p=0.45)
    _judge(student, logits, [], why, top_k=3, top_p=0.7)
    why = "at temperature 2 the third is 0.71 times as probable as the first"
    _judge(student, logits, [], why, temperature=2.0, min_p=0.6)
    why = "at temperature 0.5 the third is 0.25 times as probable as the first"
    _judge(student, logits, [], why, temperature=0.5, min_p=0.3)
    _judge(student, logits, [], "of what top-k and top-p leave", temperature=2.0, top_k=5,
           top_p=0.8, min_p=0.65)  # fmt: skip


@given(logits=LOGITS, output=OUTPUT, params=PARAMS)
def test_greedy(student, variant, logits, output, params):
    """Temperature 0 puts everything on the best token that is left."""
    _judge(student, logits, output, **params | {"temperature": 0})


@given(logits=LOGITS, output=OUTPUT, params=PARAMS)
def test_allowed_and_quota(student, variant, logits, output, params):
    """Allowed tokens and the quota over the last `span` tokens of output."""
    assume(params["quota"] is not None)
    _judge(student, logits, output, **params | {"top_k": 0, "top_p": 1.0, "min_p": 0.0})
    _judge(student, logits, output, **params)


def _raised(logits, seed):
    """The same probabilities from other logits, for each course."""
    by = np.random.default_rng(seed).uniform(-4, 4)
    return [logit + by for logit in logits]


def test_ban_comes_first(student, variant, seed):
    """A banned token takes no place among the top k and no share of the mass."""
    logits = [5.0, 4.0, 1.0, 0.5, 0.0, -1.0, -2.0, -3.0]
    why = "tokens 0 and 1 are banned before top-k and top-p look"
    _judge(student, _raised(logits, seed), [0, 1], why, quota=1, span=4, top_k=3)
    _judge(student, _raised(logits, seed), [0, 1], why, quota=1, span=4, top_p=0.6)
    _judge(student, _raised(logits, seed), [], why, allowed=[2, 3, 4, 5, 6, 7], top_k=2, top_p=0.7)


def test_min_p_comes_last(student, variant, seed):
    """min-p looks at what top-p has left: the mass of top-p is counted without it."""
    logits = [math.log(p) for p in (0.3, 0.2, 0.15, 0.12, 0.1, 0.06, 0.04, 0.03)]
    _judge(
        student,
        _raised(logits, seed),
        [],
        "top-p counts the whole mass, then min-p cuts",
        top_p=0.75,
        min_p=0.3,
    )
    _judge(
        student,
        _raised(logits, seed),
        [],
        "top-p counts the whole mass, then min-p cuts",
        top_p=0.6,
        min_p=0.45,
    )


def test_nothing_left(student, variant, seed):
    """The quota is lifted where it would ban every allowed token; `allowed` stays."""
    logits = [1.0, 3.0, 2.0, 0.0, -1.0, 4.0, 0.5, 0.25]
    why = "tokens 1 and 2 alone are allowed and both are spent"
    _judge(student, _raised(logits, seed), [1, 2, 1, 2], why, allowed=[1, 2], quota=1, span=4)
    _judge(
        student,
        _raised(logits, seed),
        [1, 2, 1, 2],
        why,
        allowed=[1, 2],
        quota=2,
        span=4,
        temperature=0,
    )
    _judge(
        student,
        _raised(logits, seed),
        list(range(VOCAB)),
        "every token is spent",
        quota=1,
        span=VOCAB,
    )
    _judge(
        student, _raised(logits, seed), [0, 1, 5], "a span of 0 tokens holds none", quota=1, span=0
    )
    _judge(
        student,
        _raised(logits, seed),
        [1, 2, 1],
        "token 2 is not spent",
        allowed=[1, 2],
        quota=2,
        span=4,
    )


def test_ties(student, variant):
    """Equal logits are ordered by token id at the edges of top-k, top-p and at the top."""
    flat = [0.0] * VOCAB
    _judge(student, flat, [], "the four smallest ids", top_k=4)
    _judge(student, flat, [], "five tokens reach 0.6", top_p=0.6)
    _judge(student, flat, [0], "the smallest id that is not banned", temperature=0, quota=1, span=1)
    # Eighths are exact in binary, so the edge itself can be judged: four tokens hold 0.5.
    want = np.array([0.25] * 4 + [0.0] * (VOCAB - 4))
    student.expect(
        "distribution", np.array(flat), [], NEUTRAL | {"top_p": 0.5},
        want=want, tolerance=TOLERANCE, because="four tokens hold exactly 0.5",
    )  # fmt: skip


def _eighths(weights):
    """As many whole numbers as there are weights, none for none, with the sum 8."""
    parts = [min(w, 1) for w in weights]
    parts = [p if sum(parts[:i]) < 8 else 0 for i, p in enumerate(parts)]
    parts[parts.index(1)] += 8 - sum(parts)
    return parts


@given(
    weights=st.lists(st.integers(0, 6), min_size=1, max_size=9).filter(any),
    u=st.floats(0, 1, exclude_max=True),
)
def test_draw(student, variant, weights, u):
    """The token at u on the line, over all u as often as its probability says."""
    total = sum(weights)
    probabilities = [w / total for w in weights]
    for number in (u, 0.0, 1 - 2**-40):
        try:
            want = draw(probabilities, number)
        except TooClose:
            continue
        student.expect("draw", np.array(probabilities), number, want=want)
    # Eighths are exact in binary, so u can be the very border between two tokens.
    eighths = [w / 8 for w in _eighths(weights)]
    for border in range(8):
        want = sum(sum(eighths[: i + 1]) <= border / 8 for i in range(len(eighths)))
        student.expect("draw", np.array(eighths), border / 8, want=want, because="exceeds u")
    last = max(i for i, w in enumerate(weights) if w)
    short = np.array([p * 0.999 for p in probabilities])
    student.expect("draw", short, 0.9995, want=last, because="the sum, 0.999, is below u")
