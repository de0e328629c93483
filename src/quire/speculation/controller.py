"""`LengthController`: how many tokens to guess, from what guesses cost and how many stand.

A step that verifies k guesses and makes k new ones takes longer than one that does neither, and
how much depends on the batch. It brings 1 + r₁ + … + r_k tokens a request, r_i being the share of
requests whose i-th guess stands. The controller takes the k with the most tokens a second. Costs
are measured when the engine starts (`quire.runner.round_costs`) and corrected by what steps then
take; the shares are those of recent steps.

A draft model reads what it guesses for: prompts, as long as there are guesses. Where there were
none it first catches up with all that was said without it, and nobody knows how long the texts go
on. So guesses begin once those that were not made would have saved as much time as catching up
takes: the break-even rule of the ski rental problem. Texts that end just then have paid for
nothing; how often that happens no rule can know.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

from quire.config import EngineConfig
from quire.messages import SchedulerOutput, StepResult
from quire.request import Request
from quire.speculation.costs import RoundCosts

FIRST_SHARE = 0.8  # believed of each guess, if those before it stand, until one was judged
HOPEFUL_SHARE = 0.95  # what might have become of the text while nothing was guessed
INF = float("inf")
MEMORY = 0.05  # weight of one request's newest step in the shares
# Weight of a step in the mean of its prompts: small, for prompts that came at once say little of
# those that will come while their texts go on. The first steps count alike: where many prompts come
# and short texts follow, reading the prompts takes longer than guesses save.
PROMPT_MEMORY = 1 / 256
# In a trial's step the shares so far count like those of so many requests: with one request 0.4 of
# the result is new, with 32 it is 0.96. So does what is believed before the first step.
OLD_SHARES = 1.5
# Weight, in the share of a position that a step does not try, of what the tried ones let expect.
HOPE = 1 / 64
COST_MEMORY = 7  # steps whose median says what steps take: one that was disturbed says nothing
FORGET_EVERY = 32  # steps after which one of those is believed to be as it was measured
SWITCH = 1.03  # another k must bring so much more
BEGIN = 1.1  # and so much to begin with new prompts: who gives up soon has read them for nothing
TRIAL_EVERY, TRIAL_STEPS = 256, 4  # while nothing is guessed
TRIAL_GAIN = 1.1  # a trial must promise so many times the tokens a second, for it costs time
TRIAL_SHARE = 0.01  # of the time without guesses is saved up, which a trial may take


def requests_ahead(
    scheduled: SchedulerOutput, config: EngineConfig, unfinished: Callable[[], Iterable[Request]]
) -> int:
    """Return how many requests the steps behind one will have, as far as one can tell.

    Where its tokens fill the budget, prompts wait that the next steps take in, as many as there are
    seats and room in the cache for.
    """
    batch, scheduling = len(scheduled.entries), config.scheduling
    if scheduled.num_tokens < scheduling.max_num_batched_tokens:
        return batch
    room = scheduled.num_free_blocks * config.cache.block_size
    for request in unfinished():
        if request.num_computed_tokens == 0:
            room -= request.num_tokens
            if room < 0 or batch >= scheduling.max_num_seqs:
                break
            batch += 1
    return batch


class LengthController:
    """Chooses k for each step, among a few; 0 guesses nothing."""

    def __init__(self, costs: RoundCosts, choices: Sequence[int]) -> None:
        """Choose among 0 and those of `choices`, in tokens, whose costs were measured."""
        self._costs = costs
        self._choices = (0, *(k for k in sorted(choices) if costs.at(1, k) < INF))
        self._shares: list[float] = []  # of requests whose i-th guess stood, as far as judged
        self._num_judged: list[int] = []  # how many such guesses there were
        self._share_of_steps = 1.0  # in which somebody had guesses, after they were asked for
        # What steps took, in units of what was measured: the host's work, the texts' length.
        self._ratios = {k: deque([1.0] * COST_MEMORY, COST_MEMORY) for k in self._choices}
        self._slower = dict.fromkeys(self._choices, 1.0)  # the median of each
        self._num_observed = 0
        self._chosen = self._choices[-1]  # in hope
        self._told = self._chosen  # the last step, which may have been a trial's
        # Of requests, the tokens that whoever guesses has read: as of their beginning, or as of
        # when guesses were last given up. What nobody guesses for it need not read.
        self._read: dict[str, float] = {}
        self._reading = 0.0  # seconds for the prompts of recent steps, a token of each request
        self._num_followed = 0  # steps that this is the mean of, at first
        self._missed = 0.0  # seconds that guesses would have saved of late
        self._asked: int | None = 0  # how many guesses behind the last step observed
        self._steps_without = 0
        self._saved = 0.0  # seconds for the next trial
        self._trial = 0  # how many tokens the trial under way guesses
        self._trial_steps = 0  # that are left of it

    # docs: choose begin
    def choose(self, output: SchedulerOutput, batch: int) -> int:
        """Return how many tokens to guess behind a step.

        Args:
            batch: requests that the steps behind it will have.
        """
        if not output.entries or len(self._choices) == 1:
            return self._told
        shares = self._shares_ahead()
        self._follow(output, shares)
        rates = {k: self._tokens_a_second(batch, k, shares) for k in self._choices}
        best = max(rates, key=rates.__getitem__)
        reads = self._told == 0 and output.new_requests and self._costs.catching_up([1]) > 0
        if rates[best] < (BEGIN if reads else SWITCH) * rates[self._chosen]:
            best = self._chosen
        if self._told == 0 and not self._pays(output, rates):  # which counts in every such step
            best = 0
        self._chosen = best
        if best > 0:
            self._steps_without = self._trial_steps = 0
        else:
            self._steps_without += 1
            best = self._try_out(output, batch)
        self._note(output, best)
        return best

    # docs: choose end

    def _tokens_a_second(self, batch: int, k: int, shares: Sequence[float]) -> float:
        """Return what k guesses a step bring each request."""
        plain = self._cost(batch, 0)
        if k == 0:
            return 1 / plain
        tokens = 1 + sum(shares[:k])
        drafted = self._cost(batch, k) + self._reading * tokens
        return tokens / (plain + (drafted - plain) * self._share_of_steps)

    def _pays(self, output: SchedulerOutput, rates: Mapping[int, float]) -> bool:
        """Whether guesses, had there been any, would have paid for catching up by now."""
        if any(entry.num_tokens == 1 for entry in output.entries):
            guessing = max(rate for k, rate in rates.items() if k > 0)
            self._missed = max(0.0, self._missed + 1 / rates[0] - 1 / guessing)
        return self._missed >= self._catch_up(output)

    def _catch_up(self, output: SchedulerOutput) -> float:
        """Return the seconds of catching up with what a step's requests said without guesses.

        A prompt that comes in this step is read like any other, which `_reading` stands for.
        """
        new = {request.request_id for request in output.new_requests}
        unread = [
            entry.start + entry.num_tokens - self._read.get(entry.request_id, 0)
            for entry in output.entries
            if entry.request_id not in new
        ]
        return self._costs.catching_up([tokens for tokens in unread if tokens > 0])

    def _follow(self, output: SchedulerOutput, shares: Sequence[float]) -> None:
        """Learn who came and went, and how long reading prompts takes a token of each request."""
        for request_id in (*output.finished_ids, *output.preempted_ids):
            self._read.pop(request_id, None)
        # Guesses would help those that are left alone: what the others missed says nothing of them.
        num_left, num_ended = len(output.entries), len(output.finished_ids)
        self._missed *= num_left / (num_left + num_ended)
        for request in output.new_requests:
            hits = output.hit_tokens.get(request.request_id, 0)
            self._read[request.request_id] = hits if request.sampling_params.speculate else INF
        prompts = [
            entry.num_tokens - 1 - entry.num_draft_tokens
            for entry in output.entries
            if self._read.get(entry.request_id) != INF
        ]
        reading = self._costs.catching_up([tokens for tokens in prompts if tokens > 0])
        each = reading / (1 + sum(shares[: self._told]))
        self._num_followed += 1
        self._reading += max(PROMPT_MEMORY, 1 / self._num_followed) * (each - self._reading)

    def _note(self, output: SchedulerOutput, k: int) -> None:
        """Remember what a step was told, and how far the texts are when guesses are given up."""
        if k == 0 < self._told:
            self._missed = 0.0
            for entry in output.entries:
                read = self._read.get(entry.request_id, 0)
                self._read[entry.request_id] = max(read, entry.start)
        self._told = k

    def _try_out(self, output: SchedulerOutput, batch: int) -> int:
        """Return how many tokens a trial guesses; 0 if there is none now."""
        if self._steps_without % TRIAL_EVERY == 0:
            self._begin_trial(output, batch)
        if self._trial_steps == 0:
            return 0
        self._trial_steps -= 1
        return self._trial

    def _begin_trial(self, output: SchedulerOutput, batch: int) -> None:
        """Try what would bring most if the text had become easy to guess.

        Not if even then it would bring hardly more than no guesses, or while trying takes longer
        than is saved up for it. What is left does not count for the next one: two trials in a row
        are not wanted.
        """
        hoped = [HOPEFUL_SHARE**i for i in range(1, self._choices[-1] + 1)]
        k = max(self._choices[1:], key=lambda k: self._tokens_a_second(batch, k, hoped))
        gains = self._tokens_a_second(batch, k, hoped), self._tokens_a_second(batch, 0, hoped)
        price = TRIAL_STEPS * (self._cost(batch, k) - self._cost(batch, 0)) + self._catch_up(output)
        if gains[0] > TRIAL_GAIN * gains[1] and price <= self._saved:
            self._saved = 0.0
            self._trial, self._trial_steps = k, TRIAL_STEPS

    def _cost(self, batch: int, k: int) -> float:
        return self._costs.at(batch, k) * self._slower[k]

    def _learn(self, k: int, ratio: float) -> None:
        self._ratios[k].append(ratio)
        self._slower[k] = median(self._ratios[k])

    def _shares_ahead(self) -> list[float]:
        """Return the shares of all positions; one not judged yet stands as often as the first."""
        first = self._shares[0] if self._shares else FIRST_SHARE
        shares = list(self._shares)
        while len(shares) < self._choices[-1]:
            shares.append(shares[-1] * first if shares else first)
        return shares

    def observe(self, output: SchedulerOutput, result: StepResult, seconds: float) -> None:
        """Learn what a step took and, where guesses had been asked for, how many stood.

        Args:
            seconds: from the end of the step before it to its own.
        """
        entries = output.entries
        if not entries:
            return
        asked, self._asked = self._asked, output.num_guesses
        longest = max(entry.num_draft_tokens for entry in entries)
        if longest == 0 == output.num_guesses:
            self._saved += TRIAL_SHARE * seconds
        if any(entry.num_tokens != 1 + entry.num_draft_tokens for entry in entries):
            return  # prompts are computed: it says nothing of decoding
        self._num_observed += 1
        if self._num_observed % FORGET_EVERY == 0:
            for k in self._choices:
                self._learn(k, 1.0)
        if longest in self._ratios and longest == output.num_guesses:  # not while k changes
            self._learn(longest, seconds / self._costs.at(len(entries), longest))
        if not asked:  # behind the step before this one
            return
        weight = min(0.5, MEMORY * len(entries))
        if self._steps_without > 0:
            weight = max(weight, len(entries) / (len(entries) + OLD_SHARES))
        self._share_of_steps += weight * ((longest > 0) - self._share_of_steps)
        kept = [
            min(entry.num_draft_tokens, len(result.token_ids.get(entry.request_id, ())) - 1)
            for entry in entries
        ]
        tried = asked if longest == 0 else longest
        for i in range(tried):
            share = sum(number > i for number in kept) / len(entries)
            if i == len(self._shares):
                self._shares.append(self._shares_ahead()[i])
                self._num_judged.append(0)
            self._num_judged[i] += len(entries)
            first = len(entries) / (self._num_judged[i] + OLD_SHARES)  # the mean, at first
            self._shares[i] += max(weight, first) * (share - self._shares[i])
        for i in range(max(1, tried), len(self._shares)):  # not tried: it may have become better
            hoped = self._shares[i - 1] * self._shares[0]
            self._shares[i] += HOPE * (hoped - self._shares[i])
