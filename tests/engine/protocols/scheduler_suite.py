"""What every `Scheduler` must do. Each check is called with a class or a factory.

`Rig.run` holds every run to the same: each request's output is what it would be alone, the
device found each position where it was written, and all rows and blocks are free again.
"""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from rig import BLOCK, MakeScheduler, Rig
from scheduler_machine import SchedulerMachine

from quire.errors import InvalidRequestError
from quire.messages import StepResult
from quire.request import FinishReason

# --- outputs, whatever the company -------------------------------------------------


def check_outputs_at_any_budget_and_depth(make: MakeScheduler) -> None:
    for budget, in_flight, prefix_caching in itertools.product(
        (1, 5, 64), (1, 2, 3), (True, False)
    ):
        rig = Rig(make, budget=budget, in_flight=in_flight, prefix_caching=prefix_caching)
        for number, length in enumerate([1, 7, 8, 9, 17, 30]):
            rig.add(f"r{number}", length, max_tokens=1 + 3 * number, ignore_eos=number % 2 == 0)
        rig.run()


def check_outputs_when_the_cache_is_too_small(make: MakeScheduler) -> None:
    for in_flight, policy in itertools.product((1, 2), ("fcfs", "priority", "fair")):
        rig = Rig(make, num_blocks=6, budget=20, in_flight=in_flight, policy=policy)
        for number in range(6):
            rig.add(f"r{number}", 7, max_tokens=20, priority=-number, client_id=str(number % 2))
        rig.run()
        assert rig.preempted(), "six requests of four blocks each do not fit at once"


def check_outputs_on_cached_prefixes(make: MakeScheduler) -> None:
    for in_flight in (1, 2):
        rig = Rig(make, in_flight=in_flight, budget=24)
        whole = [1] * (2 * BLOCK)
        for number, prompt in enumerate([whole, [*whole, 2], [*whole, 3, 3], whole[:-1], whole]):
            rig.add(f"r{number}", prompt, max_tokens=6)
            rig.run()
        hits = {k: v for output in rig.outputs for k, v in output.hit_tokens.items()}
        assert hits == {"r0": 0, "r1": 16, "r2": 16, "r3": 8, "r4": 8}


def check_a_fully_cached_prompt_still_has_a_query(make: MakeScheduler) -> None:
    rig = Rig(make)
    for request_id in "ab":
        rig.add(request_id, [1] * (3 * BLOCK), max_tokens=2)
        rig.run()
    assert ("b", 2 * BLOCK, BLOCK) in itertools.chain(*rig.entries())


def check_prompt_logprobs_need_every_position(make: MakeScheduler) -> None:
    rig = Rig(make)
    for request_id, logprobs in [("a", None), ("b", 1)]:
        rig.add(request_id, [1] * 20, max_tokens=2, prompt_logprobs=logprobs)
        rig.run()
    assert ("b", 0, 20) in itertools.chain(*rig.entries())


# --- whose turn it is ---------------------------------------------------------------


def check_chunks_share_the_budget_with_decodes(make: MakeScheduler) -> None:
    """Written out: running requests first, then the prompt's next chunk, then the queue."""
    rig = Rig(make, max_num_seqs=3, budget=8)
    for request_id, length in [("a", 3), ("b", 11), ("c", 2)]:
        rig.add(request_id, length, max_tokens=3)
    rig.run()
    assert rig.entries() == [
        [("a", 0, 3), ("b", 0, 5)],
        [("a", 3, 1), ("b", 5, 6), ("c", 0, 1)],
        [("a", 4, 1), ("b", 11, 1), ("c", 1, 1)],
        [("b", 12, 1), ("c", 2, 1)],
        [("c", 3, 1)],
        [],
    ]


def check_a_long_prompt_does_not_stop_decodes(make: MakeScheduler) -> None:
    rig = Rig(make, budget=8, max_model_len=200)
    rig.add("short", 2, max_tokens=15)
    rig.step()
    rig.add("long", 90, max_tokens=2)
    for position in range(2, 14):
        assert ("short", position, 1) in [
            (e.request_id, e.start, e.num_tokens) for e in rig.step().entries
        ]
    rig.run()


def check_the_next_step_does_not_wait_for_the_last(make: MakeScheduler) -> None:
    """A token in flight counts as a placeholder, up to the last one that is allowed."""
    rig = Rig(make, in_flight=3)
    rig.add("a", 4, max_tokens=5)
    starts = [[e.start for e in rig.step().entries] for _ in range(5)]
    assert starts == [[0], [4], [5], [6], [7]]
    rig.run()
    rig = Rig(make, in_flight=3, max_model_len=7)
    rig.add("a", 4, max_tokens=50)
    assert [[e.start for e in rig.step().entries] for _ in range(4)] == [[0], [4], [5], []]
    rig.run()


def check_an_end_that_is_seen_late(make: MakeScheduler) -> None:
    """The token sampled behind the end of a sequence is dropped."""
    ended = 0
    for number in range(30):
        rig = Rig(make, in_flight=2)
        request = rig.add("a", [number], max_tokens=9, ignore_eos=False)
        rig.add("b", [number, 1], max_tokens=9, stop_token_ids=[3, 4])
        rig.run()
        ended += request.finish_reason is FinishReason.STOP
    assert ended > 5


def check_order_does_not_depend_on_names(make: MakeScheduler) -> None:
    """A set of request ids is ordered by their hashes, another on each rank."""
    shapes = []
    for seed in range(4):
        names = [f"{random.Random(seed * 100 + n).getrandbits(64):x}" for n in range(12)]
        rig = Rig(make, max_num_seqs=12, num_blocks=20, in_flight=2)
        for name in names:
            rig.add(name, 4, max_tokens=12)
        rig.run()
        number = {name: index for index, name in enumerate(names)}
        shapes.append(
            [
                [(number[e.request_id], e.row, e.start, e.new_block_ids) for e in output.entries]
                for output in rig.outputs
            ]
        )
    assert shapes == shapes[:1] * 4


def check_first_come_first_served(make: MakeScheduler) -> None:
    """A request without room keeps those behind it waiting: a long one gets its turn."""
    rig = Rig(make, num_blocks=6)
    for number, length in enumerate([20, 41, 3, 3, 42, 3]):
        rig.add(f"r{number}", length, max_tokens=3)
    rig.run()
    assert rig.admitted() == [f"r{number}" for number in range(6)]
    assert not rig.preempted()


def check_rows_are_all_used_and_used_again(make: MakeScheduler) -> None:
    rig = Rig(make, max_num_seqs=2)
    for request_id in "abc":
        rig.add(request_id, 2, max_tokens=1)
    assert [e.request_id for e in rig.step().entries] == ["a", "b"]
    output = rig.step()
    assert output.finished_ids == ("a", "b")
    assert [e.request_id for e in output.entries] == ["c"]
    rig.run()


# --- preemption -----------------------------------------------------------------------


def check_the_last_to_come_is_preempted(make: MakeScheduler) -> None:
    rig = Rig(make, num_blocks=4)
    for request_id in "ab":
        rig.add(request_id, 8, max_tokens=20)
    rig.run()
    assert set(rig.preempted()) == {"b"}
    assert list(rig.finished()) == ["a", "b"]


def check_a_preempted_request_returns_before_newcomers(make: MakeScheduler) -> None:
    """Or a steady flow of them would starve it."""
    for policy in ("fcfs", "priority"):
        rig = Rig(make, num_blocks=5, max_num_seqs=2, policy=policy)
        first, second = rig.add("first", 14, max_tokens=20), rig.add("second", 14, max_tokens=20)
        for number in range(100):
            if number % 2 == 0 and number < 60:
                rig.add(f"new{number}", 6, max_tokens=2)
            rig.step()
            if first.finish_reason and second.finish_reason:
                break
        assert rig.preempted()[0] == "second"
        order = rig.admitted()
        back = order.index("second", order.index("second") + 1)
        assert order[:back] == ["first", "second"]
        rig.run()


def check_a_preempted_request_keeps_what_it_said(make: MakeScheduler) -> None:
    for prefix_caching, in_flight in itertools.product((True, False), (1, 2)):
        rig = Rig(make, num_blocks=5, prefix_caching=prefix_caching, in_flight=in_flight)
        requests = [rig.add(request_id, 14, max_tokens=20) for request_id in "ab"]
        while not rig.preempted():
            said = [list(request.output_token_ids) for request in requests]
            rig.step()
        for request, tokens in zip(requests, said, strict=True):
            assert request.output_token_ids[: len(tokens)] == tokens
        rig.run()
        (again,) = [new for o in rig.outputs[1:] for new in o.new_requests][:1]
        assert again.num_prompt_tokens == 14
        assert len(again.token_ids) > 14


def check_the_requests_that_fit_alone_are_taken(make: MakeScheduler) -> None:
    """Even where the watermark asks for more free blocks than the request leaves."""
    for watermark in (0.0, 0.5):
        rig = Rig(make, num_blocks=4, watermark=watermark, in_flight=2)
        rig.add("a", 4 * BLOCK - 5, max_tokens=6)  # its last token needs no room
        rig.add("b", 4 * BLOCK, max_tokens=1)
        rig.run()
        for length, max_tokens in [(4 * BLOCK, 2), (1, 4 * BLOCK + 1), (60, 1)]:
            with pytest.raises(InvalidRequestError, match=rf"{length} tokens .*\b4\b.*shorten"):
                Rig(make, num_blocks=4).add("c", length, max_tokens=max_tokens)


def check_the_watermark_leaves_room_to_grow(make: MakeScheduler) -> None:
    rig = Rig(make, num_blocks=10, watermark=0.3)
    rig.add("a", 3 * BLOCK, max_tokens=9)
    rig.add("b", 4 * BLOCK, max_tokens=9)
    rig.add("c", 1, max_tokens=9)
    assert [e.request_id for e in rig.step().entries] == ["a", "b"]
    assert rig.kv.num_free_blocks == 3
    rig.run()
    assert not rig.preempted()


# --- policies ---------------------------------------------------------------------------


def check_priority_decides_who_starts_and_who_stays(make: MakeScheduler) -> None:
    rig = Rig(make, policy="priority", max_num_seqs=2, num_blocks=5)
    priorities = {"a": 5, "b": 0, "c": 0, "d": -1}
    for request_id, priority in priorities.items():
        rig.add(request_id, 14, max_tokens=20, priority=priority)
    rig.run()
    assert rig.admitted()[:2] == ["d", "b"]
    assert "d" not in rig.preempted()
    assert list(rig.finished()) == ["d", "b", "c", "a"]


def check_a_later_request_of_higher_rank_is_not_preempted(make: MakeScheduler) -> None:
    rig = Rig(make, policy="priority", num_blocks=5)
    rig.add("early", 14, max_tokens=20, priority=1)
    rig.step()
    rig.add("late", 14, max_tokens=20, priority=0)
    rig.run()
    assert set(rig.preempted()) == {"early"}
    assert list(rig.finished()) == ["late", "early"]


def check_fair_shares_among_clients(make: MakeScheduler) -> None:
    """A client with many requests does not keep one with few waiting."""
    rig = Rig(make, policy="fair", max_num_seqs=2)
    for number in range(12):
        rig.add(f"big{number}", 10, max_tokens=6, client_id="big")
    for _ in range(8):
        rig.step()
    for number in range(2):
        rig.add(f"small{number}", 10, max_tokens=6, client_id="small")
    rig.run()
    order = list(rig.finished())
    assert order.index("small1") <= 7, order
    # And who was away is not owed what it did not ask for.
    assert order.index("big3") < order.index("small1"), order


# --- abort, failure, names ----------------------------------------------------------------


def check_abort_gives_everything_back(make: MakeScheduler) -> None:
    for in_flight in (1, 2):
        rig = Rig(make, max_num_seqs=2, in_flight=in_flight)
        requests = [rig.add(request_id, 10, max_tokens=9) for request_id in "abc"]
        rig.scheduler.abort("nobody")
        for _ in range(3):
            rig.step()
        said = list(requests[0].output_token_ids)
        for request_id in "ac":  # one runs, with a step in flight; one waits
            rig.scheduler.abort(request_id)
        rig.scheduler.abort("a", FinishReason.STOP)
        rig.check()
        assert rig.step().finished_ids == ("a", "c")
        rig.run()
        assert requests[0].output_token_ids == said
        assert [str(request.finish_reason) for request in requests] == ["abort", "length", "abort"]
        assert rig.finished() == {"a": "abort", "b": "length", "c": "abort"}
        rig.scheduler.abort("b")
        assert requests[1].finish_reason is FinishReason.LENGTH
        for request_id in "de":
            rig.add(request_id, 10, max_tokens=2)
        assert [e.request_id for e in rig.step().entries] == ["d", "e"]  # every row is free
        rig.run()


def check_a_name_may_be_used_again(make: MakeScheduler) -> None:
    """The late result of the first request is not the second's."""
    rig = Rig(make, in_flight=3)
    rig.add("a", 5, max_tokens=9)
    for _ in range(3):
        rig.step()
    rig.scheduler.abort("a")
    rig.requests.clear()
    second = rig.add("a", 7, max_tokens=9)
    with pytest.raises(InvalidRequestError, match="'a'"):
        rig.add("a", 2)
    rig.run()
    assert len(second.output_token_ids) == 9


def check_a_step_that_failed_is_computed_again(make: MakeScheduler) -> None:
    for in_flight in (1, 2):
        rig = Rig(make, in_flight=in_flight, budget=12)
        rig.add("p", [1] * 11, max_tokens=9)
        rig.add("c", [1] * 11, max_tokens=9, parent_id="p", seed=3)
        rig.add("d", 14, max_tokens=9)
        for _ in range(4):
            lost = rig.lose()
            assert lost.entries
            rig.step()
            rig.scheduler.retract(lost)  # of a life before this one
            rig.step()
        rig.run()


# --- several samples of one prompt ------------------------------------------------------------


def check_samples_share_the_prompt(make: MakeScheduler) -> None:
    for length, num_copies in [(1, 0), (20, 2), (3 * BLOCK, 2), (2 * BLOCK + 1, 0)]:
        for prefix_caching, in_flight in itertools.product((True, False), (1, 2)):
            rig = Rig(make, prefix_caching=prefix_caching, in_flight=in_flight, budget=13)
            for number in range(3):
                parent_id = None if number == 0 else "s0"
                rig.add(f"s{number}", [1] * length, max_tokens=9, parent_id=parent_id, seed=number)
            rig.run()
            copies = [pair for o in rig.outputs for group in o.block_copies for pair in group]
            assert len(copies) == 2 * num_copies  # in both KV groups
            computed = [e for o in rig.outputs for e in o.entries if e.start < length]
            children = [e for e in computed if e.request_id != "s0"]
            assert [e.num_tokens for e in children] == [1, 1]


def check_samples_do_not_hold_up_the_queue(make: MakeScheduler) -> None:
    """Many prompts with two samples each fill the first step with first samples."""
    rig = Rig(make, max_num_seqs=8)
    for number in range(4):
        rig.add(f"p{number}", 5, max_tokens=3)
        rig.add(
            f"c{number}", rig.requests[-1].prompt_token_ids, max_tokens=3, parent_id=f"p{number}"
        )
    assert [e.request_id for e in rig.step().entries] == ["p0", "p1", "p2", "p3"]
    assert len(rig.step().entries) == 8
    rig.run()


def check_samples_survive_their_parent(make: MakeScheduler) -> None:
    for when in range(6):
        for in_flight in (1, 2):
            rig = Rig(make, budget=12, in_flight=in_flight, max_num_seqs=2)
            rig.add("p", [1] * 20, max_tokens=9)
            for name in "cd":
                rig.add(name, [1] * 20, max_tokens=9, parent_id="p", seed=ord(name))
            for _ in range(when):
                rig.step()
            rig.scheduler.abort("p")
            rig.run()


def check_samples_under_shortage(make: MakeScheduler) -> None:
    for in_flight, policy in itertools.product((1, 2), ("fcfs", "priority")):
        rig = Rig(make, num_blocks=6, in_flight=in_flight, policy=policy, max_num_seqs=6)
        for name in "abc":
            rig.add(name, 12, max_tokens=18, priority=ord(name) % 2)
            prompt = rig.requests[-1].prompt_token_ids
            rig.add(f"{name}1", prompt, max_tokens=18, parent_id=name, seed=1)
        rig.run()
        assert rig.preempted()


def check_outputs_with_drafts(make: MakeScheduler) -> None:
    """Steps give several tokens; ends lie among them, and rejected ones leave no trace."""
    for budget, in_flight, blocks in itertools.product((3, 64), (1, 2), (6, 100)):
        rig = Rig(make, budget=budget, in_flight=in_flight, most_drafts=3, num_blocks=blocks)
        for number, length in enumerate([1, 7, 8, 15]):
            rig.add(f"r{number}", length, max_tokens=5 + 6 * number, ignore_eos=number % 2 == 0)
        rig.run()
        entries = [entry for output in rig.outputs for entry in output.entries]
        assert any(entry.num_draft_tokens for entry in entries) or in_flight > 1


def check_what_drafts_leave_in_the_cache(make: MakeScheduler) -> None:
    """The next prompts begin as the first ones ended: they find what was said, and no more."""
    rig = Rig(make, most_drafts=3)
    first = [rig.add(f"a{i}", 5 + i, max_tokens=40, seed=i) for i in range(4)]
    rig.run()
    for i, request in enumerate(first):
        said = request.prompt_token_ids + request.output_token_ids
        rig.add(f"b{i}", [*said, 3], max_tokens=10)
        rig.run()
        hits = {k: v for output in rig.outputs for k, v in output.hit_tokens.items()}
        assert hits[f"b{i}"] == (len(said) - 1) // BLOCK * BLOCK


def check_what_follows_drafts_of_the_host_waits(make: MakeScheduler) -> None:
    """It guesses behind tokens that it has read: a request with drafts in flight is left out."""
    rig = Rig(make, in_flight=2)
    for name in "xy":
        rig.add(name, 5, max_tokens=20)
    output = rig.scheduler.schedule()
    tokens = {entry.request_id: [1] for entry in output.entries}
    rig.scheduler.update(output, StepResult(output.step, tokens, num_draft_tokens={"x": 3}))
    output = rig.scheduler.schedule()
    assert [(e.request_id, e.start, e.num_tokens) for e in output.entries] == [
        ("x", 5, 4),
        ("y", 5, 1),
    ]
    ahead = rig.scheduler.schedule()
    assert [(e.request_id, e.start) for e in ahead.entries] == [("y", 6)]
    rig.scheduler.update(output, StepResult(output.step, {"x": [1, 2], "y": [1]}))
    later = rig.scheduler.schedule()
    assert [(e.request_id, e.start) for e in later.entries] == [("x", 7), ("y", 7)]


def check_drafts_preempt_nobody(make: MakeScheduler) -> None:
    """Two requests hold the cache's two blocks; drafts that need a third are left out."""
    rig = Rig(make, num_blocks=2)
    for name in "xy":
        rig.add(name, BLOCK - 1, max_tokens=6)
    output = rig.scheduler.schedule()
    tokens = {entry.request_id: [1] for entry in output.entries}
    rig.scheduler.update(output, StepResult(output.step, tokens, num_draft_tokens={"x": 3}))
    output = rig.scheduler.schedule()
    assert output.preempted_ids == ()
    assert [(e.request_id, e.num_tokens, e.num_draft_tokens) for e in output.entries] == [
        ("x", 1, 0),
        ("y", 1, 0),
    ]


def check_a_prompt_alone_is_scored(make: MakeScheduler) -> None:
    """No output is asked for: all positions are computed, once, and nothing is said."""
    rig = Rig(make, budget=7, max_model_len=30)
    for name, length in (("one", 1), ("some", 17), ("longest", 30)):
        rig.add(name, length, max_tokens=0, prompt_logprobs=0)
    while rig.scheduler.has_requests:
        rig.step()
    computed: dict[str, int] = {}
    for entries in rig.entries():
        for name, _, num_tokens in entries:
            computed[name] = computed.get(name, 0) + num_tokens
    assert computed == {"one": 1, "some": 17, "longest": 30}
    assert [r.output_token_ids for r in rig.requests] == [[], [], []]
    assert {r.finish_reason for r in rig.requests} == {FinishReason.LENGTH}


def check_state_machine(make: MakeScheduler) -> None:
    run_state_machine_as_test(
        lambda: SchedulerMachine(make),
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None
        ),
    )
