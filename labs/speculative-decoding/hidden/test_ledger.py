"""Hidden tests of `Ledger`, beside an oracle: a day each, with the calls that the rule needs."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from labkit.grading.twin import Twin

from .ledger_oracle import LedgerOracle

DAYS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=2, max_size=8)


class Day:
    """A ledger and its requests."""

    def __init__(self, student, block_size=4, max_len=200):
        self.twin = Twin(student, LedgerOracle(block_size, max_len), block_size, max_len)
        self.number = 100  # of the next token that is like no other

    def call(self, *args, because=""):
        return self.twin.call(*args, because=because)

    def fresh(self, count):
        self.number += count
        return list(range(self.number - count, self.number))

    def add(self, request, count):
        self.call("add", request, self.fresh(count))

    def plan(self, request, drafts=0, budget=99):
        """Plan with so many drafts."""
        return self.call("plan", request, self.fresh(drafts), budget)

    def look(self, request, draft_model=False):
        self.call("state", request)
        if draft_model:
            self.call("behind", request)

    def settle(self, planned, kept=0, because="", same=False):
        """Settle a step that kept so many of its drafts; with `same` the last is the next draft."""
        step, _, computed, drafted, samples = planned
        tokens = []
        if samples:
            drafts = computed[len(computed) - drafted :]
            kept = min(kept, len(drafts))
            tokens = drafts[:kept]
            tokens += drafts[kept : kept + 1] if same and kept < len(drafts) else self.fresh(1)
        return self.call("settle", step, tokens, because=because)


@given(prompt=st.integers(1, 9), day=DAYS)
@example(prompt=5, day=[(3, 0), (3, 3), (2, 1), (0, 0)])
def test_rollback(student, variant, prompt, day):
    """The counter goes back behind the drafts that were kept, and the next step starts there."""
    steps = Day(student, block_size=100)
    steps.add("a", prompt)
    for drafts, kept in day:
        planned = steps.plan("a", drafts)
        steps.look("a")
        steps.settle(planned, kept)
        steps.look("a")


@given(prompt=st.integers(1, 12), day=DAYS, block=st.integers(1, 5))
@example(prompt=6, day=[(2, 0), (0, 0)], block=4)
@example(prompt=3, day=[(1, 0), (0, 0)], block=4)
@example(prompt=3, day=[(1, 1), (0, 0)], block=4)
@example(prompt=4, day=[(4, 4), (4, 0), (4, 4)], block=2)
def test_publish_last(student, variant, prompt, day, block):
    """A block is published once, with known tokens only, when its last position is computed."""
    steps = Day(student, block_size=block)
    steps.add("a", prompt)
    for drafts, kept in day:
        why = "no position of a rejected draft, nor that of the last token, is published"
        steps.settle(steps.plan("a", drafts), kept, because=why)
    planned = steps.plan("a", 3)
    steps.settle(planned, 1, same=True, because="the last token was chosen, not kept")
    steps.settle(steps.plan("a"))


@given(prompt=st.integers(5, 20), budgets=st.lists(st.integers(1, 7), min_size=2, max_size=8))
@example(prompt=8, budgets=[4, 4, 3])
@example(prompt=8, budgets=[4, 3, 3, 2, 1])
@example(prompt=5, budgets=[7, 3])
def test_chunks(student, variant, prompt, budgets):
    """A step that does not reach the last known token computes no drafts; the budget cuts them."""
    steps = Day(student, block_size=3)
    steps.add("a", prompt)
    for i, budget in enumerate(budgets):
        planned = steps.plan("a", 3, budget)
        steps.look("a")
        steps.settle(planned, i % 3)
        steps.look("a")


@given(max_len=st.integers(6, 14), prompt=st.integers(1, 6), drafts=st.integers(1, 5))
@example(max_len=8, prompt=5, drafts=3)
@example(max_len=6, prompt=6, drafts=2)
def test_length_limit(student, variant, max_len, prompt, drafts):
    """With all drafts kept and one token more a request has at most `max_len` tokens.

    The draft model has computed drafts that were left out, and none where the plan was refused.
    """
    steps = Day(student, max_len=max_len)
    steps.add("a", prompt)
    for i in range(9):
        planned = steps.plan("a", drafts)
        steps.look("a", draft_model=True)
        if planned is None:
            break
        steps.settle(planned, 5 if i % 2 else 1)
        steps.look("a", draft_model=True)
    steps.add("b", max_len)
    chunk = steps.plan("b", drafts, max_len - 1)
    steps.settle(chunk)
    steps.plan("b", drafts)


@given(prompt=st.integers(1, 9), day=DAYS)
@example(prompt=5, day=[(3, 3), (0, 0), (1, 1), (2, 1)])
@example(prompt=5, day=[(1, 1), (0, 0), (0, 0), (4, 0)])
def test_draft_model(student, variant, prompt, day):
    """After full acceptance it lacks the last draft and the token behind it."""
    steps = Day(student)
    steps.add("a", prompt)
    steps.look("a", draft_model=True)
    for drafts, kept in day:
        planned = steps.plan("a", drafts)
        steps.settle(planned, kept, because="")
        steps.look("a", draft_model=True)
    steps.add("b", 9)
    steps.settle(steps.plan("b", 4, 5))  # a chunk: what was drafted is left out
    steps.look("b", draft_model=True)
    steps.settle(steps.plan("b", 4, 6), 4)  # two of four fit, and both are kept
    steps.look("b", draft_model=True)
    steps.plan("b", 2)
    steps.look("b", draft_model=True)
    steps.call("preempt", "b")
    steps.look("b", draft_model=True)
    steps.add("c", 4)
    steps.settle(steps.plan("c", 3), 1, same=True, because="the second draft is said, not kept")
    steps.look("c", draft_model=True)
    drafts = steps.fresh(3)
    step, *_ = steps.call("plan", "c", drafts, 2)  # one of three fits
    steps.look("c", draft_model=True)
    steps.call("settle", step, drafts[:2], because="the second draft was left out, so not kept")
    steps.look("c", draft_model=True)


@given(day=DAYS, prompt=st.integers(2, 9))
@example(day=[(2, 1), (2, 2)], prompt=6)
def test_preempted(student, variant, day, prompt):
    """What was computed and drafted is lost, what was said is not; blocks are published anew."""
    steps = Day(student, block_size=2)
    steps.add("a", prompt)
    for drafts, kept in day:
        steps.settle(steps.plan("a", drafts), kept)
        late = steps.plan("a", drafts)
        steps.call("preempt", "a")
        steps.look("a")
        steps.settle(steps.plan("a", 1), 1)
        steps.settle(late, kept, because="this step was of its life before it was preempted")
        steps.look("a")
        late = steps.plan("a", drafts)
        steps.call("preempt", "a")
        again = steps.plan("a", drafts)
        steps.settle(late, kept, because="it was preempted after this step was planned")
        steps.look("a")
        steps.settle(again, kept)
    for tokens in ([], [1, 2, 3, 4]):  # what the step cannot have said
        late = steps.plan("a", 1)
        steps.call("preempt", "a")
        why = "its request was preempted, so its tokens are not looked at"
        steps.call("settle", late[0], tokens, because=why)
        steps.look("a")
    late = steps.plan("a", 1)
    steps.call("end", "a")
    steps.add("a", 3)
    steps.settle(late, 1, because="that was another a, which has ended")
    steps.look("a")
    steps.settle(steps.plan("a", 1), 1)


@given(day=DAYS)
@example(day=[(2, 1), (3, 3)])
def test_refuses(student, variant, day):
    """What cannot be is refused, and nothing changes."""
    steps = Day(student)
    steps.call("settle", 1, [1])
    for name in ("preempt", "end", "behind", "state"):
        steps.call(name, "a")
    steps.plan("a", 1)
    steps.add("a", 5)
    for drafts, kept in day:
        planned = steps.plan("a", drafts)
        number, given = planned[0], planned[2][len(planned[2]) - drafts :]
        steps.plan("a", 1)  # one step is in flight
        steps.add("a", 3)
        steps.call("settle", number, [])
        steps.call("settle", number + 1, [1])
        steps.call("settle", 0, [1])
        steps.call("settle", number, [*given, 1, 2])
        if drafts:
            steps.call("settle", number, [given[0] + 1, 5])
            steps.call("settle", number, [*given[:-1], given[-1] + 1, 5])
        steps.look("a", draft_model=True)
        steps.settle(planned, kept)
        steps.call("settle", number, [1])
        steps.look("a")
    late = steps.plan("a", 1)
    steps.call("preempt", "a")
    chunk = steps.plan("a", 2, 2)
    steps.call("settle", chunk[0], [7])
    steps.settle(late)
    steps.call("settle", late[0], [1])
    steps.settle(chunk)


CALLS = st.tuples(st.sampled_from("apppsssxe"), st.integers(0, 2), st.integers(0, 6))


@given(
    day=st.lists(CALLS, min_size=8, max_size=40), block=st.integers(1, 4),
    max_len=st.integers(8, 24),
)  # fmt: skip
def test_any_day(student, variant, day, block, max_len):
    """Any order of calls, those that are refused included."""
    steps = Day(student, block, max_len)
    flying = []
    for kind, which, number in day:
        name = "abc"[which]
        if kind == "a":
            steps.add(name, 1 + number % max_len)
        elif kind == "p":
            planned = steps.plan(name, number % 4, 1 + 2 * number)
            flying += [planned] if planned else []
        elif kind == "s" and flying:
            steps.settle(flying.pop(number % len(flying)), number % 4)
        elif kind == "x":
            steps.call("preempt", name)
        elif kind == "e":
            steps.call("end", name)
        steps.look(name, draft_model=True)
