"""Hidden tests of `Admission`, one rule a variant."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from .bucket_oracle import BURSTS, DAYS, RATES, Oracle


def _judge(student, variant, rate, burst, day):
    bucket, oracle, now = student.new("Admission", rate, burst), Oracle(rate, burst, variant), 0
    for client, tokens, pause in day:
        now += pause
        let_in = oracle.admit(client, tokens, now)
        bucket.expect("admit", client, tokens, now, want=let_in)
        if variant == "refund" and let_in:
            oracle.finish(client, tokens // 2)
            bucket.expect("finish", client, tokens // 2, want=None)
        bucket.expect("level", client, want=oracle.level(client))


@given(rate=RATES, burst=BURSTS, more=st.integers(1, 9))
def test_at_the_edge(student, variant, rate, burst, more):
    """The rule where the bucket is just full, just empty, or holds less than a token."""
    bucket = student.new("Admission", rate, burst)
    bucket.expect("admit", "ada", burst, 0, want=True)
    if variant == "refund":
        bucket.expect("finish", "ada", burst + more, want=None)
        bucket.expect("level", "ada", want=1000 * burst)
    elif variant == "debt":
        bucket.expect("admit", "ada", more, 0, want=False, because="the bucket is empty")
        bucket.expect("admit", "ada", more, 1, want=True, because="a part of a token is there")
        bucket.expect("level", "ada", want=rate - 1000 * more)
    else:
        bucket.expect("admit", "ada", more, 1, want=False)
        bucket.expect("level", "ada", want=0, because="less than a token was left")


@given(rate=RATES, burst=BURSTS, day=DAYS)
def test_any_day(student, variant, rate, burst, day):
    """Any order of clients, sizes and pauses."""
    _judge(student, variant, rate, burst, day)


@given(rate=RATES, burst=BURSTS, day=DAYS)
def test_whole_notebook(student, variant, rate, burst, day):
    """The same on your own task 1."""
    _judge(student, variant, rate, burst, day)
