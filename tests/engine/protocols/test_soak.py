"""Ten thousand random requests on a cache of twenty blocks leave nothing behind."""

from __future__ import annotations

import random

import pytest
from fake_device import assert_as_alone
from rig import Rig

from quire.scheduler import TokenBudgetScheduler

IMPLEMENTATIONS = (TokenBudgetScheduler,)


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_2500_requests_four_times(implementation: type, in_flight: int, policy: str) -> None:
    """Aborts, several samples of a prompt, shared prefixes, priorities, preemption."""
    rng = random.Random(f"{in_flight} {policy}")
    rig = Rig(
        implementation,
        num_blocks=20,
        max_num_seqs=8,
        budget=40,
        max_model_len=48,
        in_flight=in_flight,
        policy=policy,
        watermark=0.05,
    )
    num_added = num_aborted = num_preempted = num_copies = num_hits = 0
    while num_added < 2500 or rig.scheduler.has_requests:
        while num_added < 2500 and len(rig.requests) < 40:
            num_added += add(rig, rng, num_added)
        if rng.random() < 0.05:
            rig.scheduler.abort(rng.choice(rig.requests).request_id)
            num_aborted += 1
        output = rig.step()
        num_preempted += len(output.preempted_ids)
        num_copies += sum(len(pairs) for pairs in output.block_copies)
        num_hits += sum(output.hit_tokens.values())
        for request in rig.requests:
            if request.finish_reason is not None:
                assert_as_alone(request, rig.config.model.max_model_len)
        rig.requests = [r for r in rig.requests if r.finish_reason is None]
        rig.outputs.clear()
    rig.run()
    assert rig.kv.num_free_blocks == 20
    assert not rig.kv._tables
    assert not rig.kv._chains
    assert min(num_aborted, num_preempted, num_copies, num_hits) > 100


def add(rig: Rig, rng: random.Random, number: int) -> int:
    """Add one prompt with one to three samples; return how many."""
    length = rng.choice([1, 5, 8, 15, 16, 17, 24, 33])
    shared = rng.choice([0, length - 1, length])
    prompt = [1] * shared + [100 + number] * (length - shared)
    num_samples = rng.choice([1, 1, 1, 2, 3])
    priority, max_tokens = rng.randrange(3), rng.choice([1, 4, 12, 40])
    for sample in range(num_samples):
        rig.add(
            f"{number}-{sample}",
            prompt,
            max_tokens=max_tokens,
            ignore_eos=rng.random() < 0.5,
            priority=priority,
            parent_id=f"{number}-0" if sample else None,
            seed=sample,
        )
    return num_samples
