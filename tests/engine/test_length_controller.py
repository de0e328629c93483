"""How many tokens to guess: by what guesses cost and how many stand, in a made-up world."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from quire import LLM, SamplingParams, Trace
from quire.config import EngineConfig
from quire.messages import NewRequest, ScheduledEntry, SchedulerOutput, StepResult
from quire.runner import round_costs
from quire.speculation.config import SpeculativeConfig
from quire.speculation.controller import (
    BEGIN,
    SWITCH,
    TRIAL_STEPS,
    LengthController,
    requests_ahead,
)
from quire.speculation.costs import NO_CATCH_UP, CatchUp, RoundCosts

CHOICES = (1, 2, 4)


def seconds(batch: int, k: int) -> float:
    """What steps take: free up to 64 rows, then in proportion; and a tenth for each guess."""
    return max(1.0, batch * (1 + k) / 64) + 0.1 * k


MEASURED = {(b, k): seconds(b, k) for b in (1, 8, 32, 64, 256) for k in (0, *CHOICES)}
COSTS = RoundCosts(MEASURED)


class World:
    """Requests whose guesses stand with a probability; each step tells the controller."""

    def __init__(self, batch: int, slower: float = 1.0, costs: RoundCosts = COSTS) -> None:
        self.controller = LengthController(costs, CHOICES)
        self._random = random.Random(0)
        self.batch, self._slower = batch, slower
        self._drafted = 0
        self.catch_up = 0.0  # what the first step takes more that asks for guesses
        self.tokens = self.time = 0.0

    def run(self, acceptance: float, steps: int) -> Counter[int]:
        chosen: Counter[int] = Counter()
        for step in range(steps):
            k = self.controller.choose(self.scheduled(), self.batch)
            chosen[k] += 1
            entries, told = [], {}
            for r in range(self.batch):
                stands = 0
                while stands < self._drafted and self._random.random() < acceptance:
                    stands += 1
                entries.append(
                    ScheduledEntry(str(r), r, 5, 1 + self._drafted, True, (), self._drafted)
                )
                told[str(r)] = [0] * (1 + stands)
            taken = seconds(self.batch, self._drafted) * (self._slower if self._drafted else 1)
            taken += self.catch_up if k > self._drafted == 0 else 0.0
            output = SchedulerOutput(step, tuple(entries), num_guesses=k)
            self.controller.observe(output, StepResult(step, told), taken)
            self.tokens += sum(map(len, told.values())) / self.batch
            self.time += taken
            self._drafted = k
        return chosen

    def scheduled(self, length: int = 6) -> SchedulerOutput:
        """Return a step of all requests, whose texts are so long."""
        entries = [ScheduledEntry(str(r), r, length - 1, 1, True) for r in range(self.batch)]
        return SchedulerOutput(0, tuple(entries))


@pytest.mark.parametrize(
    ("batch", "acceptance", "best"),
    [(1, 0.9, 4), (1, 0.0, 0), (8, 0.8, 4), (32, 0.6, 1), (64, 0.5, 0), (256, 0.9, 0)],
)
def test_the_best_number_is_found(batch: int, acceptance: float, best: int) -> None:
    world = World(batch)
    world.run(acceptance, 60)
    chosen = world.run(acceptance, 200)
    assert chosen.most_common(1)[0][0] == best
    assert chosen[best] > 150


@pytest.mark.parametrize("batch", [1, 8, 32, 64, 128, 256])
@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.6, 0.9])
def test_it_is_never_much_slower_than_no_guesses(batch: int, acceptance: float) -> None:
    world = World(batch)
    world.run(acceptance, 60)
    world.tokens = world.time = 0
    world.run(acceptance, 1000)
    assert world.tokens / world.time > 0.97 / seconds(batch, 0)


def test_a_text_that_becomes_easy_is_noticed() -> None:
    world = World(4)
    assert world.run(0.0, 300)[0] > 270
    world.run(0.95, 600)
    assert world.run(0.95, 200)[4] > 180


def judge(controller: LengthController, kept: list[int], drafted: int) -> None:
    """Tell of a step of one request for each number kept, of so many guesses."""
    entries = tuple(
        ScheduledEntry(str(r), r, 5, 1 + drafted, True, (), drafted) for r in range(len(kept))
    )
    output = SchedulerOutput(0, entries, num_guesses=drafted)
    told = {str(r): [0] * (1 + number) for r, number in enumerate(kept)}
    controller.observe(output, StepResult(0, told), seconds(len(kept), drafted))


def test_one_unlucky_guess_is_not_the_share() -> None:
    """The share begins as a mean with what is believed before: 0.8 of 1.5 requests."""
    controller = LengthController(COSTS, CHOICES)
    judge(controller, [0], 4)  # its guesses were asked for before anything was measured
    judge(controller, [0], 4)
    assert controller._shares_ahead()[0] == pytest.approx(0.8 * 1.5 / 2.5)
    for _ in range(7):
        judge(controller, [4], 4)
    assert controller._shares_ahead()[0] == pytest.approx((0.8 * 1.5 + 7) / 9.5)
    many = LengthController(COSTS, CHOICES)
    for _ in range(2):
        judge(many, [0] * 32, 4)
    assert many._shares_ahead()[0] < 0.05


def test_what_is_not_tried_is_hoped_for_again() -> None:
    """As far as what is tried lets hope: a second guess stands as often behind the first."""
    controller = LengthController(COSTS, CHOICES)
    for kept in [1] * 40:
        judge(controller, [kept] * 2, 4)  # the second never stands
    assert controller._shares_ahead()[1] < 0.1
    for _ in range(60):
        judge(controller, [1, 1], 1)
    hoped = controller._shares_ahead()
    assert 0.5 < hoped[1] < hoped[0] ** 2


def test_what_cannot_gain_is_not_tried() -> None:
    """With 256 requests guesses would cost time if all of them stood."""
    world = World(256)
    world.run(0.0, 60)
    assert world.run(0.0, 2000) == {0: 2000}


def test_a_dear_trial_is_saved_up_for() -> None:
    """A draft model catches up in a trial's first step, which takes as long as fifty others."""
    world = World(4, costs=RoundCosts(MEASURED, catch_up=CatchUp(50.0, 50.0, 0.0)))
    world.run(0.0, 60)
    world.catch_up = 50.0
    chosen = world.run(0.0, 5000)
    assert chosen == {0: 5000}  # a hundredth of the time pays for one
    chosen = world.run(0.0, 15_000)
    assert 15_000 - chosen[0] in (2 * TRIAL_STEPS, 3 * TRIAL_STEPS)
    world.run(0.95, 6000)
    assert world.run(0.95, 200)[4] > 180


def test_trials_do_not_follow_each_other_for_what_was_saved_long_ago() -> None:
    """By 256 requests, which guesses cannot help: it would pay for three trials of four."""
    world = World(4, costs=RoundCosts(MEASURED, catch_up=CatchUp(50.0, 50.0, 0.0)))
    world.run(0.0, 60)
    world.batch, world.catch_up = 256, 50.0
    world.run(0.0, 5000)
    world.batch = 4
    chosen = world.run(0.0, 1024)
    assert 1024 - chosen[0] == TRIAL_STEPS


def test_prompts_that_a_draft_model_reads_count() -> None:
    """Half of what guesses bring goes to new prompts, and with twice as many they do not pay."""
    costs = RoundCosts(MEASURED, catch_up=CatchUp(0.0, 0.0, 0.001))

    def chosen(prompt_tokens: int) -> int:
        controller = LengthController(costs, CHOICES)
        for number in range(2000):
            entries = [ScheduledEntry(str(r), r, 5, 1, True) for r in range(4)]
            if prompt_tokens > 0:
                entries.append(ScheduledEntry(f"new-{number}", 5, 0, prompt_tokens, True))
            k = controller.choose(SchedulerOutput(number, tuple(entries)), 5)
        return k

    # By FIRST_SHARE four guesses bring 3.36 tokens in 1.4 s: they may read for 1.96 s beside.
    assert chosen(0) == 4
    assert chosen(1000) == 4
    assert chosen(3000) == 0


def test_steps_that_take_longer_than_was_measured() -> None:
    """Guesses that cost three times what the start said are given up."""
    assert World(8).run(0.7, 300)[0] < 50
    slow = World(8, slower=3.5)
    slow.run(0.7, 60)
    assert slow.run(0.7, 300)[0] > 250


def test_a_step_that_was_disturbed_changes_nothing() -> None:
    """The first plain steps took long, as a compilation may, and plain steps are the best."""
    world = World(64)
    entries = tuple(ScheduledEntry(str(r), r, 5, 1, True) for r in range(64))
    told = {str(r): [0] for r in range(64)}
    output = SchedulerOutput(0, entries, num_guesses=0)
    for _ in range(3):
        world.controller.observe(output, StepResult(0, told), 100.0)
    world.run(0.0, 60)
    assert world.run(0.0, 200)[0] > 180


def test_prompts_teach_nothing() -> None:
    controller = LengthController(COSTS, CHOICES)
    before = known(controller) | {"_asked": 4}  # but what the next step is to be judged by
    prompt = SchedulerOutput(0, (ScheduledEntry("a", 0, 0, 9, True),), num_guesses=4)
    controller.observe(prompt, StepResult(0, {"a": [1]}), 100.0)
    assert known(controller) == before


def test_costs_between_those_measured() -> None:
    costs = RoundCosts({(4, 0): 1.0, (8, 0): 3.0, (16, 0): 4.0})
    assert [costs.at(b, 0) for b in (1, 4, 6, 8, 12, 16, 32)] == [1, 1, 2, 3, 3.5, 4, 8]
    assert costs.at(4, 2) == float("inf")


@pytest.mark.parametrize("method", ["ngram", "suffix", "draft_model"])
def test_texts_do_not_depend_on_it(method: str) -> None:
    config = {"method": method}
    if method == "draft_model":
        config["model"] = "quire-mini"
    prompts = ["x = [1, 2, 3]\ny = [1, 2,", "import os\n", "def f(a):\n    return a\n\n\ndef"] * 3
    params = SamplingParams(temperature=0.8, seed=4, max_tokens=60)
    plain = LLM("quire-mini-draft", device="cpu", max_model_len=128).generate(prompts, params)
    trace = Trace()
    llm = LLM(
        "quire-mini-draft",
        device="cpu",
        max_model_len=128,
        max_num_seqs=5,
        speculative_config=config,
        trace=trace,
    )
    guessed = llm.generate(prompts, params)
    assert [o.outputs[0].token_ids for o in guessed] == [o.outputs[0].token_ids for o in plain]
    chosen = {step.scheduled.num_guesses for step in trace.steps}
    assert chosen <= {0, 1, 2, 4}


def test_a_prompt_between_does_not_blame_the_guesses() -> None:
    """Shares are learnt from the step that judged, also where a prompt's step lay before it."""
    controller = LengthController(COSTS, CHOICES)

    def step(number: int, drafts: int, asked: int, kept: int, prompt: bool = False) -> None:
        entries = [ScheduledEntry("a", 0, 5, 1 + drafts, True, (), drafts)]
        if prompt:
            entries.append(ScheduledEntry("b", 1, 0, 30, False))
        output = SchedulerOutput(number, tuple(entries), num_guesses=asked)
        controller.observe(output, StepResult(number, {"a": [0] * (1 + kept)}), 1 + drafts / 10)

    step(0, 0, 4, 0, prompt=True)
    for number in range(1, 60):
        step(number, 4, 4, 0)
    last = SchedulerOutput(9, (ScheduledEntry("a", 0, 99, 1, True),))
    assert controller.choose(last, 1) == 0


def test_one_judged_step_of_many_requests_is_enough() -> None:
    """A trial may be cut, by prompts or by the end of a load."""
    world = World(32)
    world.run(0.0, 60)
    while world.run(0.0, 1)[0]:  # until a trial begins
        pass
    world.run(0.3, 1)  # judges its first guesses
    for _ in range(TRIAL_STEPS):  # whose outcome nobody sees
        world.controller.choose(world.scheduled(), 32)
    assert world.controller.choose(world.scheduled(), 32) == 1


def paying(length: int) -> World:
    """Return four requests that nothing guesses for, of texts that it now would pay to guess."""
    world = World(4, costs=RoundCosts(MEASURED, catch_up=CatchUp(1.0, 1.0, 0.01)))
    assert world.controller.choose(world.scheduled(1), 256) == 0  # the texts are new
    for _ in range(60):
        world.controller.choose(world.scheduled(length), 256)
    assert world.controller.choose(world.scheduled(length), 256) == 0
    return world


@pytest.mark.parametrize("length", [10, 100, 1000])
def test_guesses_begin_once_they_would_have_paid_for_catching_up(length: int) -> None:
    """Of each text that 256 requests made too dear to guess; four make it cheap."""
    world = paying(length)
    waited = 0
    while world.controller.choose(world.scheduled(length), 4) == 0:
        waited += 1
    # Four guesses of which 0.8, 0.64, ... stand bring 3.36 tokens in 1.4 s in place of 1.
    saved = 1 - 1.4 / (1 + 0.8 + 0.8**2 + 0.8**3 + 0.8**4)
    assert waited == pytest.approx(max(1, 0.01 * 4 * length) / saved, abs=1)


def test_what_reads_nothing_begins_at_once() -> None:
    """Whether texts are new or not: a few per cent more are enough."""
    controller = LengthController(COSTS, CHOICES)
    world = World(40)
    controller.choose(world.scheduled(10), 256)
    assert controller.choose(world.scheduled(10), 256) == 0
    controller._shares = [0.45, 0.0]
    assert controller.choose(world.scheduled(10), 40) == 1


@pytest.mark.parametrize(("share", "best"), [(0.9, 1), (0.45, 0)])
def test_new_texts_are_guessed_for_at_once_if_that_pays(share: float, best: int) -> None:
    """Nothing lies behind; but who gives up soon has read the prompts for nothing."""
    world = World(40, costs=RoundCosts(MEASURED, catch_up=CatchUp(1.0, 1.0, 0.01)))
    world.controller.choose(world.scheduled(1), 256)
    assert world.controller.choose(world.scheduled(10), 256) == 0
    world.controller._shares = [share, 0.0]
    gain = (1 + share) * COSTS.at(40, 0) / COSTS.at(40, 1)
    assert gain > SWITCH
    assert (gain > BEGIN) is (best > 0)
    new = tuple(NewRequest(str(r), r, [0] * 9, 9, SamplingParams(), seed=0) for r in range(40))
    step = replace(world.scheduled(9), new_requests=new)
    assert world.controller.choose(step, 40) == best


def test_what_was_guessed_for_has_little_to_catch_up_with() -> None:
    world = World(4, costs=RoundCosts(MEASURED, catch_up=CatchUp(0.0, 0.0, 0.01)))
    assert world.controller.choose(world.scheduled(1000), 4) == 4
    for length in range(1001, 1011):  # 256 requests for ten steps
        assert world.controller.choose(world.scheduled(length), 256) == 0
    # 40 tokens behind take 0.4 s, which the first step in place of 1.68 does not save
    assert world.controller.choose(world.scheduled(1011), 4) == 4


def test_what_guesses_would_have_cost_counts_against_them() -> None:
    """Of three steps one is of few requests, and saves less than the other two would cost."""
    world = paying(1000)
    for _ in range(50):
        for batch in (4, 256, 256):
            assert world.controller.choose(world.scheduled(1000), batch) == 0


def known(controller: LengthController) -> dict[str, Any]:
    """Return a copy of all that a controller has learned."""
    return {name: deepcopy(value) for name, value in vars(controller).items() if name != "_costs"}


def debt(controller: LengthController, output: SchedulerOutput) -> float:
    return controller._catch_up(output)


def test_what_has_to_be_caught_up_with() -> None:
    """Not cached prompts, nor requests that nobody guesses for; a preempted one is new."""
    controller = LengthController(RoundCosts(MEASURED, catch_up=CatchUp(0.0, 0.0, 1.0)), CHOICES)
    silent = SamplingParams(speculate=False)
    new = tuple(
        NewRequest(name, row, [0] * 100, 100, params, seed=0)
        for row, (name, params) in enumerate(
            {"a": SamplingParams(), "b": SamplingParams(), "c": silent}.items()
        )
    )

    def step(*lengths: int, **more: Any) -> SchedulerOutput:
        entries = [ScheduledEntry("abc"[r], r, n - 1, 1, True) for r, n in enumerate(lengths)]
        return SchedulerOutput(0, tuple(entries), **more)

    controller.choose(step(100, 100, 100, new_requests=new, hit_tokens={"b": 64}), 256)
    later = step(150, 150, 150)
    controller.choose(later, 256)
    # They were all new when guesses were given up: at positions 99, 99.
    assert debt(controller, later) == 51 + 51
    again = step(64, 151, 151, preempted_ids=("a",), new_requests=new[:1])
    controller.choose(again, 256)
    assert debt(controller, again) == 52  # what is new in a step is read like any prompt
    assert debt(controller, step(150, 152, 152)) == 150 + 53
    resumed = step(200, 151, 151, preempted_ids=("b",), new_requests=new[1:], hit_tokens={"b": 64})
    controller.choose(resumed, 256)
    assert debt(controller, step(200, 152, 152)) == 200 + (152 - 64)
    controller.choose(step(200, finished_ids=("b", "c")), 256)
    assert set(controller._read) == {"a"}


def test_a_step_of_nothing_changes_nothing() -> None:
    world = paying(10)
    before = known(world.controller)
    assert world.controller.choose(SchedulerOutput(1, ()), 0) == 0
    assert known(world.controller) == before


@pytest.mark.parametrize(("method", "length"), [("ngram", 2), ("draft_model", 1)])
def test_texts_too_short_to_guess(method: str, length: int) -> None:
    """No step with guesses can be measured; so none is tried, however long it goes on."""
    config = {"method": method} | ({"model": "quire-mini"} if method == "draft_model" else {})
    llm = LLM("quire-mini-draft", device="cpu", max_model_len=length, speculative_config=config)
    assert llm.engine.executor.round_costs is not None
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    assert len(llm.generate([[5] * length] * 600, params, use_tqdm=False)) == 600


class Timed:
    """A runner whose clock goes on by what the draft model has to read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self._fresh: list[int] = []
        monkeypatch.setattr(round_costs.time, "perf_counter", lambda: self.now)

    def execute(self, output: SchedulerOutput) -> None:
        if output.new_requests:
            self._fresh = [request.num_prompt_tokens for request in output.new_requests]
        else:
            at_least = 0.1 if len(self._fresh) == 1 else 0.15
            self.now += 1.0 + max(at_least, 0.001 * sum(self._fresh)) * bool(self._fresh)
            self._fresh = []

    def settle(self, in_flight: object) -> None:
        """It is done at once."""

    @contextmanager
    def launching_prompts(self) -> Iterator[None]:
        """Nothing is replayed."""
        yield


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({"max_model_len": 128}, 2 * 127), ({"max_model_len": 1024}, 256), ({"max_num_seqs": 1}, 127)],
)
def test_reading_is_measured(
    options: dict[str, int], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one and two texts of two tokens, and by as many tokens as there is room for."""
    draft = {"method": "draft_model", "model": "quire-mini-draft"}
    given: Any = {"max_model_len": 128, "speculative_config": draft, **options}
    config = EngineConfig.of(device="cpu", **given)
    runner: Any = Timed(monkeypatch)
    alone, several, a_token = round_costs._catch_up(runner, config, 1)
    assert alone == pytest.approx(0.1)
    assert several == pytest.approx(0.1 if "max_num_seqs" in options else 0.15)
    assert a_token == pytest.approx(
        max(several if tokens != 127 else alone, 0.001 * tokens) / tokens
    )
    ngram = replace(config, speculation=SpeculativeConfig.of({"method": "ngram"}))
    assert round_costs._catch_up(runner, ngram, 1) == NO_CATCH_UP


def test_who_waits_for_the_budget_counts() -> None:
    """Prompts of the next steps: what helps the first few requests would not help all of them."""
    llm = LLM(
        "quire-mini-draft",
        device="cpu",
        max_model_len=64,
        max_num_seqs=6,
        max_num_batched_tokens=24,
        speculative_config={"method": "ngram"},
    )
    controller, seen = llm.engine._controller, []
    assert controller is not None
    choose = controller.choose

    def noted(output: SchedulerOutput, batch: int) -> int:
        seen.append((len(output.entries), batch))
        return choose(output, batch)

    controller.choose = noted  # type: ignore[method-assign]
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    llm.generate([[5] * 20] * 8, params, use_tqdm=False)
    assert seen[0] == (2, 6)  # six seats for eight that wait
    few = LLM(
        "quire-mini-draft",
        device="cpu",
        max_model_len=64,
        max_num_seqs=6,
        max_num_batched_tokens=24,
        num_blocks=5,
        speculative_config={"method": "ngram"},
    )
    for number in range(8):
        few.engine.add_request(f"{number}", [5] * 20, params)
    scheduled = SchedulerOutput(1, (ScheduledEntry("0-0", 0, 0, 24, True),), num_free_blocks=1)

    def ahead(scheduled: SchedulerOutput) -> int:
        return requests_ahead(scheduled, few.config, lambda: few.engine.unfinished)

    assert ahead(scheduled) == 1  # the cache has no room for another
    assert ahead(replace(scheduled, num_free_blocks=4)) == 1 + 3
    assert ahead(replace(scheduled, num_free_blocks=99)) == 6  # seats
    less = replace(scheduled, entries=(ScheduledEntry("0-0", 0, 0, 20, True),), num_free_blocks=99)
    assert ahead(less) == 1  # nobody waits for the budget
    assert (6, 6) in seen
    assert all(batch == entries for entries, batch in seen[-4:])  # nobody waits any more
