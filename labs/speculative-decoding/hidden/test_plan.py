"""Hidden tests of `plan`, beside an oracle that tries everything."""

from __future__ import annotations

import functools
import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from labkit.reader.values import describe

from .plan_oracle import plan

RULES = {
    "pair": "every place has two candidates",
    "grammar": "a forced place has the chance 1",
    "quota": "all requests of a client together have at most its quota",
}
FLAT = [0, *range(1000, 1400)]  # a row costs a thousandth of a step: as many drafts as there are


def record(variant, drafted, kept, ranks=0):
    """A step that kept so many drafts; the bits of `ranks` say of which rank each was."""
    kept = min(drafted, kept)
    return [drafted, [ranks >> i & 1 for i in range(kept)] if variant == "pair" else kept]


def request(variant, most, records, client="a", quota=99, forced=()):
    """One request; a record is (drafted, kept) or (drafted, kept, ranks)."""
    fields = {"most": most, "history": [record(variant, *one) for one in records]}
    if variant == "grammar":
        fields["forced"] = list(forced)
    elif variant == "quota":
        fields |= {"client": client, "quota": quota}
    return fields


def _judge(student, variant, costs, requests, recent=99, because=""):
    want = plan(variant, costs, requests, recent)
    said = functools.partial(_said, costs, requests, recent)
    student.expect("plan", costs, requests, recent, want=want, because=because, said=said)


def _said(costs, requests, recent):
    """The call in words: all of each request."""
    shown = [", ".join(f"{key} {value}" for key, value in one.items()) for one in requests]
    return f"plan with recent {recent}, costs {describe(costs)}, requests: " + "; and ".join(shown)


def _costs(base, *more):
    """Times of 0, 1, 2, … rows: a base, and what each row adds."""
    return [0, *(base + step for step in itertools.accumulate(more))]


RECORDS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 15)), min_size=0, max_size=8
)
STEPS = st.lists(st.integers(0, 6), min_size=3, max_size=10)


@given(records=RECORDS, base=st.integers(5, 30), steps=STEPS)
@example(records=[(3, 1), (3, 1), (3, 1), (3, 3)], base=9, steps=[0, 5, 5, 5])
@example(records=[(3, 0), (3, 0), (3, 0), (3, 3), (3, 3)], base=9, steps=[0, 3, 3, 3])
@example(records=[(1, 1), (1, 1), (1, 1), (2, 2)], base=9, steps=[0, 4, 4])
@example(records=[(2, 1), (2, 1), (1, 1)], base=9, steps=[0, 3, 3, 3])
@example(records=[(4, 2), (4, 2), (4, 4, 15), (4, 3, 2)], base=20, steps=[0, 7, 7, 7, 7])
def test_judged_only(student, variant, records, base, steps):
    """Drafts behind a wrong one, and places that were not drafted, say nothing of their place."""
    _judge(student, variant, _costs(base, *steps), [request(variant, 3, records)])


@given(records=RECORDS, base=st.integers(5, 30), steps=STEPS)
@example(records=[(2, 2)] * 6 + [(2, 0)] * 3, base=9, steps=[0, 4, 4])
@example(records=[(2, 0)] * 6 + [(2, 2)] * 3, base=9, steps=[0, 4, 4])
@example(records=[(2, 2), (2, 0), (0, 0), (0, 0)], base=9, steps=[0, 4, 4])
def test_recent(student, variant, records, base, steps):
    """Old records do not count; a step that drafted nothing is a record."""
    for recent in (1, 2, 3, 5):
        _judge(student, variant, _costs(base, *steps), [request(variant, 2, records)], recent)


@given(
    histories=st.lists(RECORDS, min_size=2, max_size=3), base=st.integers(5, 40), steps=STEPS
)  # fmt: skip
@example(
    histories=[[(2, 2)] * 4, [(2, 0)] * 4], base=20, steps=[0, 1, 4, 4, 4, 4]
)  # the second of one is better than the first of the other
@example(histories=[[(2, 0)] * 4, [(2, 1)] * 4, [(2, 2)] * 4], base=20, steps=[0, 1, 1, 6, 6, 6, 6])
def test_values(student, variant, histories, base, steps):
    """The drafts of the step compete: what counts is their value, whoever's they are."""
    requests = [request(variant, 2, records) for records in histories]
    _judge(student, variant, _costs(base, 0, 0, *steps), requests)


@given(
    number=st.integers(1, 3), base=st.integers(5, 30),
    steps=st.lists(st.integers(0, 25), min_size=3, max_size=9),
)  # fmt: skip
@example(number=1, base=10, steps=[0, 9, 0, 0, 0])
@example(number=1, base=10, steps=[0, 0, 9, 0, 0, 0, 20])
@example(number=2, base=10, steps=[0, 0, 20, 0, 0])
@example(number=2, base=10, steps=[0, 0])
def test_costs(student, variant, number, base, steps):
    """Times that jump: a step of more rows can be better than one of fewer; some have no time."""
    records = [(3, 3, 2), (3, 3), (3, 1), (3, 2, 1), (3, 3)]
    requests = [request(variant, 3, records[i:]) for i in range(number)]
    _judge(student, variant, _costs(base, *steps, *[0] * (number > len(steps))), requests)


@given(
    which=st.lists(st.integers(0, 1), min_size=2, max_size=3), base=st.integers(4, 12),
    steps=STEPS,
)  # fmt: skip
@example(which=[0, 0], base=10, steps=[0, 0, 0, 99])
@example(which=[0, 0], base=10, steps=[0, 0, 0, 0, 0, 99])
@example(which=[1, 1, 0], base=10, steps=[0, 0, 0, 0, 99])
@example(which=[0, 0, 0], base=6, steps=[0, 0, 0, 1, 1, 1, 9])
def test_ties(student, variant, which, base, steps):
    """Equal values go to the request listed first, equal rates to the fewest drafts."""
    histories = ([], [(2, 1), (2, 1), (1, 0), (1, 0)])
    requests = [request(variant, 2, histories[i]) for i in which]
    _judge(student, variant, _costs(base, *steps, 0, 0), requests)
    # One draft more brings exactly what it costs: 1 / 6 = (3 / 2) / 9, or (4 / 3) / 8.
    for costs in ([0, 6, 9], [0, 6, 8], [0, 12, 18, 21, 30]):
        _judge(student, variant, costs, [request(variant, 2, [])])
    # The second draft of the first request and the first of the second are both worth 1/2.
    equal = [request(variant, 2, [(2, 2), (1, 1)]), request(variant, 2, [])]
    why = "" if variant == "pair" else "the values are 3/4, 1/2 and 1/2, two of them of the first"
    _judge(student, variant, [0, 9, 10, 10, 10, 99, 99], equal, because=why)
    # Two drafts are exactly worth the time that they add; in floats they seem to be worth more.
    _judge(student, variant, [0, 9, 16, 15], [request(variant, 2, [(2, 1), (3, 0)])])


@given(
    histories=st.lists(RECORDS, min_size=2, max_size=4),
    numbers=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    base=st.integers(5, 40), steps=STEPS,
)  # fmt: skip
@example(histories=[[(2, 2)] * 4, [], [(2, 2)] * 4], numbers=[1, 2, 1, 0], base=50, steps=[0] * 8)
@example(histories=[[], [], []], numbers=[2, 2, 2, 0], base=50, steps=[0] * 8)
@example(histories=[[(2, 0)] * 6, []], numbers=[1, 0, 0, 0], base=20, steps=[3, 3, 6, 6, 6])
@example(histories=[[(2, 2)] * 4, [], [(2, 2)] * 4], numbers=[1, 2, 1, 0], base=50, steps=[0, 0])
@example(histories=[[(2, 0)] * 4, [(2, 2)] * 4], numbers=[0, 0, 0, 0], base=50, steps=[0] * 8)
def test_rule_of_the_variant(student, variant, histories, numbers, base, steps):
    """Trees, forced places, or quotas."""
    requests = []
    for i, records in enumerate(histories):
        client = "ab"[i % 2]
        requests.append(
            request(
                variant, 2, records, client, numbers[i % 2],
                forced=[p for p in (0, 1) if numbers[i] >> p & 1],
            )
        )  # fmt: skip
    costs = _costs(base, 0, 0, 0, *steps)
    _judge(student, variant, costs, requests, because=RULES[variant])
    _judge(student, variant, FLAT, requests, because=RULES[variant])


@given(
    histories=st.lists(RECORDS, max_size=3), most=st.integers(0, 3), base=st.integers(1, 40),
    steps=STEPS, recent=st.integers(1, 9),
)  # fmt: skip
@example(histories=[], most=2, base=5, steps=[0, 0, 0], recent=3)
def test_any_step(student, variant, histories, most, base, steps, recent):
    """Any step, one without requests included; nothing of it is changed."""
    requests = [
        request(variant, (most + i) % 4, records, "ab"[i % 2], 1 + most, forced=[i])
        for i, records in enumerate(histories)
    ]
    args = (_costs(base, 0, *steps), requests, recent)
    student.expect_pure("plan", *args, want=plan(variant, *args))
