"""The second tier: what is saved, found again and loaded, and that nobody's tokens change."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from checkpoints import assert_empty, random_prompts
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from runs import Folder, Run

from quire import LLM, Components, QuireError, SamplingParams
from quire.kv.block_pool import BlockPool, LRUBlockPool
from quire.kv.host.manager import OffloadingKVCacheManager
from quire.kv.host.scheduler import OffloadingScheduler
from quire.kv.host.storage import HostBlocks
from quire.kv.host.tier import HostTier
from quire.kv.quantized import FORMATS
from quire.kv.spec import KVCacheSpec
from quire.kv.storage import KVStorage
from quire.messages import Transfer
from quire.request import FinishReason, Request
from quire.scheduler import TokenBudgetScheduler

BLOCK, GROUPS = 2, 2
PROMPTS = st.tuples(st.integers(0, 2), st.integers(1, 9)).map(lambda drawn: [drawn[0]] * drawn[1])


class TwoTiers(RuleBasedStateMachine):
    """Requests over a few blocks and slots; a position's content is the tokens up to it.

    Transfers are carried out in their order when a step begins, then the step writes. Whatever
    a request takes over must hold the contents of its own tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        pools: list[BlockPool] = [LRUBlockPool(6) for _ in range(GROUPS)]
        self.manager = OffloadingKVCacheManager(pools, BLOCK, True, num_host_blocks=3)
        self.blocks: list[dict[tuple[int, int], Any]] = [{} for _ in range(GROUPS)]
        self.slots: list[dict[tuple[int, int], Any]] = [{} for _ in range(GROUPS)]
        self.running: list[Request] = []
        self.number = 0

    def take(self) -> list[Transfer]:
        return list(self.manager.take_transfers())

    def begin_step(self) -> None:
        for transfer in self.take():
            memory = self.blocks[transfer.group], self.slots[transfer.group]
            source, target = memory if transfer.kind == "save" else memory[::-1]
            for offset in range(BLOCK):
                target[transfer.target, offset] = source.get((transfer.source, offset))

    def write(self, request: Request, begin: int, end: int) -> None:
        tokens = request.prompt_token_ids
        for memory, table in zip(self.blocks, self.manager.block_ids(request), strict=True):
            for p in range(begin, end):
                memory[table[p // BLOCK], p % BLOCK] = tuple(tokens[: p + 1])

    @precondition(lambda self: len(self.running) < 2)
    @rule(tokens=PROMPTS)
    def admit(self, tokens: list[int]) -> None:
        """Begin a request whose prompt one step computes."""
        self.number += 1
        request = Request(str(self.number), tokens, SamplingParams())
        start = self.manager.match_prefix(request)
        assert start < len(tokens)
        request.num_computed_tokens = start
        admitted = self.manager.reserve(request, len(tokens) - start) is not None
        self.begin_step()
        if not admitted:
            self.manager.free(request)
            return
        for memory, table in zip(self.blocks, self.manager.block_ids(request), strict=True):
            for p in range(start):
                assert memory[table[p // BLOCK], p % BLOCK] == tuple(tokens[: p + 1])
        self.write(request, start, len(tokens))
        request.num_computed_tokens = len(tokens)
        self.running.append(request)

    @precondition(lambda self: len(self.running) < 2)
    @rule(tokens=PROMPTS)
    def serve(self, tokens: list[int]) -> None:
        """A request from its beginning to its end."""
        before = len(self.running)
        self.admit(tokens)
        if len(self.running) > before:
            self.manager.commit(self.running[-1])
            self.finish(self.running.pop())

    @rule(tokens=PROMPTS)
    def admit_in_a_step_that_fails(self, tokens: list[int]) -> None:
        """Its transfers are never carried out."""
        request = Request("failed", tokens, SamplingParams())
        request.num_computed_tokens = start = self.manager.match_prefix(request)
        self.manager.reserve(request, len(tokens) - start)
        self.take()
        self.manager.forget_host()
        self.finish(request)

    def finish(self, request: Request) -> None:
        request.finish_reason = FinishReason.LENGTH
        self.manager.free(request)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), learns=st.booleans())
    def end(self, data: st.DataObject, learns: bool) -> None:
        """A request ends, or is preempted before or after its step's result is known."""
        request = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if learns:
            self.manager.commit(request)
        self.finish(request)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def learn(self, data: st.DataObject) -> None:
        self.manager.commit(self.running[data.draw(st.integers(0, len(self.running) - 1))])

    @invariant()
    def holds_together(self) -> None:
        self.manager.check()


TestTwoTiers = TwoTiers.TestCase
TestTwoTiers.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class Unpinned(HostTier):
    def store(self, block_hash: bytes) -> int | None:
        self._pinned = frozenset()
        return super().store(block_hash)


class WithoutPins(TwoTiers):
    def __init__(self) -> None:
        super().__init__()
        for pool in self.manager._pools:
            pool._tier.__class__ = Unpinned  # type: ignore[attr-defined]


class LoadsFirst(TwoTiers):
    def take(self) -> list[Transfer]:
        return sorted(super().take(), key=lambda transfer: transfer.kind)


class NothingForgotten(TwoTiers):
    def __init__(self) -> None:
        super().__init__()
        self.manager.forget_host = lambda: None  # type: ignore[method-assign]


@pytest.mark.parametrize("mutant", [WithoutPins, LoadsFirst, NothingForgotten])
def test_the_machine_notices(mutant: type[TwoTiers]) -> None:
    case = mutant.TestCase
    case.settings = settings(
        max_examples=2000, stateful_step_count=40, deadline=None, phases=[Phase.generate]
    )
    with pytest.raises(AssertionError):
        case("runTest").runTest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, *FORMATS.values()])
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["cpu", "cuda"]
)
def test_transfers_have_the_effect_of_their_order(dtype: torch.dtype, device: str) -> None:
    """Random lists with targets that come again, against one copy at a time."""
    specs = [KVCacheSpec(2, 16, dtype), KVCacheSpec(1, 16, dtype, 8), KVCacheSpec(2, 16, dtype)]
    groups = [0, 1, 0]
    storage = KVStorage(specs, groups, 9, 8, torch.device(device))
    for kv in storage.layers:
        for x in kv.tensors:
            x.copy_(torch.randint(0, 100, x.shape).to(x.dtype))
    host = HostBlocks(storage, groups, 4)
    blocks = {
        (layer, block): [x[block].clone() for x in kv.tensors]
        for layer, kv in enumerate(storage.layers)
        for block in range(9)
    }
    slots: dict[tuple[int, int], Any] = {}
    generator, transfers = random.Random(0), []
    for _ in range(120):
        group, block, slot = (
            generator.randrange(2),
            generator.randrange(1, 9),
            generator.randrange(4),
        )
        layers = [layer for layer, own in enumerate(groups) if own == group]
        if generator.random() < 0.6 or any((layer, slot) not in slots for layer in layers):
            transfers.append(Transfer(group, "save", block, slot))
            slots |= {(layer, slot): blocks[layer, block] for layer in layers}
        else:
            transfers.append(Transfer(group, "load", slot, block))
            blocks |= {(layer, block): slots[layer, slot] for layer in layers}
    host.carry_out(transfers[:70])
    host.carry_out(transfers[70:])
    for (layer, block), expected in blocks.items():
        for x, content in zip(storage.layers[layer].tensors, expected, strict=True):
            assert torch.equal(x[block], content), (layer, block)
    assert host.num_bytes == 4 * storage.num_bytes // 9


GREEDY = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
SMALL: dict[str, Any] = {"block_size": 8, "max_model_len": 112, "num_blocks": 19, "max_num_seqs": 4}


def manager_of(llm: LLM) -> OffloadingKVCacheManager:
    scheduler = llm.engine._scheduler
    assert isinstance(scheduler, OffloadingScheduler)
    return scheduler._offloading


def answers(run: Run, prompts: list[list[int]]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in run.generate(prompts, GREEDY)]


@pytest.mark.parametrize("model", ["llama3-scaled", "qwen2-two-groups"])
@pytest.mark.parametrize("kv_cache_dtype", [None, "int8"])
@pytest.mark.parametrize("overlap", [False, True])
def test_tokens_are_those_of_a_large_cache(
    model: str, kv_cache_dtype: str | None, overlap: bool, checkpoint: Folder
) -> None:
    """Prompts twice over, with preemption, evictions and loads on the way."""
    prompts = random_prompts([60, 35, 41, 70, 9, 50], seed=11)
    options: dict[str, Any] = {"kv_cache_dtype": kv_cache_dtype}
    large = Run.of(checkpoint(model), **options, **{**SMALL, "num_blocks": 200})
    expected = answers(large, prompts)
    run = Run.of(checkpoint(model), num_host_blocks=100, overlap=overlap, **options, **SMALL)
    assert answers(run, prompts) == expected
    assert run.decisions("preempt")
    assert answers(run, prompts) == expected
    manager = manager_of(run.llm)
    manager.check()
    assert manager.num_saved_blocks > 10
    assert manager.num_loaded_tokens > 100
    loads = [
        transfer
        for step in run.trace.steps
        for transfer in step.scheduled.transfers
        if transfer.kind == "load"
    ]
    groups = len(manager._pools)
    assert len(loads) * SMALL["block_size"] == groups * manager.num_loaded_tokens


def computed_tokens(run: Run) -> int:
    return sum(step.scheduled.num_tokens for step in run.trace.steps)


def test_a_preempted_request_is_swapped(checkpoint: Folder) -> None:
    """It comes back with all its full blocks: fewer positions are computed twice."""
    prompts = random_prompts([40, 40, 40, 40], seed=12)
    counts, preempted = {}, {}
    for num_host_blocks in (0, 100):
        run = Run.of(checkpoint("llama3-scaled"), num_host_blocks=num_host_blocks, **SMALL)
        answers(run, prompts)
        counts[num_host_blocks] = computed_tokens(run)
        preempted[num_host_blocks] = len(run.decisions("preempt"))
    needed = sum(len(prompt) + 29 for prompt in prompts)
    assert preempted[100] > 0
    assert needed <= counts[100] <= needed + preempted[100] * SMALL["block_size"]
    assert counts[0] > counts[100]


def test_a_failed_step_leaves_nothing_wrong_behind(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saves that were decided and never carried out are not found later."""
    prompts = random_prompts([60, 35, 41, 70, 9, 50], seed=11)
    expected = answers(Run.of(checkpoint("llama3-scaled"), **{**SMALL, "num_blocks": 200}), prompts)
    run = Run.of(checkpoint("llama3-scaled"), num_host_blocks=100, **SMALL)
    runner, turns = run.llm.engine.executor.worker.runner, iter(range(10_000))
    execute = runner.execute

    def fails_at_times(output: Any) -> Any:
        if output.transfers and next(turns) % 3 == 0:
            raise KeyboardInterrupt
        return execute(output)

    monkeypatch.setattr(runner, "execute", fails_at_times)
    handles = [run.add(prompt, GREEDY) for prompt in [*prompts, *prompts]]
    failures = 0
    while run.llm.engine.has_requests:
        try:
            run.llm.engine.step()
        except KeyboardInterrupt:
            failures += 1
    assert failures > 2
    outputs = run.finish_all(handles)
    assert [o.outputs[0].token_ids for o in outputs] == [*expected, *expected]
    assert_empty(run.llm)


def test_without_a_tier_no_step_has_transfers(checkpoint: Folder) -> None:
    run = Run.of(checkpoint("llama3-scaled"), **SMALL)
    answers(run, random_prompts([60, 35, 41, 70], seed=11))
    assert type(run.llm.engine._scheduler) is TokenBudgetScheduler
    assert run.llm.engine.executor.worker.runner._parts.storage.host is None
    assert not any(step.scheduled.transfers for step in run.trace.steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_host_blocks": -1}, "num_host_blocks=-1: must be an integer of at least 0"),
        ({"num_host_blocks": 2, "enable_prefix_caching": False}, "found in host memory by their"),
        ({"num_host_blocks": 2, "kv_window": 8}, "behind a window they are gone; choose one"),
        ({"num_host_blocks": 10**12}, "of host memory and the machine has"),
        (
            {"num_host_blocks": 2, "components": Components(scheduler=TokenBudgetScheduler)},
            "with a scheduler or kv_cache_manager of your own",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    options: dict[str, Any], message: str, checkpoint: Folder
) -> None:
    with pytest.raises(QuireError, match=message):
        LLM(checkpoint("llama3-scaled"), device="cpu", **options)


def test_a_tier_without_slots_is_refused() -> None:
    with pytest.raises(QuireError, match="num_host_blocks=0: a tier needs at least 1"):
        HostTier(0)


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True])
def test_a_gpu_loads_what_it_saved(overlap: bool, checkpoint: Folder) -> None:
    prompts = random_prompts([60, 35, 41, 70, 9, 50], seed=11)
    large = Run.of(checkpoint("llama3-scaled"), "cuda", **{**SMALL, "num_blocks": 200})
    expected = answers(large, prompts)
    run = Run.of(checkpoint("llama3-scaled"), "cuda", num_host_blocks=100, overlap=overlap, **SMALL)
    for _ in range(2):
        assert answers(run, prompts) == expected
    assert manager_of(run.llm).num_loaded_tokens > 100
