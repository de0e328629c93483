"""What steps with guesses cost on this device, measured once when the engine starts.

The steps run as they will be run, captured where steps are: k guesses of each request are
verified and k new ones made. Their texts are some hundred tokens long and lie in blocks of their
own, which nobody has yet: for a step reads the cache, and again for each token that a draft model
guesses. Of other lengths steps take more or less, and a proposer's search on the host is not in it:
what steps then take corrects both (`quire.speculation.controller`). Where a model guesses, its
first guess behind a text that it has not read is measured, too, short and long.
"""

from __future__ import annotations

import time

from quire.config import EngineConfig
from quire.messages import NewRequest, ScheduledEntry, SchedulerOutput
from quire.runner.model_runner import ModelRunner
from quire.sampling.params import SamplingParams
from quire.speculation.costs import NO_CATCH_UP, CatchUp, RoundCosts

BATCHES = (1, 4, 16, 32, 64, 128, 256, 512, 1024)
CONTEXT = 512  # tokens of a text; half of the longest that the engine takes, if that is less
STEPS = 4  # queued in a row, so that the host's work between two is hidden, as it is in overlap
ROUNDS = 3
TOKENS, TOKENS_ON_CPU = 4096, 256  # of texts that a draft model has not read
LARGEST_ON_CPU = 16  # requests; beyond, a CPU takes as long as the numbers of tokens say
GREEDY = SamplingParams(temperature=0)


def measure_round_costs(runner: ModelRunner, config: EngineConfig, num_groups: int) -> RoundCosts:
    """Measure steps by (requests, k), k being 0 or one of the config's choices.

    A number of requests whose tokens exceed the step's budget has none.
    """
    assert config.speculation is not None
    scheduling, seconds = config.scheduling, {}
    most = scheduling.max_num_seqs
    batches = [b for b in BATCHES if b < most] + [most]
    if config.model.device.type == "cpu":
        batches = [b for b in batches if b <= LARGEST_ON_CPU] or [most]
    choices, longest = (0, *config.speculation.choices), config.model.max_model_len
    context = max(2, min(CONTEXT, longest // 2, longest - 1 - choices[-1]))
    for batch in batches:
        fitting = [
            k
            for k in choices
            if batch * (1 + k) <= scheduling.max_num_batched_tokens and context + 1 + k <= longest
        ]
        if fitting:
            _begin(runner, config, batch, context, num_groups)
        for k in fitting:
            seconds[batch, k] = _seconds(runner, batch, context, k, num_groups)
    return RoundCosts(seconds, _catch_up(runner, config, num_groups))


def _catch_up(runner: ModelRunner, config: EngineConfig, num_groups: int) -> CatchUp:
    """Measure a draft model's reading, of short texts and of long ones.

    More than fits into a step is computed in pieces, each of which is launched: so a token counts
    its share of all, and not only what it takes more than few do.
    """
    assert config.speculation is not None
    if not config.speculation.guesses_on_device:
        return NO_CATCH_UP
    many = TOKENS_ON_CPU if config.model.device.type == "cpu" else TOKENS
    length = min(config.model.max_model_len - 1, many)
    if length < 2:
        return NO_CATCH_UP  # no text is so long that there is something to guess
    most = config.scheduling.max_num_seqs
    batch, k = max(1, min(most, many // length)), config.speculation.choices[0]
    alone, several = (_first_guess(runner, n, 2, k, num_groups) for n in (1, min(2, most)))
    with runner.launching_prompts():
        long = _first_guess(runner, batch, length, k, num_groups)
    return CatchUp(alone, several, long / (batch * length))


def _first_guess(runner: ModelRunner, batch: int, length: int, k: int, num_groups: int) -> float:
    """Return the seconds that first guesses behind texts take more than those that follow."""
    texts = _texts(batch, length)
    step = _step(batch, length, k, num_groups, num_drafts=0)
    first, second = list[float](), list[float]()
    for _ in range(1 + ROUNDS):
        runner.execute(texts)
        for times in (first, second):
            times.append(_timed(runner, step, 1))
    return max(0.0, min(first[1:]) - min(second[1:]))


def _begin(
    runner: ModelRunner, config: EngineConfig, batch: int, length: int, num_groups: int
) -> None:
    """Give the first rows texts that all models have read, in as many blocks as there are."""
    runner.execute(_texts(batch, length, num_read=length - 1))
    assert config.speculation is not None
    each = -(-(length + 1 + config.speculation.most_guesses) // config.cache.block_size)
    each = min(each, config.max_blocks_per_request)
    step = _step(batch, length, 0, num_groups, num_drafts=0)
    for row, entry in enumerate(step.entries):
        ids = range(row * each, (row + 1) * each)
        blocks = tuple(1 + i % (runner.num_blocks - 1) for i in ids)
        entry.new_block_ids = (blocks,) * num_groups
    runner.execute(step)


def _seconds(runner: ModelRunner, batch: int, length: int, k: int, num_groups: int) -> float:
    step = _step(batch, length, k, num_groups, num_drafts=k)
    # The first loads what was not loaded yet; what else the machine did is none of its cost.
    return min([_timed(runner, step, STEPS) / STEPS for _ in range(1 + ROUNDS)][1:])


def _timed(runner: ModelRunner, step: SchedulerOutput, times: int) -> float:
    runner.settle(())
    begin = time.perf_counter()
    for _ in range(times):
        runner.execute(step)
    runner.settle(())
    return time.perf_counter() - begin


def _texts(batch: int, length: int, num_read: int = 0) -> SchedulerOutput:
    """Return the message that gives texts of so many tokens the first rows."""
    names, ids = [f"text-{i}" for i in range(batch)], [0] * length
    new = (NewRequest(name, i, ids, length, GREEDY, seed=0) for i, name in enumerate(names))
    return SchedulerOutput(0, (), tuple(new), hit_tokens=dict.fromkeys(names, num_read))


def _step(batch: int, length: int, k: int, num_groups: int, num_drafts: int) -> SchedulerOutput:
    """Return the step of the texts' last tokens and so many drafts, with k guesses behind it."""
    nothing_new = ((),) * num_groups
    entries = tuple(
        ScheduledEntry(
            f"text-{row}", row, length - 1, 1 + num_drafts, True, nothing_new, num_drafts
        )
        for row in range(batch)
    )
    return SchedulerOutput(1, entries, num_guesses=k)
