"""The scheduler under a Hypothesis state machine, with a runner that only counts."""

from __future__ import annotations

import random
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from quire import SamplingParams
from quire.config import EngineConfig
from quire.kv.slots import SlotManager
from quire.messages import SchedulerOutput, StepResult
from quire.request import FinishReason, Request
from quire.scheduler import FCFSScheduler

MAX_MODEL_LEN = 24
EOS = 0


def config(max_num_seqs: int, budget: int) -> EngineConfig:
    return EngineConfig(MAX_MODEL_LEN, max_num_seqs, budget, torch.device("cpu"), torch.float32)


class CountingRunner:
    """Checks each `SchedulerOutput` as the real runner relies on it, and makes up tokens."""

    def __init__(self, max_num_seqs: int, budget: int, num_slots: int, seed: int) -> None:
        self.max_num_seqs, self.budget, self.num_slots = max_num_seqs, budget, num_slots
        self.random = random.Random(seed)
        self.rows: dict[str, int] = {}
        self.blocks: dict[str, int] = {}
        self.computed: dict[str, int] = {}
        self.known: dict[str, int] = {}
        self.last_step = 0

    def execute(self, output: SchedulerOutput) -> StepResult:
        assert output.step == self.last_step + 1
        self.last_step = output.step
        for request_id in output.finished_ids:  # each was running, and ends once
            for table in (self.rows, self.blocks, self.computed, self.known):
                del table[request_id]
        new = {request.request_id: request for request in output.new_requests}
        assert len(new) == len(output.new_requests)
        entries = {entry.request_id: entry for entry in output.entries}
        assert len(entries) == len(output.entries)
        assert set(new) <= set(entries)
        assert output.num_tokens <= self.budget
        assert len(entries) <= self.max_num_seqs
        for entry in output.entries:
            if entry.request_id in new:
                (block,) = entry.new_block_ids[0]
                assert len(entry.new_block_ids) == 2  # both KV groups
                assert entry.new_block_ids[1] == entry.new_block_ids[0]
                assert 1 <= block <= self.num_slots
                assert block not in self.blocks.values()
                assert entry.row not in self.rows.values()
                self.blocks[entry.request_id] = block
                self.rows[entry.request_id] = entry.row
                self.computed[entry.request_id] = 0
                self.known[entry.request_id] = len(new[entry.request_id].prompt_token_ids)
            else:
                assert not any(entry.new_block_ids)
            assert 0 <= entry.row < self.max_num_seqs
            assert entry.row == self.rows[entry.request_id]  # stable for life
            assert entry.start == self.computed[entry.request_id]
            assert entry.num_tokens >= 1
            self.computed[entry.request_id] += entry.num_tokens
            assert self.computed[entry.request_id] <= self.known[entry.request_id]
            caught_up = self.computed[entry.request_id] == self.known[entry.request_id]
            assert entry.samples == caught_up
            assert entry.num_draft_tokens == 0
        tokens = {e.request_id: [self.random.randrange(8)] for e in output.entries if e.samples}
        for request_id in tokens:
            self.known[request_id] += 1
        return StepResult(output.step, tokens)


class FirstComeFirstServed(RuleBasedStateMachine):
    """Random adds, aborts and steps; a second scheduler is fed the same and must agree."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: dict[str, Request] = {}
        self.twins: dict[str, Request] = {}
        self.admitted: list[str] = []

    @initialize(
        max_num_seqs=st.integers(1, 4),
        budget=st.integers(1, 12),
        num_slots=st.integers(1, 5),
        seed=st.integers(0, 100),
    )
    def start(self, max_num_seqs: int, budget: int, num_slots: int, seed: int) -> None:
        self.kv = SlotManager(num_slots, num_groups=2)
        self.num_slots = num_slots
        self.max_num_seqs = max_num_seqs
        self.scheduler = FCFSScheduler(config(max_num_seqs, budget), self.kv)
        self.twin = FCFSScheduler(config(max_num_seqs, budget), SlotManager(num_slots, 2))
        self.runner = CountingRunner(max_num_seqs, budget, num_slots, seed)

    @rule(
        length=st.integers(1, MAX_MODEL_LEN - 1),
        max_tokens=st.integers(1, 12),
        ignore_eos=st.booleans(),
        stop=st.lists(st.integers(0, 7), max_size=1),
    )
    def add(self, length: int, max_tokens: int, ignore_eos: bool, stop: list[int]) -> None:
        request_id = f"r{len(self.requests)}"
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos, stop_token_ids=stop)
        for table, scheduler in ((self.requests, self.scheduler), (self.twins, self.twin)):
            table[request_id] = Request(request_id, [1] * length, params, (EOS,))
            scheduler.add(table[request_id])

    @rule(choice=st.integers(0, 100), reason=st.sampled_from(FinishReason))
    @precondition(lambda self: self.requests)
    def abort(self, choice: int, reason: FinishReason) -> None:
        request = list(self.requests.values())[choice % len(self.requests)]
        was_finished = request.finish_reason
        num_computed = request.num_computed_tokens
        for scheduler in (self.scheduler, self.twin):
            scheduler.abort(request.request_id, reason)
            scheduler.abort("unknown")
        assert request.finish_reason == (was_finished or reason)
        assert request.num_computed_tokens == num_computed
        assert request.request_id not in self.scheduler.running
        assert request not in self.scheduler.waiting

    @rule(abort_during=st.one_of(st.none(), st.integers(0, 100)))
    def step(self, abort_during: int | None) -> None:
        had_requests = self.scheduler.has_requests
        output = self.scheduler.schedule()
        assert self.twin.schedule() == output
        assert had_requests == bool(output.entries)  # with work there is progress
        self.admitted += [request.request_id for request in output.new_requests]
        result = self.runner.execute(output)
        aborted = None
        if abort_during is not None and output.entries:  # while the step is in flight
            aborted = output.entries[abort_during % len(output.entries)].request_id
            for scheduler in (self.scheduler, self.twin):
                scheduler.abort(aborted)
        before = {k: len(r.output_token_ids) for k, r in self.requests.items()}
        advanced = self.scheduler.update(output, result)
        self.twin.update(output, result)
        expected = [e.request_id for e in output.entries if e.samples and e.request_id != aborted]
        assert [request.request_id for request in advanced] == expected
        for request_id, request in self.requests.items():
            grown = len(request.output_token_ids) - before[request_id]
            assert grown == (request_id in expected)

    @invariant()
    def holds(self) -> None:
        scheduler = self.scheduler
        self.kv.check()
        waiting = [request.request_id for request in scheduler.waiting]
        running = list(scheduler.running)
        assert len(set(waiting)) == len(waiting)
        assert not set(waiting) & set(running)
        rows = [scheduler._rows[request_id] for request_id in running]
        assert sorted(rows + scheduler._free_rows) == list(range(self.max_num_seqs))
        assert set(self.kv._held) == set(running)
        assert scheduler.has_requests == bool(waiting or running)
        # First come, first served: a request runs after all that came before it.
        numbers = [int(request_id[1:]) for request_id in self.admitted]
        assert numbers == sorted(numbers)
        assert running == sorted(running, key=lambda request_id: int(request_id[1:]))
        for request_id, request in self.requests.items():
            alive = request_id in waiting or request_id in running
            assert alive == (request.finish_reason is None)
            assert 0 <= request.num_computed_tokens <= request.num_tokens <= MAX_MODEL_LEN
            outputs = request.output_token_ids
            assert len(outputs) <= request.sampling_params.max_tokens
            # The last token known is never computed before the next step.
            if outputs:
                assert request.num_computed_tokens == request.num_tokens - 1
            if request_id in waiting:
                assert request.num_computed_tokens == 0
            self.check_ending(request)

    def check_ending(self, request: Request) -> None:
        params, outputs = request.sampling_params, request.output_token_ids
        ends = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
        assert not ends & set(outputs[:-1])
        full = len(outputs) == params.max_tokens or request.num_tokens == MAX_MODEL_LEN
        if outputs and outputs[-1] in ends:
            assert request.finish_reason is FinishReason.STOP
        elif full:
            assert request.finish_reason is FinishReason.LENGTH

    def teardown(self) -> None:
        """Whatever happened, everything ends, and all is free."""
        if not hasattr(self, "runner"):
            return
        steps = 0
        while self.scheduler.has_requests:
            self.step(None)
            self.holds()
            steps += 1
            assert steps <= 2 * MAX_MODEL_LEN * (len(self.requests) + 1)
        assert all(request.finish_reason is not None for request in self.requests.values())
        assert len(self.kv._free) == self.num_slots
        self.step(None)  # tells the runner who ended last
        assert not self.runner.rows


TestFirstComeFirstServed = FirstComeFirstServed.TestCase
TestFirstComeFirstServed.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)


# --- what the machine cannot say in one line ---------------------------------


def add(scheduler: FCFSScheduler, request_id: str, length: int, **options: Any) -> Request:
    request = Request(request_id, [1] * length, SamplingParams(**options))
    scheduler.add(request)
    return request


def step(scheduler: FCFSScheduler) -> list[tuple[str, int, int, bool]]:
    output = scheduler.schedule()
    tokens = {entry.request_id: [5] for entry in output.entries if entry.samples}
    scheduler.update(output, StepResult(output.step, tokens))
    return [(e.request_id, e.start, e.num_tokens, e.samples) for e in output.entries]


def test_chunks_share_the_budget_with_decodes() -> None:
    """Written out: running requests first, then the prompt's next chunk, then the queue."""
    scheduler = FCFSScheduler(config(3, 8), SlotManager(3))
    for request_id, length in [("a", 3), ("b", 11), ("c", 2)]:
        add(scheduler, request_id, length, max_tokens=3)
    assert step(scheduler) == [("a", 0, 3, True), ("b", 0, 5, False)]
    assert step(scheduler) == [("a", 3, 1, True), ("b", 5, 6, True), ("c", 0, 1, False)]
    assert step(scheduler) == [("a", 4, 1, True), ("b", 11, 1, True), ("c", 1, 1, True)]
    assert step(scheduler) == [("b", 12, 1, True), ("c", 2, 1, True)]
    assert step(scheduler) == [("c", 3, 1, True)]
    assert step(scheduler) == []
    assert not scheduler.has_requests


def test_a_freed_row_is_used_in_the_next_step() -> None:
    scheduler = FCFSScheduler(config(1, 8), SlotManager(1))
    add(scheduler, "a", 2, max_tokens=1)
    add(scheduler, "b", 2, max_tokens=1)
    assert step(scheduler) == [("a", 0, 2, True)]
    output = scheduler.schedule()
    assert output.finished_ids == ("a",)
    assert [entry.row for entry in output.entries] == [0]


def test_too_few_slots_wait() -> None:
    """Rows without blocks are of no use: the queue keeps its order."""
    scheduler = FCFSScheduler(config(4, 100), SlotManager(2))
    for request_id in "abcd":
        add(scheduler, request_id, 2, max_tokens=2)
    assert [name for name, *_ in step(scheduler)] == ["a", "b"]
    assert [name for name, *_ in step(scheduler)] == ["a", "b"]
    assert [name for name, *_ in step(scheduler)] == ["c", "d"]


def test_slot_manager_finds_a_broken_invariant() -> None:
    kv = SlotManager(3)
    request = Request("a", [1], SamplingParams())
    assert kv.reserve(request, 1) == ((1,),)
    assert kv.reserve(request, 5) == ((),)
    kv.check()
    kv._free.append(1)
    with pytest.raises(AssertionError):
        kv.check()


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
