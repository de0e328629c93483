"""Captured steps of several tokens, and the draft model's own graph, say what plain steps say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from overlapped import assert_steps_follow, count_steps_behind_drafts

from quire import LLM, RequestOutput, SamplingParams, Trace
from quire.runner.decode_graphs import DecodeGraphs, Ending
from quire.runner.prompt_graphs import PromptGraphs

pytestmark = pytest.mark.gpu

CODE = (
    "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n\n\n",
    "x = [1, 2, 3]\ny = [1, 2, 3]\nz = [1,",
    "class Stack:\n    def push(self, item):\n        self.items.append(item)\n\n    def",
    "import os\nimport sys\n",
    "for i in range(10):\n    print(i)\n",
)
SIZES: dict[str, Any] = {
    "device": "cuda",
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 6,
    "num_blocks": 120,
}
METHODS: dict[str, dict[str, Any]] = {
    "n-gram": {"method": "ngram", "prompt_lookup_min": 1},
    "draft model": {"method": "draft_model", "model": "quire-mini-draft"},
    "itself": {"method": "draft_model", "model": "quire-mini"},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "graphs": {},
    "kernel by kernel": {"cuda_graphs": False},
    "preemption": {"num_blocks": 24, "max_num_batched_tokens": 64},
    "INT8": {"kv_cache_dtype": "int8"},
    "window": {"kv_window": 40, "kv_sinks": 4},
    "host tier": {"num_blocks": 24, "num_host_blocks": 60},
}


def run(
    params: SamplingParams | list[SamplingParams], **options: Any
) -> tuple[list[RequestOutput], Trace]:
    trace = Trace()
    llm = LLM("quire-mini", **{**SIZES, **options}, trace=trace)
    prompts = (list(CODE) * 2)[: len(params) if isinstance(params, list) else None]
    return llm.generate(prompts, params, use_tqdm=False), trace


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Ending]]:
    """Of each captured step, how many tokens a request it has and how it ends."""
    found: list[tuple[int, Ending]] = []
    replay = DecodeGraphs.replay

    def noted(self: DecodeGraphs, entries: Any, ending: Ending) -> torch.Tensor:
        found.append((self.width(entries), ending))
        return replay(self, entries, ending)

    monkeypatch.setattr(DecodeGraphs, "replay", noted)
    return found


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("k", [1, 3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_captured_steps(
    method: str, k: int, temperature: float, replayed: list[tuple[int, Ending]]
) -> None:
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=60)
    plain, _ = run(params)
    replayed.clear()
    config = {**METHODS[method], "num_speculative_tokens": k}
    guessed, trace = run(params, speculative_config=config)
    ending = Ending.GREEDY if temperature == 0 else Ending.SAMPLED
    assert (1 + k, ending) in replayed
    for ours, theirs in zip(guessed, plain, strict=True):
        assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids
    if method == "itself":  # nothing is missing in the draft model's cache
        drafted, kept = (sum(numbers) for numbers in zip(*trace.acceptance(), strict=True))
        assert kept > 0.9 * drafted  # the rest lies behind the ends of texts


def test_a_draft_model_replays_the_prompts_that_come_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is missing or wrong in its cache: the same model guesses what it will say."""
    lengths: list[int] = []
    replay = PromptGraphs.replay

    def noted(self: PromptGraphs, size: int, num_tokens: int) -> torch.Tensor:
        lengths.append(num_tokens)
        return replay(self, size, num_tokens)

    monkeypatch.setattr(PromptGraphs, "replay", noted)
    config = {**METHODS["itself"], "num_speculative_tokens": 3}
    trace = Trace()
    llm = LLM(
        "quire-mini", **SIZES, trace=trace, speculative_config=config, enable_prefix_caching=False
    )
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    prompts = [(list(range(5, 200)) * 2)[:length] for length in (3, 16, 17, 100, 210)]
    for prompt in prompts:
        llm.generate([prompt], params, use_tqdm=False)
    assert lengths == [len(prompt) for prompt in prompts for _ in range(2)]  # by each model
    drafted, kept = (sum(numbers) for numbers in zip(*trace.acceptance(), strict=True))
    assert kept > 0.9 * drafted


def test_reading_prompts_for_guesses_never_waits_for_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a step's prompts are more than one upload."""
    config = {**METHODS["draft model"], "num_speculative_tokens": 3}
    llm = LLM("quire-mini", **SIZES, max_num_batched_tokens=64, speculative_config=config)
    waited: list[None] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: waited.append(None))
    params = SamplingParams(temperature=0, max_tokens=30)
    guessed = llm.generate(list(CODE) * 2, params, use_tqdm=False)
    assert not waited
    plain, _ = run([params] * 10)
    for ours, theirs in zip(guessed, plain, strict=True):
        assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids


@pytest.mark.parametrize("verification", ["coupled", "rejection", "block"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("method", ["draft model", "itself"])
def test_steps_that_are_queued_before_the_drafts_ahead_are_judged(
    method: str, temperature: float, verification: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of an engine that waits, and of one without guesses; all replayed steps go ahead.

    What is drawn under rejection depends on the number of drafts, which is smaller near the end
    where steps are queued ahead: there the text may be another.
    """
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=120)
    config = {**METHODS[method], "num_speculative_tokens": 3, "verification": verification}
    queued = count_steps_behind_drafts(monkeypatch)
    waiting, _ = run(params, speculative_config=config, overlap=False)
    assert not queued
    guessed, trace = run(params, speculative_config=config)
    assert queued["ahead"] > 3 * queued["waited"]  # beside a prompt
    assert_steps_follow(trace)
    drafted, kept = trace.acceptance()[0]
    assert kept > (0.9 if method == "itself" else 0.2) * drafted
    if verification == "coupled" or temperature == 0:
        plain, _ = run(params)
        for ours, theirs, same in zip(guessed, waiting, plain, strict=True):
            assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids
            assert ours.outputs[0].token_ids == same.outputs[0].token_ids


@pytest.mark.parametrize("asked", [{"frequency_penalty": 0.4}, {"logprobs": 1}, {"min_tokens": 30}])
def test_what_the_host_must_know_waits(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request in two asks for it: the others wait with it."""
    some = SamplingParams(temperature=0.8, seed=3, max_tokens=40, **asked)
    params = [some, SamplingParams(temperature=0.8, seed=3, max_tokens=40)] * 4
    plain, _ = run(params)
    queued = count_steps_behind_drafts(monkeypatch)
    config = {**METHODS["draft model"], "num_speculative_tokens": 3}
    guessed, trace = run(params, speculative_config=config)
    assert queued["waited"] > 5
    assert_steps_follow(trace)
    for ours, theirs in zip(guessed, plain, strict=True):
        assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("method", ["n-gram", "draft model"])
def test_options(method: str, option: str) -> None:
    params = SamplingParams(temperature=0.7, seed=2, max_tokens=60)
    plain, _ = run(params, **OPTIONS[option])
    config = {**METHODS[method], "num_speculative_tokens": 3}
    guessed, trace = run(params, **OPTIONS[option], speculative_config=config)
    assert trace.acceptance()[0][1] > 0
    for ours, theirs in zip(guessed, plain, strict=True):
        assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids


@pytest.mark.parametrize("method", ["n-gram", "draft model"])
def test_what_a_captured_step_does_not_end_with(
    method: str, replayed: list[tuple[int, Ending]]
) -> None:
    """Log-probabilities and penalties: hidden states of all rows, sampled behind the graph."""
    params = SamplingParams(
        temperature=0.8, seed=3, max_tokens=40, logprobs=2, frequency_penalty=0.4, min_tokens=9
    )
    plain, _ = run(params)
    replayed.clear()
    config = {**METHODS[method], "num_speculative_tokens": 3}
    guessed, _ = run(params, speculative_config=config)
    assert (4, Ending.HIDDEN) in replayed
    for ours, theirs in zip(guessed, plain, strict=True):
        assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids
        assert ours.outputs[0].logprobs is not None
        assert theirs.outputs[0].logprobs is not None
        for row, other in zip(ours.outputs[0].logprobs, theirs.outputs[0].logprobs, strict=True):
            for token, value in other.items():
                assert row[token].logprob == pytest.approx(value.logprob, abs=1e-3)


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_a_coin_that_judges(rate: float) -> None:
    """As many guesses are kept as the rate says, each step for itself."""
    config = {
        **METHODS["draft model"],
        "num_speculative_tokens": 3,
        "verification": "synthetic",
        "acceptance_rate": rate,
    }
    params = SamplingParams(temperature=0, max_tokens=150, ignore_eos=True)
    _, trace = run(params, speculative_config=config)
    drafted, kept = trace.acceptance()[0]
    assert drafted > 100
    assert kept / drafted == pytest.approx(rate, abs=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_a_number_of_guesses_that_the_engine_chooses(method: str) -> None:
    """Steps with and without guesses by turns."""
    params = SamplingParams(temperature=0.7, seed=4, max_tokens=120)
    plain, _ = run(params)
    guessed, trace = run(params, speculative_config=METHODS[method])
    assert {step.scheduled.num_guesses for step in trace.steps} <= {0, 1, 2, 4}
    for ours, theirs in zip(guessed, plain, strict=True):
        assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids


@pytest.mark.parametrize("verification", ["rejection", "block"])
@pytest.mark.parametrize("method", METHODS)
def test_verifications_by_probability(method: str, verification: str) -> None:
    """A greedy text is the plain one; what is drawn is judged on the device."""
    config = {**METHODS[method], "num_speculative_tokens": 3, "verification": verification}
    greedy = SamplingParams(temperature=0, max_tokens=60)
    plain, _ = run(greedy)
    guessed, _ = run(greedy, speculative_config=config)
    for ours, theirs in zip(guessed, plain, strict=True):
        assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids
    _, trace = run(SamplingParams(seed=1, max_tokens=60), speculative_config=config)
    drafted, kept = trace.acceptance()[0]
    assert kept > (0.9 if method == "itself" else 0.2) * drafted
