"""Speculation changes how many steps a text takes, and nothing of the text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import LLM, Components, QuireError, RequestOutput, SamplingParams, Trace
from quire.engine import LLMEngine
from quire.models.config import ModelConfig
from quire.models.loader import resolve_checkpoint
from quire.runner.draft_model import DraftModel
from quire.sampling.drafts import Drafts
from quire.speculation.config import SpeculativeConfig
from quire.speculation.controller import LengthController
from quire.speculation.coupled import accept_equal
from quire.speculation.host import HostDrafting
from quire.speculation.ngram import NGramProposer
from quire.speculation.proposer import ProposeContext

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1}
CODE = (
    "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n\n\n",
    "x = [1, 2, 3]\ny = [1, 2, 3]\nz = [1,",
    "class Stack:\n    def push(self, item):\n        self.items.append(item)\n\n    def",
    "import os\nimport sys\n",
)
SIZES: dict[str, Any] = {"device": "cpu", "max_model_len": 160, "max_num_seqs": 4}


class Prophet:
    """Knows the texts that a run without guesses gave, and spoils one token in four."""

    known: tuple[tuple[int, ...], ...] = ()

    def __init__(self, config: SpeculativeConfig) -> None:
        self._random = random.Random(0)

    def propose(self, context: ProposeContext, k: int) -> list[list[int]]:
        return [self._continued(tuple(ids.tolist()), k) for ids in context.token_ids]

    def _continued(self, begun: tuple[int, ...], k: int) -> list[int]:
        texts = [text for text in self.known if text[: len(begun)] == begun]
        tokens = list(texts[0][len(begun) : len(begun) + k]) if texts else []
        tokens += [7] * (k - len(tokens))  # on behind the end, too
        return [t if self._random.random() > 0.25 else (t + 1) % 4096 for t in tokens]


def texts_of(outputs: Sequence[RequestOutput]) -> tuple[tuple[int, ...], ...]:
    return tuple(
        (*o.prompt_token_ids, *completion.token_ids) for o in outputs for completion in o.outputs
    )


def assert_same(given: Sequence[RequestOutput], expected: Sequence[RequestOutput]) -> None:
    for ours, theirs in zip(given, expected, strict=True):
        for a, b in zip(ours.outputs, theirs.outputs, strict=True):
            assert a.token_ids == b.token_ids
            assert (a.text, a.finish_reason) == (b.text, b.finish_reason)
            same_scores(a.logprobs, b.logprobs)
        same_scores(ours.prompt_logprobs, theirs.prompt_logprobs)


def same_scores(given: Any, expected: Any) -> None:
    if expected is None:
        assert given is None
        return
    for ours, theirs in zip(given, expected, strict=True):
        assert (ours is None) == (theirs is None)
        for token, score in (theirs or {}).items():
            assert ours[token].logprob == pytest.approx(score.logprob, abs=1e-4)


def shout(output: list[int], logits: torch.Tensor) -> torch.Tensor:
    """A processor that depends on how long the output is."""
    return logits * (1 + (len(output) % 3) / 10)


PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 1.0, "seed": 3},
    "cut off": {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "seed": 4},
    "penalties": {
        "temperature": 0.7,
        "seed": 5,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
    },
    "log-probabilities": {"temperature": 0.6, "seed": 6, "logprobs": 3, "prompt_logprobs": 1},
    "stop strings": {"temperature": 0, "stop": ["return", "):"], "max_tokens": 60},
    "stop ids, not too soon": {
        "temperature": 0.9,
        "seed": 7,
        "stop_token_ids": [201, 265, 300],
        "min_tokens": 9,
    },
    "words": {
        "temperature": 0,
        "bad_words": ["self", "def"],
        "logit_bias": {265: 2.0},
        "allowed_token_ids": list(range(200, 900)),
    },
    "a function": {"temperature": 0.5, "seed": 8, "logits_processors": [shout]},
    "three samples": {"temperature": 1.0, "seed": 9, "n": 3},
    "one token": {"temperature": 0, "max_tokens": 1},
    "two tokens": {"temperature": 0, "max_tokens": 2},
    "as long as the model": {"temperature": 0, "max_tokens": None, "ignore_eos": True},
    "no tokens": {"temperature": 0, "max_tokens": 0, "prompt_logprobs": 2},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no prefix cache": {"enable_prefix_caching": False},
    "small budget": {"max_num_batched_tokens": 7},
    "one request at a time": {"max_num_seqs": 1},
    "preemption": {"num_blocks": 16, "max_num_batched_tokens": 32},
    "fair": {"policy": "fair", "num_blocks": 18},
    "INT8": {"kv_cache_dtype": "int8"},
    "window": {"kv_window": 24, "kv_sinks": 3},
    "host tier": {"num_blocks": 18, "num_host_blocks": 40},
    "overlap": {"overlap": True, "num_blocks": 20},
}


def run(option: str, kind: str, **more: Any) -> tuple[list[RequestOutput], LLM]:
    llm = LLM("quire-mini-draft", **{**SIZES, **OPTIONS[option], **more})
    params = SamplingParams(**{"max_tokens": 40, **PARAMS[kind]})
    return llm.generate(list(CODE) * 2, params, use_tqdm=False), llm


@cache
def plain_run(option: str, kind: str) -> list[RequestOutput]:
    """Outputs without guesses, which most tests here compare with."""
    return run(option, kind)[0]


@pytest.mark.parametrize("kind", PARAMS)
def test_what_a_request_asks_for(kind: str) -> None:
    """Guesses that are often right, with each parameter."""
    plain = plain_run("plain", kind)
    Prophet.known = texts_of(plain)
    trace = Trace()
    guessed, llm = run(
        "plain",
        kind,
        speculative_config=NGRAM,
        components=Components(proposer=Prophet),
        trace=trace,
    )
    assert_same(guessed, plain)
    if kind not in ("one token", "two tokens", "no tokens"):  # else there is nothing to guess
        assert drafted(trace) > 0
    assert not llm.engine.has_requests


@pytest.mark.parametrize("option", OPTIONS)
def test_suffixes_in_any_engine(option: str) -> None:
    """Guesses from earlier outputs as well; rows that are taken over by others."""
    plain = plain_run(option, "greedy")
    trace = Trace()
    config = {"method": "suffix", "num_speculative_tokens": 6}
    guessed, llm = run(option, "greedy", speculative_config=config, trace=trace)
    assert_same(guessed, plain)
    steps = len(trace.steps)
    again = llm.generate(list(CODE) * 2, SamplingParams(temperature=0, max_tokens=40))
    assert_same(again, plain)
    assert len(trace.steps) - steps < steps  # the texts are known by now


@pytest.mark.parametrize("option", OPTIONS)
def test_what_an_engine_is_made_with(option: str) -> None:
    """Guesses that are often right, with each option; nothing that was rejected is published."""
    for kind in ("greedy", "drawn"):
        plain = plain_run(option, kind)
        Prophet.known = texts_of(plain)
        trace = Trace()
        guessed, llm = run(
            option,
            kind,
            speculative_config=NGRAM,
            components=Components(proposer=Prophet),
            trace=trace,
        )
        assert_same(guessed, plain)
        assert drafted(trace) > 0
        again = llm.generate(list(CODE) * 2, SamplingParams(**{"max_tokens": 40, **PARAMS[kind]}))
        assert_same(again, plain)  # from the blocks that the first run has left


@pytest.mark.parametrize("method", ["ngram", "suffix"])
@pytest.mark.parametrize("kind", ["greedy", "drawn"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_guesses_of_the_host_leave_the_text_alone(kind: str, k: int, method: str) -> None:
    plain = plain_run("plain", kind)
    trace = Trace()
    config = {"method": method, "num_speculative_tokens": k}
    guessed, _ = run("plain", kind, speculative_config=config, trace=trace)
    assert_same(guessed, plain)
    if kind == "greedy":
        assert accepted(trace) > 20  # a small model's greedy text repeats itself


DRAFTS: dict[str, dict[str, Any]] = {
    "itself": {"method": "draft_model", "model": "quire-mini-draft"},
    "another": {"method": "draft_model", "model": "quire-mini"},  # the larger one guesses
}


@pytest.mark.parametrize(("k", "option"), [(1, "plain"), (4, "plain"), (4, "overlap")])
@pytest.mark.parametrize("kind", PARAMS)
def test_a_draft_model_leaves_the_text_alone(kind: str, k: int, option: str) -> None:
    plain = plain_run("plain", kind)
    trace = Trace()
    config = {**DRAFTS["another"], "num_speculative_tokens": k}
    guessed, llm = run(option, kind, speculative_config=config, trace=trace)
    assert_same(guessed, plain)
    if kind not in ("one token", "two tokens", "no tokens"):
        assert drafted(trace) > 0
    assert not llm.engine.has_requests


@pytest.mark.parametrize("overlap", [False, True], ids=["waiting", "overlapped"])
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("option", [option for option in OPTIONS if option != "overlap"])
def test_a_draft_model_in_any_engine(option: str, draft: str, overlap: bool) -> None:
    """The text stays, also from the blocks that a first run has left; nothing is missing there.

    A model that guesses for itself is right, but behind the ends of texts, where its last tokens
    lie; a hole in its cache would show.
    """
    for kind in ("greedy", "drawn"):
        plain = plain_run(option, kind)
        trace = Trace()
        config = {**DRAFTS[draft], "num_speculative_tokens": 3}
        guessed, llm = run(option, kind, speculative_config=config, trace=trace, overlap=overlap)
        again = llm.generate(list(CODE) * 2, SamplingParams(**{"max_tokens": 40, **PARAMS[kind]}))
        assert_same(guessed, plain)
        assert_same(again, plain)
        counts = trace.acceptance()
        if draft == "itself" and option != "INT8":
            assert counts[0][1] > 0.97 * counts[0][0]


def drafted(trace: Trace) -> int:
    return sum(e.num_draft_tokens for step in trace.steps for e in step.scheduled.entries)


def accepted(trace: Trace) -> int:
    return sum(len(t) - 1 for step in trace.steps for t in step.result.token_ids.values())


def test_a_request_that_does_not_speculate() -> None:
    trace = Trace()
    llm = LLM("quire-mini-draft", **SIZES, speculative_config=NGRAM, trace=trace)
    params = SamplingParams(temperature=0, max_tokens=40, speculate=False)
    llm.generate(list(CODE), params)
    assert drafted(trace) == 0
    llm.generate(list(CODE), [params, *[SamplingParams(temperature=0, max_tokens=40)] * 3])
    names = {e.request_id for s in trace.steps for e in s.scheduled.entries if e.num_draft_tokens}
    assert names
    assert "4-0" not in names


def test_a_right_guess_saves_a_step() -> None:
    plain = plain_run("one request at a time", "greedy")
    Prophet.known = texts_of(plain)
    trace = Trace()
    guessed, _ = run(
        "one request at a time",
        "greedy",
        speculative_config={"method": "ngram", "num_speculative_tokens": 4},
        components=Components(proposer=Prophet),
        trace=trace,
    )
    tokens = sum(len(o.outputs[0].token_ids) for o in plain)
    assert len(trace.steps) < 0.6 * tokens
    counts = trace.acceptance()
    metrics = [o.metrics for o in guessed if o.metrics is not None]
    assert sum(m.num_draft_tokens for m in metrics) == drafted(trace)
    assert 0 < sum(m.num_accepted_tokens for m in metrics) <= accepted(trace)
    assert len(counts) == 4
    assert sum(guessed for guessed, _ in counts) == drafted(trace)
    assert sum(kept for _, kept in counts) == accepted(trace)
    assert all(a[1] >= b[1] for a, b in pairwise(counts))  # none is kept behind a wrong one
    assert (
        0.6 < counts[0][1] / counts[0][0] < 0.9
    )  # one in four is spoilt, and some lie behind ends


@settings(max_examples=200, deadline=None)
@given(
    text=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    shortest=st.integers(1, 3),
    more=st.integers(0, 3),
    k=st.integers(1, 6),
)
def test_ngrams_are_those_of_a_plain_search(
    text: list[int], shortest: int, more: int, k: int
) -> None:
    """The longest end that stood there before, its latest place, and what followed it."""
    longest = shortest + more
    wanted: list[int] = []
    for size in range(longest, shortest - 1, -1):
        places = [
            end
            for end in range(size, len(text))
            if text[end - size : end] == text[len(text) - size :]
        ]
        if size < len(text) and places:
            copy = list(text)
            for i in range(k):  # a copy may run on into what it has copied
                copy.append(copy[places[-1] + i])
            wanted = copy[len(text) :]
            break
    assert NGramProposer(shortest, longest).continued(np.array(text), k) == wanted


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_equal_guesses_are_counted_from_the_front(data: st.DataObject) -> None:
    widths = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    first_rows = [0]
    for width in widths:
        first_rows.append(first_rows[-1] + 1 + width)
    token = st.integers(0, 2)
    chosen = data.draw(st.lists(token, min_size=first_rows[-1], max_size=first_rows[-1]))
    guessed = data.draw(st.lists(token, min_size=first_rows[-1], max_size=first_rows[-1]))
    drafts = Drafts(torch.tensor(guessed), first_rows)
    zeros = torch.zeros(first_rows[-1], dtype=torch.int64)
    tokens, counts = accept_equal(torch.tensor(chosen), drafts, zeros, zeros)
    assert tokens.shape == (len(widths), 1 + max(widths))
    for r, width in enumerate(widths):
        begin, right = first_rows[r], 0
        while right < width and chosen[begin + right] == guessed[begin + right]:
            right += 1
        assert counts[r] == 1 + right
        assert tokens[r, : 1 + right].tolist() == chosen[begin : begin + 1 + right]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ngram", r"speculative_config='ngram': must be a dict such as"),
        ({}, r"'method' is missing, one of ngram"),
        ({"method": "medusa"}, r"method='medusa': must be one of ngram"),
        ({"method": "ngram", "k": 3}, r"no key 'k': there are method, model, num_speculative_to"),
        (
            {"method": "draft_model"},
            r"method='draft_model' needs the draft model's name as 'model'",
        ),
        ({"method": "ngram", "model": "quire-mini"}, r"method='ngram' has no 'model'"),
        ({"method": "ngram", "verification": "synthetic"}, r"acceptance_rate=None with verific"),
        ({"method": "ngram", "acceptance_rate": 0.5}, r"acceptance_rate=0.5 with verification='co"),
        (
            {"method": "ngram", "verification": "synthetic", "acceptance_rate": 1.5},
            r"acceptance_rate=1.5: must lie in \[0, 1\]",
        ),
        ({"method": "ngram", "num_speculative_tokens": 0}, "num_speculative_tokens=0: must be an"),
        ({"method": "ngram", "num_speculative_tokens": True}, "num_speculative_tokens=True"),
        (
            {"method": "ngram", "prompt_lookup_min": 5},
            "prompt_lookup_min=5: must be at most prompt_lookup_max=4",
        ),
        ({"method": "ngram", "verification": "typical"}, "verification='typical': must be one of"),
    ],
)
def test_a_config_that_is_wrong(given: Any, message: str) -> None:
    with pytest.raises(QuireError, match=message):
        LLM("quire-mini-draft", device="cpu", speculative_config=given)


def test_a_draft_model_of_another_vocabulary() -> None:
    target = ModelConfig.from_folder(resolve_checkpoint("quire-mini-draft"))
    other = replace(target, vocab_size=4000)
    with pytest.raises(QuireError, match="a vocabulary of 4000 tokens and the model one of 4096"):
        LLM(
            "quire-mini",
            device="cpu",
            speculative_config={"method": "draft_model", "model": other},
        )
    short = replace(target, max_position=64)
    with pytest.raises(QuireError, match="made for 64 tokens, fewer than max_model_len=128"):
        LLM(
            "quire-mini",
            device="cpu",
            max_model_len=128,
            speculative_config={"method": "draft_model", "model": short},
        )


def test_a_coin_judges_where_it_is_told_to() -> None:
    trace = Trace()
    config = {
        "method": "draft_model",
        "model": "quire-mini-draft",
        "num_speculative_tokens": 4,
        "verification": "synthetic",
        "acceptance_rate": 0.6,
    }
    llm = LLM("quire-mini-draft", **SIZES, speculative_config=config, trace=trace)
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    llm.generate(list(CODE), params, use_tqdm=False)
    counts = trace.acceptance()
    assert counts[0][0] > 100
    assert counts[0][1] / counts[0][0] == pytest.approx(0.6, abs=0.15)  # three standard errors


@pytest.mark.parametrize("option", ["plain", "preemption", "host tier", "overlap"])
@pytest.mark.parametrize("method", ["ngram", "itself"])
def test_a_number_of_guesses_that_varies(
    option: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number in any step, none too: a draft model catches up with what it has missed."""
    numbers = random.Random(1)
    monkeypatch.setattr(
        LengthController, "choose", lambda self, output, batch: numbers.choice([0, 0, 0, 1, 2, 4])
    )
    config = DRAFTS["itself"] if method == "itself" else {"method": "ngram"}
    for kind in ("greedy", "drawn"):
        plain = plain_run(option, kind)
        trace = Trace()
        guessed, llm = run(option, kind, speculative_config=config, trace=trace)
        again = llm.generate(list(CODE) * 2, SamplingParams(**{"max_tokens": 40, **PARAMS[kind]}))
        assert_same(guessed, plain)
        assert_same(again, plain)
        assert drafted(trace) > 0
        if method == "itself" and option == "plain":
            counts = trace.acceptance()
            assert counts[0][1] > 0.9 * counts[0][0]


@pytest.mark.parametrize(
    ("config", "number", "in_flight"),
    [
        ({"method": "ngram"}, 0, 1),
        ({"method": "ngram"}, 1, 0),
        (DRAFTS["itself"], 0, 1),
        (DRAFTS["itself"], 2, 1),
    ],
)
def test_only_guesses_of_the_host_are_waited_for(
    config: dict[str, Any], number: int, in_flight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []
    advance = LLMEngine.advance

    def noted(self: LLMEngine) -> Any:
        grown = advance(self)
        most.append(len(self._in_flight))
        return grown

    monkeypatch.setattr(LLMEngine, "advance", noted)
    monkeypatch.setattr(LengthController, "choose", lambda self, output, batch: number)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    llm = LLM("quire-mini-draft", **SIZES, overlap=True, speculative_config=config)
    llm.generate(CODE[0], params)
    assert most[3] == in_flight


def test_what_the_host_knows_of_a_text_that_was_preempted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With three steps in flight a request may be back in its row before its last life's answer."""
    monkeypatch.setattr(LengthController, "choose", lambda self, output, batch: 0)
    params = SamplingParams(max_tokens=100, temperature=0, ignore_eos=True)
    plain = LLM("quire-mini-draft", **SIZES)
    outputs = plain.generate(list(CODE) * 2, params, use_tqdm=False)
    texts = texts_of(outputs)
    propose, looked = HostDrafting.propose, []

    def watched(self: HostDrafting, *args: Any) -> dict[str, int]:
        numbers = propose(self, *args)
        for entry in args[0]:
            if self._owners[entry.row] == entry.request_id:
                known = tuple(self._known[entry.row, : self._num_known[entry.row]].tolist())
                assert any(text[: len(known)] == known for text in texts), entry
                looked.append(entry)
        return numbers

    monkeypatch.setattr(HostDrafting, "propose", watched)
    trace = Trace()
    llm = LLM(
        "quire-mini-draft",
        tensor_parallel_size=2,
        distributed_executor_backend="lockstep",
        speculative_config={"method": "ngram"},
        overlap=True,
        block_size=8,
        num_blocks=24,
        trace=trace,
        **SIZES,
    )
    assert_same(llm.generate(list(CODE) * 2, params, use_tqdm=False), outputs)
    assert any(decision.kind == "preempt" for decision in trace.decisions())
    assert len(looked) > 500


@pytest.mark.parametrize("stop", range(3))
def test_nothing_is_allowed_behind_the_end(stop: int) -> None:
    """Guesses that lie behind a text's end may have no token there: nobody asks for one."""
    (free,) = LLM("quire-mini-draft", **SIZES).generate(
        CODE[0], SamplingParams(temperature=0, max_tokens=12)
    )
    end = free.outputs[0].token_ids[3 + stop]

    def grammar(output: list[int], logits: torch.Tensor) -> torch.Tensor:
        return torch.full_like(logits, -torch.inf) if end in output else logits

    params = SamplingParams(
        temperature=0, max_tokens=12, stop_token_ids=[end], logits_processors=[grammar]
    )
    config = {**DRAFTS["itself"], "num_speculative_tokens": 4}
    (plain,) = LLM("quire-mini-draft", **SIZES).generate(CODE[0], params)
    (guessed,) = LLM("quire-mini-draft", **SIZES, speculative_config=config).generate(
        CODE[0], params
    )
    assert guessed.outputs[0].token_ids == plain.outputs[0].token_ids
    assert guessed.outputs[0].finish_reason == "stop"
    metrics = guessed.metrics
    assert metrics is not None
    assert metrics.num_accepted_tokens < len(guessed.outputs[0].token_ids)
    endless = replace(params, stop_token_ids=[])
    with pytest.raises(QuireError, match="has no next token"):
        LLM("quire-mini-draft", **SIZES, speculative_config=config).generate(CODE[0], endless)


def test_drafts_leave_a_token_of_the_budget_to_the_others() -> None:
    """Eight requests that decode get a token in every step, however many drafts there are."""
    trace = Trace()
    llm = LLM(
        "quire-mini-draft",
        **{**SIZES, "max_num_seqs": 8},
        max_num_batched_tokens=16,
        speculative_config={**DRAFTS["another"], "num_speculative_tokens": 4},
        trace=trace,
    )
    llm.generate(
        [[5 + i] for i in range(8)], SamplingParams(max_tokens=30, ignore_eos=True, seed=1)
    )
    decoding = [step for step in trace.steps if len(step.result.token_ids) > 0][2:]
    running = {e.request_id for step in decoding[:1] for e in step.scheduled.entries}
    for step in decoding:
        running -= set(step.scheduled.finished_ids)
        assert {e.request_id for e in step.scheduled.entries} >= running


def test_a_request_that_does_not_speculate_is_not_drafted_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: list[int] = []
    guess = DraftModel._guess

    def noted(self: DraftModel, *arguments: Any) -> None:
        rows.append(len(arguments[0]))
        guess(self, *arguments)

    monkeypatch.setattr(DraftModel, "_guess", noted)
    config = {**DRAFTS["itself"], "num_speculative_tokens": 3}
    trace = Trace()
    llm = LLM("quire-mini-draft", **SIZES, speculative_config=config, trace=trace)
    silent = SamplingParams(temperature=0, max_tokens=20, speculate=False)
    llm.generate(list(CODE), silent)
    assert (rows, drafted(trace)) == ([], 0)
    llm.generate(list(CODE[:3]), [silent, silent, SamplingParams(temperature=0, max_tokens=20)])
    assert set(rows) == {1}
