"""Hidden tests of `decode_step`: logits and cache against a step without slots."""

from __future__ import annotations

import functools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from .decoder_oracle import empty_cache, random_case, slots_by_position, step

TOLERANCE = 1e-8
TEXTS = 6  # each with sinks and a window of its own
SEEDS = st.integers(0, 10_000)


def _run(student, weights, config, cache, token_id, position):
    """Call the student; return logits and the cache as it was left."""
    logits, (after,) = student.call_returning(
        [2], "decode_step", weights, config, cache, token_id, position
    )
    return logits, after


def _kept(config, cache, position):
    """The tokens before `position` that attention sees at it, as (key, value) a layer."""
    stays = [slot for p, slot in slots_by_position(config, position) if p != position]
    return [
        [(cache["k"][layer, slot], cache["v"][layer, slot]) for slot in stays]
        for layer in range(len(cache["k"]))
    ]


@functools.cache  # every submission of a course is asked the same
def _case(seed, position, **sizes):
    """Weights, config, cache, and the logits after token `seed % 11` at `position`."""
    weights, config = random_case(seed, **sizes)
    cache = empty_cache(weights, config, seed)
    want, _ = step(weights, config, _kept(config, cache, position), seed % 11)
    return weights, config, cache, want


def _judge_logits(student, seed, position, **sizes):
    weights, config, cache, want = _case(seed, position, **sizes)
    got, _ = _run(student, weights, config, cache, seed % 11, position)
    call = (
        f"decode_step on a random decoder with sinks={config['sinks']}, "
        f"window={config['window']}, position={position}"
    )
    student.compare(call, got, want, TOLERANCE)


def test_first_token(student, variant, seed):
    """The first token of a text attends to itself alone."""
    for number in range(3):
        _judge_logits(student, seed + number, 0, sinks=2, window=3)


@given(seed=SEEDS, position=st.integers(1, 30))
def test_filled_cache(student, variant, seed, position):
    """Any position, sinks and window: the right tokens, rotated by rank."""
    _judge_logits(student, seed, position)


@given(seed=SEEDS, position=st.integers(0, 6))
def test_stale_slots(student, variant, seed, position):
    """Slots not written yet change nothing, whatever lies in them."""
    _judge_logits(student, seed, position, sinks=2, window=7)
    weights, config, cache, want = _case(seed, position, sinks=2, window=7)
    unused = sorted(set(range(9)) - {slot for _, slot in slots_by_position(config, position)})
    other = {name: array.copy() for name, array in cache.items()}
    for array in other.values():
        array[:, unused] = 1e3
    got, _ = _run(student, weights, config, other, seed % 11, position)
    call = f"decode_step at position {position}, twice, with other numbers in slots {unused}"
    student.compare(call, got, want, TOLERANCE, "unused slots must not count")


@given(seed=SEEDS, position=st.integers(0, 30))
def test_writes_one_slot(student, variant, seed, position):
    """Key (unrotated) and value land in the token's slot; every other slot stays."""
    weights, config = random_case(seed)
    cache = empty_cache(weights, config, seed)
    _, fresh = step(weights, config, _kept(config, cache, position), 5)
    slot = dict(slots_by_position(config, position))[position]
    want = {name: array.copy() for name, array in cache.items()}
    for layer, (key, value) in enumerate(fresh):
        want["k"][layer, slot], want["v"][layer, slot] = key, value
    _, after = _run(student, weights, config, cache, 5, position)
    call = (
        f"decode_step with sinks={config['sinks']}, window={config['window']}, "
        f"position={position}, then looked at the cache"
    )
    student.compare(call, after, want, TOLERANCE, f"only slot {slot} changes")


@functools.cache
def _text(seed):
    """Weights, config and empty cache; twenty tokens, and the logits after each."""
    weights, config = random_case(seed)
    sinks, window = config["sinks"], config["window"]
    tokens = np.random.default_rng(seed).integers(0, 11, 20).tolist()
    history = [[] for _ in weights["layers"]]
    wanted = []
    for token_id in tokens:
        kept = [
            row[:sinks] + row[sinks:][max(0, len(row) - sinks - window + 1) :]
            if window > 1
            else row[:sinks]
            for row in history
        ]
        want, fresh = step(weights, config, kept, token_id)
        wanted.append(want)
        for row, pair in zip(history, fresh, strict=True):
            row.append(pair)
    return weights, config, empty_cache(weights, config, seed), tokens, wanted


def test_whole_text(student, variant, seed):
    """Twenty tokens one after another, on the cache that the code itself has filled."""
    for number in range(TEXTS):
        weights, config, cache, tokens, wanted = _text(seed + number)
        for position, (token_id, want) in enumerate(zip(tokens, wanted, strict=True)):
            got, cache = _run(student, weights, config, cache, token_id, position)
            call = (
                f"decode_step for token {position} of a text, sinks={config['sinks']}, "
                f"window={config['window']}"
            )
            student.compare(call, got, want, TOLERANCE)
