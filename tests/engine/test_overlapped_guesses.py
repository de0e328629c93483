"""Steps that are queued before the drafts ahead are judged: where they begin, the device knows.

On a CPU a step is done when it is queued, but the scheduler hears of it one step late, and a
replayed step takes its start from the device's own count.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import initialize, run_state_machine_as_test
from overlapped import (
    assert_steps_follow,
    count_steps_behind_drafts,
    watch_the_draft_models_cache,
)
from replayed_on_cpu import Stages

sys.path.insert(0, str(Path(__file__).parent / "protocols"))
from rig import BLOCK, Rig
from scheduler_machine import SchedulerMachine

from quire import LLM, RequestOutput, SamplingParams, Trace
from quire.messages import ScheduledEntry
from quire.runner.draft_model import DraftModel
from quire.scheduler import TokenBudgetScheduler
from quire.speculation.controller import LengthController

CODE = (
    "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n\n\n",
    "x = [1, 2, 3]\ny = [1, 2, 3]\nz = [1,",
    "class Stack:\n    def push(self, item):\n        self.items.append(item)\n\n    def",
    "import os\nimport sys\n",
)
MODEL = "quire-mini-draft"
SIZES: dict[str, Any] = {"max_model_len": 160, "max_num_seqs": 3}
LARGER = {"method": "draft_model", "model": "quire-mini", "num_speculative_tokens": 3}
ITSELF = {**LARGER, "model": MODEL}


class GuessingMachine(SchedulerMachine):
    """Random requests, aborts, failures and steps in flight, where a model guesses."""

    @initialize(
        num_blocks=st.integers(4, 12),
        max_num_seqs=st.integers(1, 4),
        budget=st.integers(1, 24),
        in_flight=st.integers(1, 3),
        most_drafts=st.integers(1, 4),
        prefix_caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority", "fair"]),
    )
    def start(self, **options: Any) -> None:
        self.rig = Rig(self.make, max_model_len=30, guesses_on_device=True, **options)


def test_random_requests() -> None:
    run_state_machine_as_test(
        lambda: GuessingMachine(TokenBudgetScheduler),
        settings=settings(
            max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, database=None
        ),
    )


@pytest.mark.parametrize("in_flight", [2, 3])
def test_what_is_left_in_the_cache(in_flight: int) -> None:
    """The next prompts begin as the first ones ended: they find what was said, and no more."""
    rig = Rig(TokenBudgetScheduler, most_drafts=3, guesses_on_device=True, in_flight=in_flight)
    first = [rig.add(f"a{i}", 5 + i, max_tokens=40, seed=i) for i in range(4)]
    rig.run()
    ahead = [e.num_tokens for o in rig.outputs for e in o.entries if e.num_draft_tokens > 0]
    assert len(ahead) > 20
    for i, request in enumerate(first):
        said = request.prompt_token_ids + request.output_token_ids
        rig.add(f"b{i}", [*said, 3], max_tokens=10)
        rig.run()
        hits = {k: v for output in rig.outputs for k, v in output.hit_tokens.items()}
        assert hits[f"b{i}"] == (len(said) - 1) // BLOCK * BLOCK


# --- replayed steps ------------------------------------------------------------------------------


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return count_steps_behind_drafts(monkeypatch)


def said(llm: LLM, params: SamplingParams) -> list[RequestOutput]:
    return llm.generate(list(CODE) * 2, params, use_tqdm=False)


def assert_same(given: Sequence[RequestOutput], expected: Sequence[RequestOutput]) -> None:
    for ours, theirs in zip(given, expected, strict=True):
        a, b = ours.outputs[0], theirs.outputs[0]
        assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)


KINDS: dict[
    str, tuple[dict[str, Any], bool | None]
] = {  # and whether the host must know the starts
    "greedy": ({"temperature": 0}, False),
    "drawn": ({"temperature": 0.9, "top_k": 30, "seed": 3}, False),
    "stop": ({"temperature": 0, "stop": ["return", "):"]}, False),
    "penalties": ({"temperature": 0.8, "frequency_penalty": 0.4, "seed": 5}, True),
    "log-probabilities": ({"temperature": 0, "logprobs": 1}, True),
    "not too soon": ({"temperature": 0, "stop_token_ids": [201, 265], "min_tokens": 9}, None),
}


@pytest.mark.parametrize("draft", [LARGER, ITSELF], ids=["larger", "itself"])
@pytest.mark.parametrize("kind", KINDS)
def test_replayed_steps_begin_where_the_device_says(
    kind: str, draft: dict[str, Any], monkeypatch: pytest.MonkeyPatch, queued: Counter[str]
) -> None:
    given, waits = KINDS[kind]
    params = SamplingParams(max_tokens=40, **given)
    plain = said(LLM(MODEL, device="cpu", dtype="float32", **SIZES), params)
    trace = Trace()
    stages = Stages(monkeypatch)
    llm = stages.one_rank(MODEL, overlap=True, speculative_config=draft, trace=trace, **SIZES)
    assert_same(said(llm, params), plain)
    assert (queued["ahead"] > 0) == (waits is not True)
    if waits is False:
        assert queued["ahead"] > queued["waited"]  # those beside a prompt wait
    assert_steps_follow(trace)
    counts = trace.acceptance()
    if draft is ITSELF and kind == "greedy":  # nothing is missing in the draft model's cache
        assert counts[0][1] > 0.97 * counts[0][0]
    if draft is LARGER:
        assert counts[0][1] < 0.95 * counts[0][0]  # or nothing would be taken back


@pytest.mark.parametrize("verification", ["rejection", "block", "synthetic"])
@pytest.mark.parametrize("draft", [LARGER, ITSELF], ids=["larger", "itself"])
def test_other_verifications_of_replayed_steps(
    draft: dict[str, Any], verification: str, monkeypatch: pytest.MonkeyPatch, queued: Counter[str]
) -> None:
    """What is drawn behind the graph is judged without the host's knowing where it lies.

    A coin that keeps wrong guesses gives another text.
    """
    config = {**draft, "verification": verification}
    if verification == "synthetic":
        config["acceptance_rate"] = 0.6
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    plain = said(LLM(MODEL, device="cpu", dtype="float32", **SIZES), params)
    trace = Trace()
    stages = Stages(monkeypatch)
    llm = stages.one_rank(MODEL, overlap=True, speculative_config=config, trace=trace, **SIZES)
    guessed = said(llm, params)
    if verification != "synthetic":
        assert_same(guessed, plain)
    assert queued["ahead"] > queued["waited"]
    assert_steps_follow(trace)
    drafted, kept = trace.acceptance()[0]
    if verification == "synthetic":
        assert kept / drafted == pytest.approx(0.6, abs=0.15)
    elif draft is ITSELF:
        assert kept > 0.97 * drafted


@pytest.mark.parametrize("is_replayed", [False, True], ids=["kernel by kernel", "replayed"])
def test_a_number_of_guesses_that_varies(
    is_replayed: bool, monkeypatch: pytest.MonkeyPatch, queued: Counter[str]
) -> None:
    """A draft model that has been left behind is caught up with before it guesses again."""
    looked = watch_the_draft_models_cache(monkeypatch)
    numbers = random.Random(1)
    monkeypatch.setattr(
        LengthController, "choose", lambda self, output, batch: numbers.choice([0, 1, 2, 4, 4])
    )
    params = SamplingParams(max_tokens=40, temperature=0)
    plain = said(LLM(MODEL, device="cpu", dtype="float32", **SIZES), params)
    config = {**ITSELF, "num_speculative_tokens": "auto"}
    trace = Trace()
    options = {**SIZES, "overlap": True, "speculative_config": config, "trace": trace}
    if is_replayed:
        llm = Stages(monkeypatch).one_rank(MODEL, **options)
    else:
        llm = LLM(MODEL, device="cpu", dtype="float32", **options)
    assert_same(said(llm, params), plain)
    assert (queued["ahead"] > 5) == is_replayed
    assert looked["rows"] > 50
    assert_steps_follow(trace)
    drafted, kept = trace.acceptance()[0]
    assert kept > 0.97 * drafted


def test_the_last_token_of_a_prompt_in_a_replayed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of one token: nothing was chosen in its row yet, where another request was."""
    params = SamplingParams(max_tokens=12, temperature=0)
    prompts = [{"prompt_token_ids": [300 + i for i in range(n)]} for n in (33, 17, 33, 17)]
    options = {**SIZES, "max_num_batched_tokens": 16, "max_num_seqs": 1}
    plain = LLM(MODEL, device="cpu", dtype="float32", **options).generate(prompts, params)
    trace = Trace()
    llm = Stages(monkeypatch).one_rank(
        MODEL, overlap=True, speculative_config=LARGER, trace=trace, **options
    )
    assert_same(llm.generate(prompts, params), plain)
    chunks = [e.num_tokens for step in trace.steps for e in step.scheduled.entries if e.start < 34]
    assert 1 in chunks


def test_the_first_end_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps at the edge of `min_tokens`: the host's bound lies behind it, the true start before."""
    plain = LLM(MODEL, device="cpu", dtype="float32", **SIZES)
    (free, *_) = said(plain, SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))
    ends = sorted(set(free.outputs[0].token_ids))  # wherever it is allowed to, a text ends at once
    llm = Stages(monkeypatch).one_rank(MODEL, overlap=True, speculative_config=LARGER, **SIZES)
    for first in range(4, 12):
        params = SamplingParams(
            max_tokens=20, temperature=0, stop_token_ids=ends, min_tokens=first, ignore_eos=True
        )
        assert_same(said(llm, params), said(plain, params))


def test_a_draft_model_computes_each_token_that_is_rejected_anew(
    monkeypatch: pytest.MonkeyPatch, queued: Counter[str]
) -> None:
    """A coin rejects what the model itself has guessed; now and then nothing is guessed."""
    looked = watch_the_draft_models_cache(monkeypatch)
    numbers = random.Random(2)
    monkeypatch.setattr(
        LengthController, "choose", lambda self, output, batch: numbers.choice([0, 1, 4, 4])
    )
    config = {**ITSELF, "num_speculative_tokens": "auto"}
    config |= {"verification": "synthetic", "acceptance_rate": 0.4}
    llm = Stages(monkeypatch).one_rank(MODEL, overlap=True, speculative_config=config, **SIZES)
    said(llm, SamplingParams(max_tokens=100, temperature=0, ignore_eos=True))
    assert min(queued["ahead"], looked["rows"]) > 50


def test_a_draft_model_that_keeps_up_computes_prompts_and_guesses_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caught_up: list[int] = []
    compute = DraftModel._compute

    def noted(self: DraftModel, pieces: list[ScheduledEntry]) -> None:
        caught_up.extend(piece.num_tokens for piece in pieces)
        compute(self, pieces)

    monkeypatch.setattr(DraftModel, "_compute", noted)
    llm = Stages(monkeypatch).one_rank(
        MODEL, overlap=True, speculative_config=LARGER, enable_prefix_caching=False, **SIZES
    )
    outputs = said(llm, SamplingParams(max_tokens=40, temperature=0))
    assert sorted(caught_up) == sorted(len(output.prompt_token_ids) for output in outputs)
