"""Hidden tests of task 4: replicas, ring attention or a pipeline, by variant."""

from __future__ import annotations

import random

from hypothesis import example, given
from hypothesis import strategies as st

from . import deep_experts, deep_pipeline, deep_ring

NUMBERS = st.integers(0, 10_000)
DEEP = {"experts": deep_experts, "ring": deep_ring, "pipeline": deep_pipeline}


@given(number=NUMBERS)
@example(number=1)
@example(number=2)
def test_shares(student, variant, number):
    """`share` on random sizes, and on sizes that tie."""
    DEEP[variant].shares(student, random.Random(number))


@given(number=NUMBERS)
@example(number=3)
@example(number=4)
def test_exchange(student, variant, number):
    """What ranks give to one another, and in which order."""
    DEEP[variant].exchange(student, random.Random(number))


@given(number=NUMBERS)
@example(number=5)
@example(number=6)
def test_result(student, variant, number):
    """What `work` gives in the end."""
    DEEP[variant].result(student, random.Random(number))


@given(number=NUMBERS)
@example(number=7)
@example(number=8)
def test_edges(student, variant, number):
    """Nothing, one of it, too much of it."""
    DEEP[variant].edges(student, random.Random(number))
