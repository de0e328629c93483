"""Hidden tests of `Layer`, beside products in plain loops and in quire."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from .in_quire import engine
from .layer_oracle import eight_bits, products, random_layer, size_of

TOLERANCE = 1e-9
NUMBERS = st.integers(0, 10_000)
INPUTS = st.sampled_from(["plain", "token"])


def _inputs(rng, tokens, columns):
    sizes = [rng.choice((0.001, 1.0, 300.0)) for _ in range(tokens)]
    return np.array([[rng.gauss(0, 1) * size for _ in range(columns)] for size in sizes])


def _judge(student, variant, shards, weights, x, inputs, because=""):
    layer = student.new("Layer", shards, inputs)
    want = products(variant, x, weights, inputs)
    layer.expect("apply", x, want=want, tolerance=TOLERANCE, because=because)
    return layer


@given(number=NUMBERS, inputs=INPUTS)
@example(number=1, inputs="plain")
@example(number=2, inputs="token")
def test_product(student, variant, number, inputs):
    """Products of one to four tokens with the rows of all shards; other inputs are refused."""
    rng = random.Random(number)
    shards, weights = random_layer(variant, rng)
    x = _inputs(rng, rng.randint(1, 4), weights.shape[1])
    layer = _judge(student, variant, shards, weights, x, inputs)
    want = products(variant, x[:1], weights, inputs)
    layer.expect("apply", x[:1], want=want, tolerance=TOLERANCE, because="a second call")
    student.refuses("Layer", shards, "tensor", because="inputs are plain or token")
    other = {**shards[0], "bits": shards[0]["bits"] + 1}
    student.refuses("Layer", [*shards, other], inputs, because="fuse refuses these shards")


@given(number=NUMBERS)
@example(number=1)
@example(number=2)
def test_tokens_by_themselves(student, variant, number):
    """Tokens of very unlike sizes, a token of zeros, halves; the argument stays as it is."""
    rng = random.Random(number)
    shards, weights = random_layer(variant, rng, columns=rng.randint(4, 9))
    columns = weights.shape[1]
    x = _inputs(rng, 4, columns) * np.array([[1e-3], [1.0], [1e3], [0.0]])
    layer = _judge(student, variant, shards, weights, x, "token", "the last token is all 0")
    halves = [[rng.choice((-1, 1)) * (rng.randrange(12) + 0.5) for _ in range(columns)]
              for _ in range(2)]  # fmt: skip
    for row in halves:
        row[rng.randrange(columns)] = rng.choice((-127.0, 127.0))
    x = np.array(halves) * np.array([[0.25], [8.0]])
    why = f"the first token is rounded to {eight_bits(variant, x[0])}"
    _judge(student, variant, shards, weights, x, "token", why)
    alone = products(variant, x[1:], weights, "token")
    layer.expect("apply", x[1:], want=alone, tolerance=TOLERANCE, because="the other one alone")


@given(number=NUMBERS)
def test_bytes(student, variant, number):
    """Words, words of zeros, scales; shards without zeros, blocks of several rows."""
    rng = random.Random(number)
    shards, _ = random_layer(variant, rng)
    student.new("Layer", shards, "plain").expect("bytes", want=size_of(shards))
    shards, _ = random_layer(variant, rng, has_zeros=False)
    layer = student.new("Layer", shards, "token")
    layer.expect("bytes", want=size_of(shards), because="no shard has zeros")


def _served(student, variant, seed):
    made = engine(variant)
    for inputs in ("plain", "token"):
        layers = [student.new("Layer", shards, inputs) for shards in made.shards]

        def ask(number, x, layers=layers, inputs=inputs):
            if inputs == "plain":
                want = x @ made.weights[number].T
            else:
                # np's own rounding: no number of a model lies on a half
                step = np.abs(x).max(1, keepdims=True) / 127
                step[step == 0] = 1
                want = (np.round(x / step) * step) @ made.weights[number].T
            got = layers[number].call("apply", x)
            words = f"Layer(shards of layer {number} of quire-mini-draft, {inputs!r}).apply(x)"
            student.compare(words, got, want, 1e-6)
            return want

        tokens = made.tokens(ask, seed)
        assert all(tokens)


def test_in_quire(student, variant, seed):
    """A `Layer` in each linear layer of quire-mini-draft."""
    _served(student, variant, seed)


def test_whole_notebook(student, variant, seed):
    """The same with your own `unpack` and `fuse`."""
    _served(student, variant, seed)
