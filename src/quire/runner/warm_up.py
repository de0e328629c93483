"""Steps that nobody asked for: they make every kernel compile before the first request.

Triton compiles a kernel when it first meets a combination of constants, types and alignments,
for half a second to two. What a captured step needs is compiled at its capture. A step that is
not captured may bring other numbers of tokens, sequences or sampled rows: one of each kind runs
here, on the null block, in rows that belong to nobody yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quire.config import EngineConfig
from quire.kernels.expert_tiles import tile_changes
from quire.kernels.linear import MAX_ROWS
from quire.kernels.norm import MANY_ROWS
from quire.kernels.tiles import EACH_ROWS
from quire.messages import NewRequest, ScheduledEntry, SchedulerOutput
from quire.models.moe_config import MoEConfig
from quire.runner.decode_graphs import batch_sizes
from quire.runner.model_runner import ModelRunner
from quire.sampling.params import SamplingParams

GREEDY = SamplingParams(temperature=0)
DRAWN = SamplingParams(temperature=0.8, top_k=40, top_p=0.9, min_p=0.01)
# What logits are shaped and scored with is torch's, which loads its kernels at their first use.
SHAPED = SamplingParams(temperature=0, repetition_penalty=1.1, prompt_logprobs=5)
SCORED = SamplingParams(temperature=0, logprobs=5)


@dataclass(frozen=True)
class Piece:
    """A request's part in a step: `num_tokens` positions from `start` on, the last sampled."""

    start: int
    num_tokens: int
    params: SamplingParams = GREEDY


def warm_up(
    runner: ModelRunner,
    config: EngineConfig,
    num_groups: int,
    *,
    gives_logprobs: bool,
    moe: MoEConfig | None = None,
    num_slots: int | None = None,
    num_experts: int | None = None,
) -> None:
    """Run every kind of step; returns when the device has done them.

    Args:
        gives_logprobs: whether the sampler can be asked for log-probabilities; a swapped one
            may leave them out, as long as no request wants them.
        moe: the model's experts.
        num_slots: how many of a layer's experts are here; None: all.
        num_experts: how many there are on all ranks, copies included; None: as many as the model's.
    """
    steps = list(_steps(config, gives_logprobs))
    if moe is not None:
        slots = num_slots or moe.num_experts, num_experts or moe.num_experts
        steps += _steps_by_experts(config, moe.experts_per_token, *slots)
    # A prompt stands here for any step of as many tokens, which is run kernel by kernel.
    with runner.launching_prompts():
        for number, pieces in enumerate(steps):
            runner.execute(_message(number, pieces, config, num_groups))
            runner.settle(())  # nobody reads the tokens; of a model that overflows there are none


def _steps(config: EngineConfig, gives_logprobs: bool) -> Iterator[list[Piece]]:
    most_requests = config.scheduling.max_num_seqs
    budget = config.scheduling.max_num_batched_tokens
    longest = min(config.model.max_model_len - 1, budget)
    # Prompts of each number of tokens that products have a kernel for.
    for num_tokens in (*range(1, MAX_ROWS + 1), *EACH_ROWS):
        yield from _prompts(num_tokens, config)
    # How many rows draw decides how their parameters are aligned, and how the head multiplies.
    for num_rows in range(1, min(MAX_ROWS + 1, most_requests, budget // 2) + 1):
        yield [Piece(0, 2, DRAWN)] * num_rows
        yield [Piece(0, 2)] * num_rows
    for num_tokens in (4, 18, 34):  # one less meets the head, by each of its tiles of some rows
        yield [Piece(0, min(num_tokens, longest), SHAPED)]
    if gives_logprobs:
        yield [Piece(0, min(4, longest), SCORED)]
    # A norm of many rows is launched in another way than one of a few.
    num_prompts = min(-(-(MANY_ROWS + 1) // longest), most_requests, budget // longest)
    yield [Piece(0, longest if num_prompts > 1 else min(MANY_ROWS + 1, longest))] * num_prompts
    # Decodes beside a prompt that starts and a chunk that continues: their number decides how
    # far the reading of one sequence is split.
    chunk = Piece(min(8, longest - 1), min(8, longest - min(8, longest - 1)))
    prompt = Piece(0, min(20, longest))
    for num_decodes in batch_sizes(most_requests):
        pieces = [Piece(min(5, longest - 1), 1)] * num_decodes + [prompt, chunk]
        if len(pieces) <= most_requests and sum(p.num_tokens for p in pieces) <= budget:
            yield pieces


def _steps_by_experts(
    config: EngineConfig, top_k: int, num_slots: int, num_experts: int
) -> Iterator[list[Piece]]:
    """Prompts of as many tokens together as each kind of product over experts begins with."""
    for num_tokens in tile_changes(top_k, num_slots, num_experts):
        yield from _prompts(num_tokens, config)


def _prompts(num_tokens: int, config: EngineConfig) -> Iterator[list[Piece]]:
    """Give the step of prompts of so many tokens together, if a step can have them."""
    budget = config.scheduling.max_num_batched_tokens
    longest = min(config.model.max_model_len - 1, budget)
    whole, rest = divmod(num_tokens, longest)
    pieces = [Piece(0, longest)] * whole + [Piece(0, rest)] * (rest > 0)
    if num_tokens <= budget and len(pieces) <= config.scheduling.max_num_seqs:
        yield pieces


def _message(
    number: int, pieces: list[Piece], config: EngineConfig, num_groups: int
) -> SchedulerOutput:
    """Give each piece a row and null blocks for its positions."""
    new, entries = [], []
    for row, piece in enumerate(pieces):
        name, end = f"warm-up-{number}-{row}", piece.start + piece.num_tokens
        new.append(NewRequest(name, row, [0] * end, end, piece.params, seed=0))
        blocks = ((0,) * -(-end // config.cache.block_size),) * num_groups
        entries.append(ScheduledEntry(name, row, piece.start, piece.num_tokens, True, blocks))
    return SchedulerOutput(number, tuple(entries), tuple(new))
