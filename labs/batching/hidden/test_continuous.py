"""Hidden tests of `Scheduler`, beside an oracle: a day each, with the calls that the rule needs."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from labkit.grading.twin import Twin

from .scheduler_oracle import SchedulerOracle

MANY = 100
NUMBERS = st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(0, 9))


def without_seats(entries):
    """The entries of a step, whichever their seats."""
    if type(entries) is not list or not all(type(e) is list and len(e) == 4 for e in entries):
        return entries
    return [[name, start, count] for name, _, start, count in entries]


class Day:
    """A scheduler with the steps that are in flight."""

    view = staticmethod(without_seats)  # what is compared of a step

    def __init__(self, student, seats, per_client=MANY, patience=MANY):
        self.twin = Twin(
            student, SchedulerOracle(seats, per_client, patience), seats, per_client, patience
        )
        self.call = self.twin.call
        self.flying = []  # (number of the step, names of its entries)
        self.number = 0

    def add(self, name, prompt=3, output=3, client="ada", priority=0, cached=0, because=""):
        self.call("add", name, client, priority, prompt, output, cached, because=because)

    def plan(self, because=""):
        self.number += 1
        entries = self.call("schedule", because=because, view=self.view)
        self.flying.append((self.number, [entry[0] for entry in entries]))
        return entries

    def tell(self, ended=(), because=""):
        number, _ = self.flying.pop(0)
        self.call("update", number, list(ended), because=because)

    def sampled(self):
        """The names of those that sampled in the step that is told next."""
        number, _ = self.flying[0]
        lives = self.twin.oracle.planned[number]
        return [life.facts.name for life in lives if number in life.open]

    def step(self, ended=(), because=""):
        self.plan(because)
        self.tell(ended)

    def rest(self, in_flight=0):
        """Go on until nothing is computed any more."""
        while len(self.flying) > in_flight:
            self.tell()
        for _ in range(40):
            entries = self.plan()
            while len(self.flying) > in_flight:
                self.tell()
            if not entries and not self.flying[:-1]:
                break


@given(
    seats=st.integers(1, 3),
    day=st.lists(NUMBERS, min_size=4, max_size=12),
)
@example(seats=2, day=[(1, 3, 1), (2, 1, 3), (3, 2, 2), (4, 4, 0)])
def test_join_and_leave(student, variant, seats, day):
    """Requests are admitted as soon as others have ended, and keep their order."""
    steps = Day(student, seats)
    for i, (prompt, output, end) in enumerate(day):
        steps.add(f"r{9 - i}" if i < 10 else f"s{i}", 1 + prompt, 1 + output % 4)
        entries = steps.plan()
        steps.tell([entries[-1][0]] if entries and end < 2 else [])
    steps.rest()


@given(outputs=st.lists(st.integers(1, 3), min_size=1, max_size=4), ahead=st.integers(0, 1))
@example(outputs=[1], ahead=0)
@example(outputs=[2], ahead=1)
def test_last_token(student, variant, outputs, ahead):
    """Positions 0 to prompt + output - 2, and not one more, in flight or not."""
    steps = Day(student, 2)
    for i, output in enumerate(outputs):
        steps.add(f"r{i}", 2 + i, output)
    steps.rest(ahead)


@given(day=st.lists(st.integers(0, 7), min_size=3, max_size=14))
@example(day=[7, 0, 1, 7])
def test_seats(student, variant, day):
    """A seat belongs to its request until it ends; then the smallest free one is taken."""
    steps = Day(student, 4)
    steps.view = lambda entries: entries
    for i, number in enumerate(day):
        steps.add(f"r{i}", output=1 + number)
        steps.add(f"s{i}", output=5)
        steps.step()
        steps.call("abort", f"r{number}")
    steps.rest()


@given(
    seats=st.integers(2, 5),
    per_client=st.integers(1, 3),
    clients=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=4, max_size=10),
    ahead=st.integers(0, 1),
)
@example(seats=3, per_client=1, clients=[(0, 4), (0, 1), (1, 1), (2, 1)], ahead=0)
@example(seats=2, per_client=1, clients=[(0, 1), (0, 1), (0, 2), (0, 1)], ahead=1)
def test_clients(student, variant, seats, per_client, clients, ahead):
    """A client has at most its share of the seats, and the next in line gets the others."""
    steps = Day(student, seats, per_client)
    for i, (client, output) in enumerate(clients):
        steps.add(f"r{i}", output=output, client=("ada", "bob", "cid")[client])
    for i in range(4):
        steps.plan()
        while len(steps.flying) > ahead:
            steps.tell()
        if i == 1:
            steps.call("abort", "r0")
            steps.call("abort", "r3")
    steps.rest(ahead)


@given(
    patience=st.integers(1, 4),
    requests=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=4, max_size=9),
)
@example(patience=2, requests=[(0, 0), (1, 0), (0, 0), (0, 0), (0, 0)])
@example(patience=3, requests=[(2, 0), (3, 0), (0, 1), (0, 1), (0, 1), (0, 1)])
def test_aging(student, variant, patience, requests):
    """A steady flow of urgent requests does not keep the others waiting for ever."""
    steps = Day(student, 1, patience=patience)
    for i, (priority, pause) in enumerate(requests):
        steps.add(f"r{i}", output=1, priority=priority)
        steps.add(f"urgent{i}", output=1, priority=0)
        for _ in range(1 + pause):
            steps.step()
    steps.rest()


@given(prompt=st.integers(1, 6), cached=st.integers(0, 6), ahead=st.integers(0, 1))
@example(prompt=4, cached=4, ahead=0)
@example(prompt=1, cached=1, ahead=1)
def test_cached_prompts(student, variant, prompt, cached, ahead):
    """What is cached is left out, but a prompt that is cached whole still has a last position."""
    steps = Day(student, 2)
    steps.add("a", prompt, 3, cached=min(cached, prompt))
    steps.add("b", 2, 2, cached=1)
    steps.rest(ahead)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5),
    ends=st.lists(st.integers(0, 5), min_size=8, max_size=8),
)
def test_steps_in_flight(student, variant, sizes, ends):
    """A second step is planned before the first is known; ends are seen one step late."""
    steps = Day(student, 2)
    for i, (prompt, output) in enumerate(sizes):
        steps.add(f"r{i}", prompt, output)
    for end in ends:
        steps.plan()
        if len(steps.flying) == 2:
            names = steps.flying[0][1]
            steps.tell(names[:1] if end < 2 else [])
    steps.rest(1)


@given(day=st.lists(NUMBERS, min_size=3, max_size=10), ahead=st.integers(0, 1))
@example(day=[(0, 9, 0), (0, 9, 0), (1, 1, 0), (0, 9, 0)], ahead=0)
def test_preempted(student, variant, day, ahead):
    """Whoever was preempted comes back in its old order and computes what it has said anew."""
    steps = Day(student, 2, patience=3)
    for i in range(4):
        steps.add(f"r{i}", 2 + i, 6, priority=i // 2, cached=1)
    for which, quiet, _ in day:
        entries = steps.plan("who was preempted has the rank and order that it has had since `add`")
        if entries and quiet < 5:
            steps.call("preempt", entries[which % len(entries)][0])
        while len(steps.flying) > ahead:
            steps.tell()
    steps.call("preempt", "nobody")
    steps.rest(ahead)


@given(day=st.lists(NUMBERS, min_size=3, max_size=10), ahead=st.integers(0, 1))
@example(day=[(0, 1, 0), (0, 2, 1), (0, 0, 0), (0, 1, 0)], ahead=1)
def test_trimmed(student, variant, day, ahead):
    """A prompt computed in parts gives no token before its end; none at all keeps the seat."""
    steps = Day(student, 2)
    for i in range(4):
        steps.add(f"r{i}", 4 + i, 3)
    for which, share, _ in day:
        for name, _, _, count in steps.plan()[which % 2 :]:
            steps.call("trim", name, min(count, count * share // 5))
            steps.call("trim", name, count * share // 8)  # of what the first has left
        while len(steps.flying) > ahead:
            steps.tell()
    name, _, _, count = (steps.plan() or [["nobody", 0, 0, 0]])[0]
    steps.call("trim", name, count + 1)
    steps.call("trim", "nobody", 0)
    steps.call("trim", name, -1, because="no entry has fewer than 0 positions")
    steps.call("trim", name, count // 2)
    steps.call("trim", name, count // 2 + 1)  # more than the first has left
    for number in (0, 0, 1):
        steps.call("trim", name, number)  # an entry of 0 positions is one still
    while steps.flying:
        steps.tell()
    steps.call("trim", name, 0)  # its step is over
    steps.rest()
    steps.add("last", 3, 1)
    steps.plan()
    steps.plan()
    steps.call("trim", "last", 0, because="its one entry is of the step before")
    steps.call("trim", "last", 3)
    steps.rest()


def test_other_lives(student, variant):
    """A step in flight says nothing to a request that was aborted or preempted since."""
    steps = Day(student, 2)
    steps.add("a", 3, 4)
    steps.add("b", 2, 4)
    steps.plan()
    steps.call("abort", "a")
    steps.add("a", 5, 4)
    steps.plan()
    steps.tell(["a"], because="that was the a which was aborted")
    steps.tell()
    steps.plan()
    steps.call("preempt", "b")
    steps.plan(because="b computes its prompt and what updates have told")
    steps.tell(["b"], because="b was preempted and runs again")
    steps.tell()
    steps.add("b", 1, 1)
    steps.rest(1)


@given(
    day=st.lists(NUMBERS, min_size=3, max_size=9), seats=st.integers(1, 2),
    ahead=st.integers(0, 1),
)  # fmt: skip
@example(day=[(0, 0, 0), (3, 0, 0), (1, 2, 0)], seats=1, ahead=0)
def test_refuses(student, variant, day, seats, ahead):
    """What waits is not preempted or trimmed, what has not ended not added; nothing changes."""
    steps = Day(student, seats)
    for i in range(4):
        steps.add(f"r{i}", 2 + i, 3)
    for first, second, third in day:
        steps.call("preempt", f"r{second % 5}")
        steps.add(f"r{third % 4}", 9, 1)
        steps.plan()
        steps.add(f"r{first % 4}", 9, 1)
        steps.call("trim", f"r{first % 5}", 1)
        steps.call("preempt", f"r{3 - first % 4}")
        steps.call("trim", f"r{3 - first % 4}", 0)
        while len(steps.flying) > ahead:
            steps.tell()
    steps.rest(ahead)


CALLS = st.tuples(st.sampled_from("aaapppputxr"), st.integers(0, 6), st.integers(0, 9))


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
    day=st.lists(CALLS, min_size=6, max_size=40),
)
def test_any_day(student, variant, sizes, day):
    """Any order of calls, those that are refused included."""
    steps = Day(student, *sizes)
    steps.view = lambda entries: entries
    for kind, which, number in day:
        name = f"r{which}"
        if kind == "a":
            client = ("ada", "bob")[number % 2]
            steps.add(name, 1 + number % 5, 1 + which % 3, client, number % 3, number % 4)
        elif kind == "p":
            if len(steps.flying) == 2:
                steps.tell()
            steps.plan()
        elif kind == "u" and steps.flying:
            steps.tell(steps.sampled()[:1] if number < 4 else [])
        elif kind == "t":
            steps.call("trim", name, number % 3)
        elif kind == "r":
            steps.call("preempt", name)
        elif kind == "x":
            steps.call("abort", name)
    steps.rest()
