"""Random requests, aborts, failures and steps in flight, on a cache that is often too small."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rig import MakeScheduler, Rig

from quire.request import FinishReason


class SchedulerMachine(RuleBasedStateMachine):
    """All that must hold is checked by the rig, after each step and at the end."""

    def __init__(self, make: MakeScheduler) -> None:
        super().__init__()
        self.make = make

    @initialize(
        num_blocks=st.integers(4, 12),
        max_num_seqs=st.integers(1, 4),
        budget=st.integers(1, 24),
        in_flight=st.integers(1, 3),
        most_drafts=st.integers(0, 3),
        prefix_caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority", "fair"]),
        watermark=st.sampled_from([0.0, 0.25]),
    )
    def start(self, **options: object) -> None:
        self.rig = Rig(self.make, max_model_len=30, **options)  # type: ignore[arg-type]

    @rule(
        length=st.integers(1, 20),
        like=st.booleans(),
        max_tokens=st.integers(1, 12),
        ignore_eos=st.booleans(),
        num_samples=st.integers(1, 3),
        priority=st.integers(0, 2),
        client=st.sampled_from("xy"),
    )
    def add(
        self,
        length: int,
        like: bool,
        max_tokens: int,
        ignore_eos: bool,
        num_samples: int,
        priority: int,
        client: str,
    ) -> None:
        number = len(self.rig.requests)
        prompt = [1] * length if like else [100 + number] * length
        for sample in range(num_samples):
            self.rig.add(
                f"{number}-{sample}",
                prompt,
                max_tokens=max_tokens,
                ignore_eos=ignore_eos,
                priority=priority,
                client_id=client,
                parent_id=f"{number}-0" if sample else None,
                seed=sample,
            )

    @rule(choice=st.integers(0, 99), reason=st.sampled_from([FinishReason.ABORT]))
    @precondition(lambda self: self.rig.requests)
    def abort(self, choice: int, reason: FinishReason) -> None:
        request = self.rig.requests[choice % len(self.rig.requests)]
        was = request.finish_reason
        self.rig.scheduler.abort(request.request_id, reason)
        assert request.finish_reason == (was or reason)

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            had_requests = self.rig.scheduler.has_requests
            idle = not self.rig.in_flight
            output = self.rig.step()
            if had_requests and idle:  # else it may wait for a step that is in flight
                assert output.entries, "no progress"

    @rule()
    def fail(self) -> None:
        self.rig.lose()

    @rule()
    @precondition(lambda self: self.rig.in_flight)
    def deliver(self) -> None:
        self.rig.deliver()

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "rig"):
            self.rig.check()

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.run()
