"""Parts of the scheduler that its protocol says nothing about: ends, policies, the queue, speed.

The protocol's own suite is in `protocols/`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "protocols"))


from rig import Rig

from quire import SamplingParams
from quire.errors import QuireError
from quire.messages import ScheduledEntry
from quire.policy import (
    POLICIES,
    FairShare,
    FirstComeFirstServed,
    PriorityFirst,
    WaitingQueue,
    make_policy,
)
from quire.request import FinishReason, Request
from quire.scheduler import TokenBudgetScheduler
from quire.step_builder import StepBuilder


@pytest.mark.parametrize(
    ("tokens", "options", "reason"),
    [
        ([5, 0], {}, FinishReason.STOP),
        ([5, 0, 5], {"ignore_eos": True, "max_tokens": 3}, FinishReason.LENGTH),
        ([5, 6], {"stop_token_ids": [6], "ignore_eos": True}, FinishReason.STOP),
        ([5, 0], {"max_tokens": 2}, FinishReason.STOP),
        ([5, 5], {"max_tokens": 2}, FinishReason.LENGTH),
        ([5, 5, 5, 5], {}, FinishReason.LENGTH),
        ([5, 5, 5], {}, None),
    ],
)
def test_endings(tokens: list[int], options: dict[str, Any], reason: FinishReason | None) -> None:
    request = Request("a", [1, 2], SamplingParams(**options), (0,))
    for token in tokens:
        assert request.finish_reason is None
        request.append_output(token, max_model_len=6)
    assert request.finish_reason is reason


def test_an_unknown_policy_is_named_with_the_known_ones() -> None:
    with pytest.raises(QuireError, match="policy='random': must be one of fcfs, priority, fair"):
        make_policy("random")
    assert all(make_policy(name) is not make_policy(name) for name in POLICIES)


def test_priority_ranks_by_the_callers_number() -> None:
    request = Request("a", [1], SamplingParams(), priority=-3)
    assert PriorityFirst().rank(request) == -3


def of_client(request_id: str, client_id: str) -> Request:
    return Request(request_id, [1], SamplingParams(), client_id=client_id)


def charge(policy: FairShare, request: Request, num_tokens: int) -> None:
    policy.scheduled([ScheduledEntry(request.request_id, 0, 0, num_tokens, False)])


def test_fair_share_counts_tokens_by_client() -> None:
    policy = FairShare()
    one, two, other = of_client("1", "x"), of_client("2", "x"), of_client("3", "y")
    for request in (one, two, other):
        policy.arrived(request)
    charge(policy, one, 10)
    charge(policy, other, 4)
    charge(policy, two, 1)
    assert [policy.rank(request) for request in (one, two, other)] == [11, 11, 4]


def test_fair_share_owes_nothing_for_a_pause() -> None:
    policy = FairShare()
    x, y, z = of_client("1", "x"), of_client("2", "y"), of_client("3", "z")
    for request in (x, y, z):
        policy.arrived(request)
    charge(policy, x, 100)
    charge(policy, y, 60)
    policy.ended(z)
    back = of_client("4", "z")
    policy.arrived(back)
    assert policy.rank(back) == 60  # the least of those present
    policy.ended(x)
    policy.ended(y)
    charge(policy, back, 10)
    for request in (of_client("5", "x"), of_client("6", "y")):
        policy.arrived(request)
        assert policy.rank(request) == (100 if request.client_id == "x" else 70)


def test_fair_share_has_a_level_when_nobody_waits() -> None:
    """A has a million tokens computed while it is alone: it owes them to nobody."""
    policy = FairShare()
    alone = of_client("1", "a")
    policy.arrived(alone)
    charge(policy, alone, 1_000_000)
    policy.ended(alone)
    newcomer = of_client("2", "b")
    policy.arrived(newcomer)
    assert policy.rank(newcomer) == 1_000_000
    charge(policy, newcomer, 10)
    back = of_client("3", "a")
    policy.arrived(back)
    assert policy.rank(back) == 1_000_010


def test_fair_share_forgets_ended_requests() -> None:
    policy = FairShare()
    one, two = of_client("1", "x"), of_client("2", "x")
    policy.arrived(one)
    policy.arrived(two)
    policy.ended(one)
    assert policy._num_requests == {"x": 1}
    policy.ended(two)
    assert not policy._num_requests
    assert not policy._clients


def test_waiting_queue_against_a_sorted_list() -> None:
    """Ranks that grow, items that go, equal ranks in order of arrival."""
    rng = random.Random(0)
    for _ in range(200):
        ranks = [rng.randrange(4) for _ in range(12)]
        queue: WaitingQueue[int] = WaitingQueue(ranks.__getitem__)
        for arrival in rng.sample(range(12), 12):
            queue.push(arrival, arrival)
        here = list(range(12))
        while here:
            assert len(queue) == len(here)
            if rng.random() < 0.2:
                queue.remove(here.pop(rng.randrange(len(here))))
                continue
            for _ in range(2):
                ranks[rng.randrange(12)] += rng.randrange(3)
            expected = min(here, key=lambda arrival: (ranks[arrival], arrival))
            assert queue.pop() == expected
            here.remove(expected)
            if rng.random() < 0.2:
                queue.push(expected, expected)
                here.append(expected)
        assert len(queue) == 0


class Listener(FirstComeFirstServed):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def arrived(self, request: Request) -> None:
        self.heard.append(("arrived", request.request_id))

    def scheduled(self, entries: Iterable[ScheduledEntry]) -> None:
        self.heard += [(entry.request_id, entry.num_tokens) for entry in entries]

    def ended(self, request: Request) -> None:
        self.heard.append(("ended", request.request_id))


def test_a_policy_hears_of_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()
    monkeypatch.setitem(POLICIES, "fcfs", lambda: listener)
    rig = Rig(TokenBudgetScheduler, max_num_seqs=2)
    for request_id in "abc":
        rig.add(request_id, 3, max_tokens=2)
    rig.step()
    rig.scheduler.abort("b")  # runs
    rig.scheduler.abort("c")  # waits
    rig.run()
    assert listener.heard == [
        ("arrived", "a"),
        ("arrived", "b"),
        ("arrived", "c"),
        ("a", 3),
        ("b", 3),
        ("ended", "b"),
        ("ended", "c"),
        ("a", 1),
        ("ended", "a"),
    ]


def test_a_preempted_entry_gives_its_tokens_back() -> None:
    step = StepBuilder(1, budget=10)
    one, two = (Request(name, [1] * 6, SamplingParams()) for name in "ab")
    step.schedule(one, 0, 6, ())
    assert (step.budget, one.num_computed_tokens, one.num_placeholders) == (4, 6, 1)
    step.preempt(two)  # its turn would have come later
    step.preempt(one)
    assert step.budget == 10
    output = step.build({}, 0)
    assert (output.entries, output.preempted_ids) == ((), ("b", "a"))
