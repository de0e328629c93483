"""The step of a whole layout: what its stages take one after another, or side by side.

`LayoutClock` is the clock of `quire.analysis.planning`'s simulations; `steady` a single step of a
batch that decodes. Explained in the chapter "Parallelism".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quire.analysis.collectives import Link
from quire.analysis.hardware import Hardware
from quire.analysis.rank_memory import BLOCK_SIZE, RankMemory, blocks_that_fit, rank_memory
from quire.analysis.shares import Layout, Share, shares
from quire.analysis.step_parts import QUIRE, EngineRates, Load, StepParts, step_parts
from quire.analysis.step_time import Entry
from quire.errors import QuireError
from quire.models.config import ModelConfig
from quire.quantization.scheme import Scheme


@dataclass(frozen=True)
class Machine:
    """What a layout runs on, and how the engine is set."""

    hardware: Hardware
    link: Link
    rates: EngineRates = QUIRE
    scheme: Scheme | None = None  # of the linear layers; None: 16 bits
    kv_dtype: str = "bf16"
    max_num_seqs: int = 256  # of each copy
    max_num_batched_tokens: int = 16384


@dataclass(frozen=True)
class DecodeStep:
    """A decode step through all stages."""

    seconds: float  # between two tokens of a request
    parts: StepParts  # on the slowest stage
    bottleneck: str  # the largest of them, or "bubble" where stages wait for one another


# docs: layout-clock begin
@dataclass(frozen=True)
class LayoutClock:
    """What a step takes on the ranks of one copy of the model (`quire.analysis.queueing.Clock`).

    With S stages and as many groups of requests, each group waits for its own step to pass all
    stages, and for the slowest stage, or the host, to serve all groups; whichever takes longer is a
    group's step. A group alone waits for the stages one after another.
    """

    stages: list[Share]
    machine: Machine
    num_groups: int = 1  # of requests, in different stages at a time

    def seconds(self, entries: Sequence[Entry]) -> float:
        """Return the time between two tokens of a request."""
        return self.time_of(Load.of(entries))

    def time_of(self, load: Load) -> float:
        """Return what a step with this load takes."""
        parts = [self.parts(share, load) for share in self.stages]
        slowest = max(part.busy for part in parts)
        return max(self.passage(parts, load), self.num_groups * slowest)

    def passage(self, parts: Sequence[StepParts], load: Load) -> float:
        """Return the time of a step from the first stage's begin to the last one's end.

        All stages are told at once, so that each launches its kernels while those before it
        compute.
        """
        num_bytes = load.tokens * self.stages[0].model.hidden_size * 2
        send = self.machine.link.sends.send_seconds(num_bytes)
        done = parts[0].seconds
        for part in parts[1:]:
            done = max(done + send + part.device, part.begin + part.host)
        return done

    def decode_step(self, load: Load) -> DecodeStep:
        """Return what a step with this load takes, and what most of it is."""
        parts = [self.parts(share, load) for share in self.stages]
        slowest = max(parts, key=lambda part: part.busy)
        seconds = self.time_of(load)
        waits = seconds > 1.05 * self.num_groups * slowest.busy
        return DecodeStep(seconds, slowest, "bubble" if waits else slowest.bottleneck)

    def parts(self, share: Share, load: Load) -> StepParts:
        """Return what a step takes on a rank of a stage."""
        machine = self.machine
        return step_parts(
            share,
            load,
            machine.hardware,
            machine.link,
            kv_dtype=machine.kv_dtype,
            rates=machine.rates,
        )


# docs: layout-clock end


def memories_of(stages: list[Share], machine: Machine) -> list[RankMemory]:
    """Return what a rank of each stage holds."""
    return [
        rank_memory(
            share,
            machine.hardware,
            kv_dtype=machine.kv_dtype,
            max_num_seqs=machine.max_num_seqs,
            max_num_batched_tokens=machine.max_num_batched_tokens,
        )
        for share in stages
    ]


@dataclass(frozen=True)
class Steady:
    """A batch that decodes, at one moment. The explorable "Layout planner" shows these."""

    layout: Layout
    memory: RankMemory  # of the fullest stage
    num_blocks: int  # of each copy's cache
    decode: DecodeStep
    tokens_per_s: float  # of all copies together


def steady(
    config: ModelConfig, layout: Layout, machine: Machine, batch: int, context: int
) -> Steady:
    """Return the step that adds a token to each of `batch` contexts under a layout.

    Copies and stages have equally many requests each, rounded up; a step's time is that of the
    largest group.

    Raises:
        QuireError: the model cannot be laid out like this; or the cache is too small.
    """
    stages = shares(config, layout, machine.scheme)
    memories = memories_of(stages, machine)
    own = -(-batch // layout.data)
    num_blocks = blocks_that_fit(memories, context)
    seats = (num_blocks - 1) // -(-context // BLOCK_SIZE)
    if seats < own:
        raise QuireError(
            f"a copy's cache holds {seats} contexts of {context} tokens, and {own} of "
            f"batch={batch} are meant for it; take a smaller batch"
        )
    num_groups = min(layout.pipeline, own)
    clock = LayoutClock(stages, machine, num_groups)
    decode = clock.decode_step(Load.decode(-(-own // num_groups), context))
    fullest = max(memories, key=lambda memory: memory.weights)
    return Steady(layout, fullest, num_blocks, decode, batch / decode.seconds)
