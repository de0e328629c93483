"""Rejection and block verification in the engine: other texts, the same law."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from scipy import stats

from quire import LLM, Components, QuireError, SamplingParams, Trace
from quire.runner.draft_model import DraftModel
from quire.sampling import TorchSampler

PROMPT = "def add(a, b):\n    return a"
LENGTH = 3  # tokens of a text
NUM_TEXTS = 1500
TOP_K = 3
ALPHA = 1e-6
SIZES: dict[str, Any] = {"device": "cpu", "max_model_len": 64, "max_num_seqs": 250}
DRAFT = {"method": "draft_model", "model": "quire-mini-draft", "num_speculative_tokens": 2}
METHODS: dict[str, dict[str, Any]] = {
    "draft model": DRAFT,
    "n-gram": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_min": 1},
}
VERIFICATIONS = ("rejection", "block")
Law = dict[tuple[int, ...], float]


def law_of(length: int, top_k: int) -> Law:
    """The probability of each text of so many tokens, from the model's scores of the best few."""
    llm = LLM("quire-mini", **SIZES)
    (begun,) = llm.generate([PROMPT], SamplingParams(max_tokens=1))
    grown: Law = {(): 1.0}
    for _ in range(length):
        prompts = [{"prompt_token_ids": [*begun.prompt_token_ids, *text]} for text in grown]
        params = SamplingParams(max_tokens=1, temperature=0, logprobs=top_k)
        longer: Law = {}
        for (text, probability), output in zip(
            grown.items(), llm.generate(prompts, params), strict=True
        ):
            assert output.outputs[0].logprobs is not None
            scores = output.outputs[0].logprobs[0]
            total = sum(math.exp(score.logprob) for score in scores.values())
            for token, score in scores.items():
                longer[(*text, token)] = probability * math.exp(score.logprob) / total
        grown = longer
    return grown


@pytest.fixture(scope="module")
def law() -> Law:
    return law_of(LENGTH, TOP_K)


def p_value(texts: Sequence[tuple[int, ...]], law: Law) -> float:
    """The chi-square test's, over the texts that are expected often, and all others as one."""
    counts = Counter(texts)
    often = [text for text in law if law[text] * len(texts) >= 5]
    expected = [law[text] * len(texts) for text in often]
    found = [counts[text] for text in often]
    rest = len(texts) - sum(found), len(texts) - sum(expected)
    assert len(often) > 6
    assert rest[1] > 3
    return float(stats.chisquare([*found, rest[0]], [*expected, rest[1]]).pvalue)


def drawn(
    config: dict[str, Any], length: int = LENGTH, top_k: int = TOP_K, *, overlap: bool = False
) -> tuple[list[tuple[int, ...]], Trace]:
    trace = Trace()
    llm = LLM("quire-mini", **SIZES, speculative_config=config, trace=trace, overlap=overlap)
    params = [
        SamplingParams(max_tokens=length, seed=i, top_k=top_k, temperature=1)
        for i in range(NUM_TEXTS)
    ]
    outputs = llm.generate([PROMPT] * NUM_TEXTS, params, use_tqdm=False)
    return [tuple(output.outputs[0].token_ids) for output in outputs], trace


@pytest.mark.parametrize("verification", VERIFICATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_the_law_of_texts(method: str, verification: str, law: Law) -> None:
    """27 cells of three tokens, each of the three that are most probable there."""
    config = {**METHODS[method], "verification": verification}
    texts, trace = drawn(config)
    drafted, kept = trace.acceptance()[0]
    assert 0 < kept <= drafted
    if method == "draft model":
        assert 0.2 * drafted < kept < 0.95 * drafted
    assert p_value(texts, law) > ALPHA


@pytest.mark.parametrize("verification", VERIFICATIONS)
def test_the_law_where_steps_are_queued_before_the_drafts_ahead_are_judged(
    verification: str,
) -> None:
    """32 cells of five tokens, with a draft in steps that begin where nobody knows yet."""
    config = {**DRAFT, "num_speculative_tokens": 1, "verification": verification}
    texts, trace = drawn(config, 5, 2, overlap=True)
    ahead = [later for earlier, later in pairwise(trace.steps) if later.begin < earlier.end]
    assert sum(e.num_draft_tokens for step in ahead for e in step.scheduled.entries) > NUM_TEXTS
    drafted, kept = trace.acceptance()[0]
    assert 0.2 * drafted < kept < 0.95 * drafted
    assert p_value(texts, law_of(5, 2)) > ALPHA


def test_a_wrong_law_would_be_seen(law: Law) -> None:
    """Texts of another temperature fail by the same test."""
    sharper = {text: probability**1.5 for text, probability in law.items()}
    total = sum(sharper.values())
    texts = [t for t, p in sharper.items() for _ in range(round(p / total * NUM_TEXTS))]
    assert p_value(texts, law) < ALPHA


def test_guesses_that_are_judged_by_what_others_were_drawn_from(
    law: Law, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts with each other's probabilities give another law, and it is seen."""
    true = DraftModel.probabilities
    monkeypatch.setattr(
        DraftModel, "probabilities", lambda self, rows, turns: true(self, rows, (1 - turns).abs())
    )
    texts, _ = drawn({**DRAFT, "verification": "rejection"})
    assert p_value(texts, law) < ALPHA


@pytest.mark.parametrize("verification", VERIFICATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_a_greedy_text_stays(method: str, verification: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=40)
    (plain,) = LLM("quire-mini", **SIZES).generate([PROMPT], params)
    config = {**METHODS[method], "verification": verification}
    (guessed,) = LLM("quire-mini", **SIZES, speculative_config=config).generate([PROMPT], params)
    assert guessed.outputs[0].token_ids == plain.outputs[0].token_ids


@pytest.mark.parametrize("verification", VERIFICATIONS)
def test_scores_are_those_of_the_tokens_said(verification: str) -> None:
    """Log-probabilities, as scoring the text anew gives them."""
    config = {**DRAFT, "verification": verification}
    llm = LLM("quire-mini", **SIZES, speculative_config=config)
    params = SamplingParams(temperature=0.8, seed=5, max_tokens=30, logprobs=1)
    (output,) = llm.generate([PROMPT], params)
    said, rows = output.outputs[0].token_ids, output.outputs[0].logprobs
    assert rows is not None
    text = {"prompt_token_ids": [*output.prompt_token_ids, *said]}
    (scored,) = llm.generate([text], SamplingParams(max_tokens=0, prompt_logprobs=0))
    assert scored.prompt_logprobs is not None
    for token, row, other in zip(said, rows, scored.prompt_logprobs[-len(said) :], strict=True):
        assert other is not None
        assert row[token].logprob == pytest.approx(other[token].logprob, abs=1e-4)


def test_a_sampler_of_ones_own_judges_itself() -> None:
    with pytest.raises(QuireError, match="verification='block' with a sampler of your own"):
        LLM(
            "quire-mini",
            device="cpu",
            speculative_config={**DRAFT, "verification": "block"},
            components=Components(sampler=TorchSampler),
        )
