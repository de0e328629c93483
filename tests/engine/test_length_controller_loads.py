"""Loads as `quire bench speculation-auto` runs them, with the costs of an H200, on no device.

Prompts of 256 tokens come 16 a step, and each text has 96. A draft model reads what it guesses for.
The controller sees what a step brought when the next one has been scheduled, as with two in flight.
"""

from __future__ import annotations

import itertools
import random
import statistics
from dataclasses import dataclass, field, replace

import pytest

from quire.messages import NewRequest, ScheduledEntry, SchedulerOutput, StepResult
from quire.sampling.params import SamplingParams
from quire.speculation.controller import LengthController
from quire.speculation.costs import CatchUp, RoundCosts

PROMPT, LENGTH, A_STEP = 256, 96, 16
CHOICES = (1, 2, 4)
# Qwen3-8B's shape with a 0.6B draft on an H200: ms of steps with 0, 1, 2 and 4 guesses, measured at
# the engine's start behind texts of 224 tokens, and by how much steps of the load's texts took
# longer, without guesses and with them.
ROUNDS = {
    1: (4.25, 5.35, 6.10, 7.65),
    8: (4.54, 5.69, 6.76, 8.93),
    32: (4.78, 6.63, 8.26, 11.08),
    64: (5.35, 7.78, 10.18, 15.09),
    128: (6.49, 10.66, 15.47, 25.00),
    256: (8.65, 18.14, 27.32, 44.53),
}
LONGER = {
    1: (0.96, 1.00), 8: (0.99, 1.03), 32: (1.00, 1.01), 64: (1.02, 1.06), 128: (1.06, 1.08),
    256: (1.20, 1.10),
}  # fmt: skip
SECONDS = {
    (batch, k): ms / 1e3
    for batch, row in ROUNDS.items()
    for k, ms in zip((0, *CHOICES), row, strict=True)
}
READS = CatchUp(alone=0.0010, several=0.0089, a_token=2.06e-6)  # seconds of a draft model
COSTS = RoundCosts(SECONDS, READS)
REAL = RoundCosts({(b, k): s * LONGER[b][k > 0] for (b, k), s in SECONDS.items()})
PROMPT_TOKEN = 23e-6  # seconds of the model itself
names = itertools.count()


@dataclass
class Text:
    name: str = field(default_factory=lambda: f"text-{next(names)}")
    tokens: int = 0
    read: int = 0  # of prompt and text, by the draft model
    drafts: int = 0

    @property
    def is_new(self) -> bool:
        return self.tokens == 0


def whole_call(
    controller: LengthController | None, batch: int, acceptance: float, coin: random.Random
) -> float:
    """Return the seconds in which all texts are complete."""
    waiting, texts = [Text() for _ in range(batch)], list[Text]()
    ended, unseen = list[Text](), list[tuple[SchedulerOutput, StepResult, float]]()
    now = 0.0
    for number in itertools.count():
        new, waiting = waiting[:A_STEP], waiting[A_STEP:]
        texts += new
        if not texts:
            for seen in unseen if controller is not None else ():
                controller.observe(*seen)
            return now
        entries = tuple(
            ScheduledEntry(text.name, 0, 0, PROMPT, True)
            if text.is_new
            else ScheduledEntry(
                text.name, 0, PROMPT + text.tokens - 1, 1 + text.drafts, True, (), text.drafts
            )
            for text in texts
        )
        output = SchedulerOutput(
            number,
            entries,
            tuple(NewRequest(t.name, 0, [], PROMPT, SamplingParams(), seed=0) for t in new),
            finished_ids=tuple(text.name for text in ended),
        )
        k = 0
        if controller is not None:
            k = controller.choose(output, batch if waiting else len(texts))
        output = replace(output, num_guesses=k)
        longest = max(text.drafts for text in texts)  # near the ends of texts fewer than asked for
        width = next(choice for choice in (0, *CHOICES) if choice >= (longest or k))
        taken = REAL.at(len(texts), width) + len(new) * PROMPT * PROMPT_TOKEN
        if k > 0:
            unread = []
            for entry, text in zip(entries, texts, strict=True):
                if text.read < entry.start or text.is_new:
                    unread.append(entry.start + entry.num_tokens - text.read)
                text.read = entry.start + entry.num_tokens
            taken += COSTS.catching_up(unread)
        now += taken
        told = {}
        for text in texts:
            stands = 0
            while stands < text.drafts and coin.random() < acceptance:
                stands += 1
            told[text.name] = [0] * min(1 + stands, LENGTH - text.tokens)
            text.tokens += len(told[text.name])
            text.drafts = min(k, max(0, LENGTH - text.tokens - 1))
        unseen.append((output, StepResult(number, told), taken))
        if controller is not None and len(unseen) > 1:
            controller.observe(*unseen.pop(0))
        ended = [text for text in texts if text.tokens == LENGTH]
        texts = [text for text in texts if text.tokens < LENGTH]
    raise AssertionError


@pytest.mark.parametrize(
    ("acceptance", "at_least"),
    [
        (0.0, {}),
        (0.5, {}),
        (0.7, {1: 1.25, 8: 1.15}),
        (0.85, {1: 1.6, 8: 1.3, 32: 1.05}),
        (0.95, {1: 2.0, 8: 1.6, 32: 1.2}),
    ],
)
def test_one_load_after_another(acceptance: float, at_least: dict[int, float]) -> None:
    """Whole calls, the reading of prompts and trials included: hardly slower, or much faster."""
    for batch in ROUNDS:
        coin = random.Random(batch)
        controller = LengthController(COSTS, CHOICES)
        whole_call(controller, batch, acceptance, coin)  # what is new to an engine
        seconds = [whole_call(controller, batch, acceptance, coin) for _ in range(20)]
        plain = whole_call(None, batch, acceptance, coin)
        gain = plain / statistics.mean(seconds)
        assert gain > at_least.get(batch, 0.97), batch
