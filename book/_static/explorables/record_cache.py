"""What the block-table player replays: a run of quire in a cache of very few blocks.

Four prompts, one of them sampled twice, come to an engine whose cache cannot hold them all:
blocks are shared, copied on write, evicted, and taken from a request that must wait again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire import LLM, Components, SamplingParams, Trace
from quire.config import EngineConfig
from quire.kv.block_pool import LRUBlockPool
from quire.kv.kv_cache_manager import KVCacheManager
from quire.messages import SchedulerOutput
from quire.scheduler import TokenBudgetScheduler

BLOCK_SIZE, NUM_BLOCKS = 8, 12  # the smallest block quire takes; the null block not counted
MAX_TOKENS_OF_A_STEP = 64
TEXT = '''"""Points, lines and polygons of the plane, with the operations that a plot needs."""

from math import hypot


class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def distance(self, other):
        return hypot(self.x - other.x, self.y - other.y)
'''


@dataclass(frozen=True)
class Arrival:
    """A prompt made of two pieces of TEXT's tokens, and the step before which it comes."""

    name: str
    step: int
    pieces: tuple[tuple[int, int], ...]  # [begin, end) each
    max_tokens: int
    n: int = 1


ARRIVALS = (
    Arrival("A", 1, ((0, 24), (30, 36)), 16),
    Arrival("B", 2, ((0, 24), (40, 45)), 5),
    Arrival("C", 4, ((50, 62),), 12, n=2),
    Arrival("D", 8, ((26, 54),), 8),
    Arrival("E", 20, ((0, 24), (60, 66)), 3),
)


class RecordingPool(LRUBlockPool):
    """The engine's pool, noting every operation that changed it."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks)
        self.operations: list[tuple[str, list[int]]] = []

    def allocate(self, num_blocks: int) -> list[int]:
        """Note which blocks were given out."""
        block_ids = super().allocate(num_blocks)
        self._note("allocate", block_ids)
        return block_ids

    def acquire(self, block_ids: Iterable[int]) -> None:
        """Note which cached blocks were found."""
        block_ids = list(block_ids)
        super().acquire(block_ids)
        self._note("acquire", block_ids)

    def release(self, block_ids: Iterable[int]) -> None:
        """Note the order in which blocks were given back."""
        block_ids = list(block_ids)
        super().release(block_ids)
        self._note("release", block_ids)

    def publish(self, block_id: int, block_hash: bytes) -> None:
        """Note a block that can be found from now on."""
        super().publish(block_id, block_hash)
        if self._hashes.get(block_id) == block_hash:
            self._note("publish", [block_id])

    def state(self) -> dict[str, list[int]]:
        """The free blocks, the next one to be given out first, and those that can be found."""
        return {"free": self._ring(), "cached": sorted(self._hashes)}

    def _note(self, operation: str, block_ids: list[int]) -> None:
        if block_ids:
            self.operations.append((operation, block_ids))


@dataclass
class Recording:
    """One frame a step, and the pool's own state after each for the tests to compare with."""

    pools: list[RecordingPool] = field(default_factory=list)
    frames: list[dict[str, Any]] = field(default_factory=list)
    states: list[dict[str, list[int]]] = field(default_factory=list)

    def pool(self, num_blocks: int) -> RecordingPool:
        """Make the engine's pool."""
        self.pools.append(RecordingPool(num_blocks))
        return self.pools[-1]

    def scheduler(self, config: EngineConfig, kv: KVCacheManager) -> TokenBudgetScheduler:
        """Make the engine's scheduler."""
        return RecordingScheduler(config, kv, self)


class RecordingScheduler(TokenBudgetScheduler):
    """The engine's scheduler; a frame ends where a step's work is decided."""

    def __init__(self, config: EngineConfig, kv: KVCacheManager, recording: Recording) -> None:
        super().__init__(config, kv)
        self._recording = recording

    def schedule(self) -> SchedulerOutput:
        """Note the tables with which the step runs, and what the pool did since the last."""
        output = super().schedule()
        (pool,) = self._recording.pools
        running = [tracked.request for tracked in self._running.values()]
        self._recording.frames.append(
            {
                "operations": pool.operations,
                "tables": {r.request_id: self._kv.block_ids(r)[0] for r in running},
                "tokens": {r.request_id: r.num_computed_tokens for r in running},
                "waiting": [i for i, tracked in self._tracked.items() if tracked.row is None],
            }
        )
        pool.operations = []
        self._recording.states.append(pool.state())
        return output


def record(model: str) -> tuple[Recording, Trace]:
    """Run the arrivals; the last frame is a step without work, when all have ended."""
    recording, trace = Recording(), Trace()
    llm = LLM(
        model,
        dtype="float32",
        device="cpu",
        max_model_len=BLOCK_SIZE * NUM_BLOCKS,
        max_num_seqs=4,
        max_num_batched_tokens=MAX_TOKENS_OF_A_STEP,
        block_size=BLOCK_SIZE,
        num_blocks=NUM_BLOCKS + 1,
        components=Components(block_pool=recording.pool, scheduler=recording.scheduler),
        trace=trace,
    )
    assert llm.tokenizer is not None
    tokens = list(llm.tokenizer.encode(TEXT))
    engine, waiting, step = llm.engine, list(ARRIVALS), 1
    while waiting or engine.has_requests:
        while waiting and waiting[0].step <= step:
            arrival = waiting.pop(0)
            prompt = [token for begin, end in arrival.pieces for token in tokens[begin:end]]
            params = SamplingParams(
                max_tokens=arrival.max_tokens, n=arrival.n, seed=1, ignore_eos=True
            )
            engine.add_request(arrival.name, prompt, params)
        engine.step()
        step += 1
    engine.step()
    return recording, trace


def block_table_player(model: str) -> dict[str, Any]:
    """Every step of the run: the trace's decisions, the tables, and the pool's operations."""
    recording, trace = record(model)
    return {
        "model": Path(model).name,
        "block_size": BLOCK_SIZE,
        "num_blocks": NUM_BLOCKS,
        "requests": [
            {
                "id": f"{arrival.name}-{index}",
                "name": arrival.name if arrival.n == 1 else f"{arrival.name}{index + 1}",
                "arrives": arrival.step,
                "prompt_tokens": sum(end - begin for begin, end in arrival.pieces),
                "max_tokens": arrival.max_tokens,
            }
            for arrival in ARRIVALS
            for index in range(arrival.n)
        ],
        "steps": [
            {**frame, **decisions_of(step.scheduled)}
            for frame, step in zip(recording.frames, trace.steps, strict=True)
        ],
    }


def decisions_of(scheduled: SchedulerOutput) -> dict[str, Any]:
    """What one step's message says of its requests."""
    return {
        "finished": scheduled.finished_ids,
        "preempted": scheduled.preempted_ids,
        "hits": scheduled.hit_tokens,
        "copies": scheduled.block_copies[0] if scheduled.block_copies else [],
        "entries": [
            {"id": entry.request_id, "start": entry.start, "tokens": entry.num_tokens}
            for entry in scheduled.entries
        ],
    }


# What the explorer opens with: prompts, and the salt each sends along ("" is none).
PREFIX_PROMPTS = (
    ("Answer briefly. Translate into French: good morning", ""),
    ("Answer briefly. Translate into French: good night", ""),
    ("Answer briefly. Translate into Greek: good night", ""),
)


def prefix_cache_explorer(model: str) -> dict[str, Any]:
    """The prompts of the explorer; bytes are its tokens, so no model is asked."""
    return {
        "block_size": 16,
        "block_sizes": [8, 16, 32],
        "prompts": [{"text": text, "salt": salt} for text, salt in PREFIX_PROMPTS],
    }
