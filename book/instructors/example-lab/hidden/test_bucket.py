"""Hidden tests of `TokenBucket`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from .bucket_oracle import BURSTS, DAYS, RATES, Oracle


@given(rate=RATES, burst=BURSTS)
def test_first_request(student, variant, rate, burst):
    """A client that is new has the whole burst, at any hour."""
    bucket = student.new("TokenBucket", rate, burst)
    bucket.expect("level", "ada", want=1000 * burst)
    bucket.expect("admit", "ada", burst + 1, 60_000, want=False)
    bucket.expect("admit", "ada", burst, 60_000, want=True)
    bucket.expect("level", "ada", want=0)


@given(rate=RATES, burst=BURSTS, times=st.integers(1, 5))
def test_refusal_is_free(student, variant, rate, burst, times):
    """Asking for too much, again and again, costs nothing."""
    bucket = student.new("TokenBucket", rate, burst)
    for _ in range(times):
        bucket.expect("admit", "ada", burst + 1, 0, want=False)
    bucket.expect("level", "ada", want=1000 * burst)


@given(rate=RATES, burst=BURSTS)
def test_clients_are_apart(student, variant, rate, burst):
    """A client pays for itself alone."""
    bucket = student.new("TokenBucket", rate, burst + 1)
    bucket.expect("admit", "ada", burst, 0, want=True)
    bucket.expect("admit", "bob", burst, 0, want=True)
    bucket.expect("admit", "ada", 2, 0, want=False, because="ada has one token left")


@given(rate=RATES, gap=st.integers(1, 40))
def test_refill_is_exact(student, variant, rate, gap):
    """Many small waits are worth as much as one long one."""
    bucket = student.new("TokenBucket", rate, 11)
    bucket.expect("admit", "ada", 10, 0, want=True)
    for number in range(1, 8):
        bucket.expect("admit", "ada", 11, number * gap, want=False)
        bucket.expect("level", "ada", want=1000 + rate * gap * number)


@given(rate=RATES, burst=BURSTS, put=st.integers(-30_000, 30_000))
def test_change(student, variant, rate, burst, put):
    """A level is moved down without end and up to the brim."""
    bucket = student.new("TokenBucket", rate, burst)
    bucket.expect("admit", "ada", burst, 0, want=True)
    bucket.expect("change", "ada", put, want=None)
    bucket.expect("level", "ada", want=min(put, 1000 * burst))
    bucket.expect("admit", "ada", 0, 0, want=put >= 0)


@given(rate=RATES, burst=BURSTS, day=DAYS)
def test_any_day(student, variant, rate, burst, day):
    """Any order of clients, sizes and pauses."""
    bucket, oracle, now = student.new("TokenBucket", rate, burst), Oracle(rate, burst), 0
    for client, tokens, pause in day:
        now += pause
        bucket.expect("admit", client, tokens, now, want=oracle.admit(client, tokens, now))
        bucket.expect("level", client, want=oracle.level(client))
