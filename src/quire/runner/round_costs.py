"""What steps with guesses cost on this device, measured once when the engine starts.

The steps run as they will be run, captured where steps are: k guesses of each request are
verified and k new ones made. Their requests are short and lie in the null block, so attention
costs next to nothing; of long texts every k reads the cache once, and guesses pay a little more
than is measured here. A proposer's search on the host is not in it either. What steps then take
corrects both (`quire.speculation.controller`). Where a model guesses, its first guess behind a
text that it has not read is measured, too, short and long.
"""

from __future__ import annotations

import time

from quire.config import EngineConfig
from quire.messages import NewRequest, ScheduledEntry, SchedulerOutput
from quire.runner.model_runner import ModelRunner
from quire.sampling.params import SamplingParams
from quire.speculation.costs import RoundCosts

BATCHES = (1, 4, 16, 32, 64, 128, 256, 512, 1024)
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
    for batch in batches:
        for k in (0, *config.speculation.choices):
            room = batch * (1 + k) <= scheduling.max_num_batched_tokens
            if room and 3 + k <= config.model.max_model_len:
                seconds[batch, k] = _seconds(runner, batch, k, num_groups)
    return RoundCosts(seconds, _catch_up(runner, config, num_groups))


def _catch_up(runner: ModelRunner, config: EngineConfig, num_groups: int) -> tuple[float, float]:
    """Return the seconds of catching up with a short text, and with a token of long ones.

    More than fits into a step is computed in pieces, each of which is launched: so a token counts
    its share of all, and not only what it takes more than few do. Nothing has to catch up where the
    host guesses: it reads the tokens as they come.
    """
    assert config.speculation is not None
    if not config.speculation.guesses_on_device:
        return 0.0, 0.0
    many = TOKENS_ON_CPU if config.model.device.type == "cpu" else TOKENS
    length = min(config.model.max_model_len - 1, many)
    if length < 2:
        return 0.0, 0.0  # no text is so long that there is something to guess
    batch = max(1, min(config.scheduling.max_num_seqs, many // length))
    short = _first_guess(runner, 1, 2, config, num_groups)
    long = _first_guess(runner, batch, length, config, num_groups)
    return short, long / (batch * length)


def _first_guess(
    runner: ModelRunner, batch: int, length: int, config: EngineConfig, num_groups: int
) -> float:
    """Return the seconds that first guesses behind texts take more than those that follow."""
    assert config.speculation is not None
    names = [f"text-{row}" for row in range(batch)]
    texts = SchedulerOutput(
        0,
        (),
        tuple(
            NewRequest(name, row, [0] * length, length, GREEDY, seed=0)
            for row, name in enumerate(names)
        ),
    )
    entries = tuple(
        ScheduledEntry(name, row, length - 1, 1, True, ((),) * num_groups)
        for row, name in enumerate(names)
    )
    step = SchedulerOutput(1, entries, num_guesses=config.speculation.choices[0])
    first, second = list[float](), list[float]()
    for _ in range(1 + ROUNDS):
        runner.execute(texts)
        for times in (first, second):
            runner.settle(())
            begin = time.perf_counter()
            runner.execute(step)
            runner.settle(())
            times.append(time.perf_counter() - begin)
    return max(0.0, min(first[1:]) - min(second[1:]))


def _seconds(runner: ModelRunner, batch: int, k: int, num_groups: int) -> float:
    names = [f"round-{row}" for row in range(batch)]
    begun = SchedulerOutput(
        0,
        (),
        tuple(NewRequest(name, i, [0, 0], 2, GREEDY, seed=0) for i, name in enumerate(names)),
    )
    nothing_new = ((),) * num_groups
    entries = tuple(
        ScheduledEntry(name, row, 1, 1 + k, True, nothing_new, k) for row, name in enumerate(names)
    )
    runner.execute(begun)
    step = SchedulerOutput(1, entries, num_guesses=k)
    times = []
    for _ in range(1 + ROUNDS):  # the first loads what was not loaded yet
        runner.settle(())
        begin = time.perf_counter()
        for _ in range(STEPS):
            runner.execute(step)
        runner.settle(())
        times.append((time.perf_counter() - begin) / STEPS)
    return min(times[1:])  # what else the machine did is none of its cost
