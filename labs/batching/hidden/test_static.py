"""Hidden tests of `StaticScheduler`, beside an oracle."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from labkit.grading.twin import Twin

from .static_oracle import StaticOracle


def entries_of(step):
    """What a step computes, without its padding: that is judged by one test."""
    return step.get("entries") if type(step) is dict else step


SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=7)


def _server(student, seats, sizes=()):
    twin = Twin(student, StaticOracle(seats), seats)
    for i, (prompt, output) in enumerate(sizes):
        twin.call("add", f"r{i}", prompt, output)
    return twin


def _plan(twin):
    return twin.call("schedule", view=entries_of)["entries"]


def _run(twin, steps):
    for _ in range(steps):
        _plan(twin)
        twin.call("update", [])


@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=6), seats=st.integers(1, 3))
def test_one_batch_after_another(student, variant, lengths, seats):
    """Whoever comes while a batch runs waits until it is through; then the next is formed."""
    twin = _server(student, seats, [(3, output) for output in lengths])
    for step in range(14):
        entries = _plan(twin)
        if step == 1:
            twin.call("add", "late", 3, 2)
        # The first of each batch to be listed ends one step early, if it has not ended.
        twin.call("update", [entries[0][0]] if step == 2 and entries else [])


@given(sizes=SIZES, seats=st.integers(1, 4))
@example(sizes=[(5, 1), (9, 1), (3, 1), (7, 1), (5, 1)], seats=3)
@example(sizes=[(5, 1), (7, 1), (3, 1)], seats=2)
def test_nearest_prompts(student, variant, sizes, seats):
    """The oldest, and those whose prompts are nearest to its own, the older of equals."""
    twin = _server(student, seats, sizes)
    for _ in range(30):
        entries = _plan(twin)
        if not entries:
            break
        twin.call("update", [name for name, _, _ in entries])


@given(sizes=SIZES, seats=st.integers(1, 4))
@example(sizes=[(1, 1), (4, 3)], seats=2)
def test_padding(student, variant, sizes, seats):
    """Rows shorter than the longest, and rows that have finished, are computed for nothing."""
    twin = _server(student, seats, sizes)
    for step in range(12):
        entries = twin.call("schedule")["entries"]
        # Now and then the last listed ends early.
        twin.call("update", [name for name, _, _ in entries[-1:]] if step % 3 == 1 else [])


def test_answers_together(student, variant):
    """Nobody is answered before the last has finished; then all are, in order of arrival."""
    twin = _server(student, 3, [(2, 3), (2, 1), (2, 9)])
    _run(twin, 1)
    _plan(twin)
    twin.call("update", ["r2"])
    twin.call("add", "r3", 2, 1)
    _run(twin, 3)
    twin.call("add", "r0", 2, 1, because="an answered request may come again")
    _run(twin, 2)


@given(sizes=SIZES, seats=st.integers(1, 3), again=st.lists(st.integers(0, 6), max_size=3))
@example(sizes=[(2, 1), (2, 3), (2, 1)], seats=2, again=[0, 1, 2])
def test_refuses(student, variant, sizes, seats, again):
    """A request that waits, runs or has finished unanswered is refused; an answered one is not."""
    twin = _server(student, seats, sizes)
    for step in range(4):
        for i in again:
            twin.call("add", f"r{i % len(sizes)}", 1 + step, 2)
        _plan(twin)
        for i in again:
            twin.call("add", f"r{i % len(sizes)}", 1 + step, 2)
        twin.call("update", [])
    _run(twin, 4)
