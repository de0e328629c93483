"""`Rig`: a scheduler over a real cache manager and a fake device, with steps in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fake_device import EOS, FakeDevice, assert_as_alone

from quire import SamplingParams
from quire.config import EngineConfig
from quire.kv.block_pool import LRUBlockPool
from quire.kv.kv_cache_manager import KVCacheManager, PagedKVCacheManager
from quire.messages import SchedulerOutput, StepResult
from quire.request import FinishReason, Request
from quire.scheduler_interface import Scheduler

MakeScheduler = Callable[[EngineConfig, KVCacheManager], Scheduler]
BLOCK = 8
NUM_GROUPS = 2


def draft_model(most_drafts: int) -> dict[str, Any]:
    """Return the `speculative_config` of a model that the fake device stands for."""
    return {"method": "draft_model", "model": "fake", "num_speculative_tokens": most_drafts}


class Rig:
    """Adds requests, runs steps, and looks after each that everything is in order."""

    def __init__(
        self,
        make: MakeScheduler,
        *,
        num_blocks: int = 100,
        max_num_seqs: int = 4,
        budget: int = 64,
        max_model_len: int = 64,
        in_flight: int = 1,
        most_drafts: int = 0,
        guesses_on_device: bool = False,
        prefix_caching: bool = True,
        policy: str = "fcfs",
        watermark: float = 0.0,
    ) -> None:
        self.config = EngineConfig.of(
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            device=torch.device("cpu"),
            dtype=torch.float32,
            block_size=BLOCK,
            enable_prefix_caching=prefix_caching,
            policy=policy,
            watermark=watermark,
            overlap=in_flight > 1,
            speculative_config=draft_model(most_drafts) if guesses_on_device else None,
        )
        pools = [LRUBlockPool(num_blocks + 1) for _ in range(NUM_GROUPS)]
        self.kv = PagedKVCacheManager(list(pools), BLOCK, prefix_caching)
        self.scheduler = make(self.config, self.kv)
        self.device = FakeDevice(self.config, NUM_GROUPS, most_drafts)
        self.max_in_flight = in_flight
        self.in_flight: deque[tuple[SchedulerOutput, StepResult]] = deque()
        self.requests: list[Request] = []
        self.outputs: list[SchedulerOutput] = []

    def add(
        self,
        request_id: str,
        prompt: int | Sequence[int],
        *,
        priority: int = 0,
        client_id: str = "",
        parent_id: str | None = None,
        **params: Any,
    ) -> Request:
        """Add a request; a number asks for a prompt of that length, unlike any other."""
        if isinstance(prompt, int):
            prompt = [100 + len(self.requests)] * prompt
        params = {"ignore_eos": True, **params}
        request = Request(
            request_id,
            list(prompt),
            SamplingParams(**params),
            (EOS,),
            priority=priority,
            client_id=client_id,
            parent_id=parent_id,
        )
        self.scheduler.add(request)
        self.requests.append(request)
        return request

    def step(self) -> SchedulerOutput:
        """Schedule one step and let the device queue it; deliver the oldest if that is due."""
        output = self.scheduler.schedule()
        self.outputs.append(output)
        self.in_flight.append((output, self.device.execute(output)))
        assert output.num_free_blocks == self.kv.num_free_blocks
        while len(self.in_flight) >= (self.max_in_flight if output.entries else 1):
            self.deliver()
        self.check()
        return output

    def deliver(self) -> None:
        """Tell the scheduler what the oldest step in flight sampled."""
        output, result = self.in_flight.popleft()
        before = [len(request.output_token_ids) for request in self.requests]
        running = [request for request in self.requests if request.finish_reason is None]
        advanced = self.scheduler.update(output, result)
        grown = [
            request
            for request, length in zip(self.requests, before, strict=True)
            if len(request.output_token_ids) > length
            or (
                (any(request is r for r in running) and not request.sampling_params.output_limit)
                and request.finish_reason is not None
            )
        ]
        assert sorted(map(id, advanced)) == sorted(map(id, grown)), "reports who got a token"
        assert all(any(request is other for other in running) for request in grown)
        order = [entry.request_id for entry in output.entries]
        positions = [order.index(request.request_id) for request in advanced]
        assert positions == sorted(positions)

    def lose(self) -> SchedulerOutput:
        """Schedule a step that never reaches the device."""
        output = self.scheduler.schedule()
        self.device.fail(output)
        self.scheduler.retract(output)
        self.check()
        return output

    def check(self) -> None:
        self.kv.check()
        for request in self.requests:
            known = request.num_tokens + request.num_placeholders + request.num_unverified
            assert 0 <= request.num_computed_tokens <= known, request
            assert min(request.num_placeholders, request.num_draft_tokens) >= 0, request
        alive = [request for request in self.requests if request.finish_reason is None]
        assert self.scheduler.has_requests == bool(alive)
        running = {row.request_id for row in self.device.rows.values()}
        for request in alive:
            if request.request_id not in running:
                assert request.num_computed_tokens == request.num_placeholders == 0, request

    def run(self) -> Rig:
        """Step until everything has ended, and look at what came out."""
        limit = 20 + 4 * sum(
            r.num_tokens + r.sampling_params.max_tokens
            for r in self.requests
            if not r.finish_reason
        )
        while self.scheduler.has_requests:
            self.step()
            limit -= 1
            assert limit > 0, "no end in sight"
        while self.in_flight:
            self.deliver()
        output = self.step()  # the device hears who ended last
        assert output.entries == ()
        assert not self.device.rows
        assert self.kv.num_free_blocks == self.kv.num_blocks
        for request in self.requests:
            assert_as_alone(request, self.config.model.max_model_len)
        return self

    # --- what happened ---------------------------------------------------------

    def entries(self) -> list[list[tuple[str, int, int]]]:
        """Return (request, start, tokens) of each step's entries."""
        return [[(e.request_id, e.start, e.num_tokens) for e in o.entries] for o in self.outputs]

    def admitted(self) -> list[str]:
        return [new.request_id for output in self.outputs for new in output.new_requests]

    def preempted(self) -> list[str]:
        return [request_id for output in self.outputs for request_id in output.preempted_ids]

    def finished(self) -> dict[str, FinishReason | str]:
        return {k: v for output in self.outputs for k, v in output.finish_reasons.items()}
