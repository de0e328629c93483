"""Hidden tests of `propose`, beside an oracle."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from .propose_oracle import propose

NEVER = 99  # a separator that no text holds


def _judge(student, tokens, longest, shortest, k, separator=NEVER, because=""):
    args = (tokens, longest, shortest, separator, k)
    student.expect("propose", *args, want=propose(*args), because=because)


def _texts(most, low=8, high=40):
    return st.lists(st.integers(1, most), min_size=low, max_size=high)


@given(text=_texts(3, 12), k=st.integers(1, 4))
@example(text=[1, 2, 1, 2, 1, 3, 1], k=1)
@example(text=[1, 3, 1, 2, 1, 2, 1, 3, 4, 1], k=2)
@example(text=[1, 1, 1, 2, 1, 1, 1], k=3)
def test_most_frequent(student, variant, text, k):
    """All places vote, and the token that followed most often is drafted."""
    _judge(student, text, 1, 1, k)


@given(text=_texts(5, 9, 24), size=st.integers(1, 2))
@example(text=[1, 3, 1, 2, 1], size=1)
@example(text=[1, 2, 1, 3, 1], size=1)
@example(text=[1, 2, 1, 3, 1, 3, 1, 2, 1], size=1)
@example(text=[1, 2, 1, 3, 1, 2, 1, 3, 4, 5, 1], size=1)
def test_ties(student, variant, text, size):
    """Of tokens that followed equally often the one that did so latest is drafted."""
    _judge(student, text, size, size, 1)


@given(text=_texts(3, 8, 30), longest=st.integers(2, 4), k=st.integers(1, 3))
@example(text=[1, 2, 5, 2, 6, 2, 6, 1, 2], longest=2, k=1)
@example(text=[4, 2, 6, 2, 6, 1, 2], longest=2, k=1)
@example(text=[3, 1, 2, 4, 1, 2, 5, 1, 2, 5, 3, 1, 2], longest=3, k=1)
@example(text=[1, 2], longest=4, k=2)
@example(text=[1, 1], longest=3, k=3)
@example(text=[2], longest=1, k=2)
@example(text=[2, 3, 2, 4, 2], longest=2, k=4)
def test_longest_end_decides(student, variant, text, longest, k):
    """One place of a longer end outvotes many of a shorter; a shorter one serves if need be."""
    for shortest in range(1, longest + 1):
        _judge(student, text, longest, shortest, k)


@given(text=_texts(3, 3, 14), longest=st.integers(1, 3), k=st.integers(3, 8))
@example(text=[1, 2, 3, 1], longest=2, k=8)
@example(text=[1, 1], longest=2, k=4)
@example(text=[2, 1, 1, 3, 1], longest=1, k=6)
@example(text=[5, 6, 7, 5, 8, 5, 6], longest=2, k=6)
@example(text=[1, 2, 1, 3, 1, 3, 2, 1], longest=1, k=5)
def test_found_anew(student, variant, text, longest, k):
    """Each draft moves the end, and all places of the new end vote."""
    _judge(student, text, longest, 1, k)


@given(
    text=st.lists(st.integers(0, 2), min_size=4, max_size=24), longest=st.integers(1, 3),
    k=st.integers(1, 4),
)  # fmt: skip
@example(text=[1, 0, 1, 2, 1, 0, 1], longest=1, k=2)
@example(text=[1, 2, 0, 1, 2, 3, 0, 2], longest=2, k=3)
@example(text=[0, 1, 2, 0], longest=2, k=3)
@example(text=[0, 1, 5, 1, 6, 0, 1], longest=2, k=1)
@example(text=[1, 2, 0, 1, 2, 5, 1], longest=1, k=4)
@example(text=[4, 0, 4, 1, 4, 2, 4], longest=1, k=1)
@example(text=[1, 2, 0, 1, 2, 0, 1, 2, 3, 1, 2], longest=2, k=1)
@example(text=[5, 0, 5], longest=1, k=1)
def test_separator(student, variant, text, longest, k):
    """No end reaches over a separator, and none is drafted; its votes count."""
    _judge(student, text, longest, 1, k, separator=0)


@given(
    text=st.lists(st.integers(0, 3), max_size=30), shortest=st.integers(1, 3),
    more=st.integers(0, 3), k=st.integers(0, 6), separator=st.integers(0, 4),
)  # fmt: skip
@example(text=[], shortest=1, more=1, k=3, separator=0)
@example(text=[1, 1, 1], shortest=1, more=0, k=0, separator=0)
@example(text=[3], shortest=1, more=3, k=2, separator=0)
@example(text=[1, 1], shortest=2, more=3, k=2, separator=0)
def test_any_text(student, variant, text, shortest, more, k, separator):
    """Any text, the empty one included; it is what it was."""
    args = (text, shortest + more, shortest, separator, k)
    student.expect_pure("propose", *args, want=propose(*args))
