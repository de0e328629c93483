"""Random requests on random engines: whatever happens beside it, a request says what it says alone.

Every engine is short of blocks, and its steps are interrupted now and then. A failure names
its seed.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import VOCAB_SIZE
from runs import Folder, Run
from torch import Tensor

from quire import RequestHandle, RequestOutput, SamplingParams
from quire.engine import seed_of_sample
from quire.outputs import CompletionOutput
from quire.policy import POLICIES

NUM_REQUESTS = 24
MAX_MODEL_LEN = 64
CHECKPOINTS = ("qwen2-two-groups", "qwen3-sharded", "llama3-scaled", "mistral")


class Interrupted(BaseException):
    """What Ctrl-C raises, but not taken for it by pytest."""


class Interruptions:
    """Stands before an engine's attention; a call of it raises when it was told to."""

    def __init__(self, run: Run) -> None:
        backend = run.llm.engine.executor.worker.runner._parts.backend
        self._forward = backend.forward
        self._calls_left = -1
        self.count = 0
        backend.forward = self._call  # type: ignore[method-assign]

    def ask_for(self, num_calls: int) -> None:
        """Raise at a layer of the next step; -1 for none."""
        self._calls_left = num_calls

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        self._calls_left -= 1
        if self._calls_left == -1:
            self.count += 1
            raise Interrupted
        return self._forward(*args, **kwargs)


def random_drafts(folder: Path, seed: int) -> dict[str, Any] | None:
    """Who guesses: nobody, the text itself, or the model itself; how far, the engine may choose."""
    rng = random.Random(f"who {seed}")
    config: dict[str, Any] | None = rng.choice(
        [None, {"method": "ngram", "prompt_lookup_min": 1}, {"method": "draft_model"}]
    )
    if config is not None:
        config["num_speculative_tokens"] = rng.choice([1, 3, 5, "auto"])
        if config["method"] == "draft_model":
            config["model"] = folder
    return config


def random_engine(rng: random.Random, checkpoint: Folder, name: str, seed: int) -> Run:
    """An engine whose cache holds one of the longest requests and a little more."""
    block_size = rng.choice([8, 8, 16])
    longest = MAX_MODEL_LEN // block_size
    return Run.of(
        checkpoint(name),
        block_size=block_size,
        num_blocks=1 + longest + rng.randrange(longest // 2),
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=rng.randint(2, 6),
        max_num_batched_tokens=rng.choice([5, 9, 16, 40, 300]),
        enable_prefix_caching=rng.random() < 0.75,
        policy=rng.choice(list(POLICIES)),
        overlap=rng.random() < 0.6,
        speculative_config=random_drafts(checkpoint(name), seed),
    )


def random_prompt(rng: random.Random, known: list[list[int]]) -> list[int]:
    """A new prompt, or one that begins like an earlier one and its answer."""
    if known and rng.random() < 0.6:
        base = rng.choice(known)
        prompt = base[: rng.randint(1, len(base))]
        prompt = prompt + [rng.randrange(VOCAB_SIZE) for _ in range(rng.choice([0, 0, 1, 9]))]
    else:
        prompt = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 45))]
    return prompt[: MAX_MODEL_LEN - 1]


def halve_the_last(output: list[int], logits: Tensor) -> Tensor:
    """A function of a request's own: what was just said is less likely."""
    if output:
        logits[output[-1]] *= 0.5
    return logits


def random_shaping(rng: random.Random, max_tokens: int) -> dict[str, Any]:
    """Now and then, each of what forbids or favours tokens."""

    def some(count: int) -> list[int]:
        return rng.sample(range(VOCAB_SIZE), count)

    options: dict[str, Any] = {
        "min_tokens": rng.randint(0, max_tokens),
        "logit_bias": {token_id: rng.uniform(-3, 3) for token_id in some(4)},
        "allowed_token_ids": some(VOCAB_SIZE // 2),
        "bad_words_ids": [[i] for i in some(3)] + [some(2) for _ in range(40)],
        "logits_processors": [halve_the_last],
    }
    return {name: value for name, value in options.items() if rng.random() < 0.12}


def random_params(rng: random.Random) -> SamplingParams:
    """Anything a request can ask for; a seed, so that it can be asked again."""
    penalised = rng.random() < 0.3
    max_tokens = rng.choice([1, 2, 8, 20, 40])
    return SamplingParams(
        **random_shaping(rng, max_tokens),
        n=rng.choice([1, 1, 1, 2, 4]),
        temperature=rng.choice([0, 0, 0.7, 1.5]),
        top_k=rng.choice([0, 0, 20]),
        top_p=rng.choice([1.0, 0.9]),
        min_p=rng.choice([0.0, 0.0, 0.02]),
        frequency_penalty=0.5 if penalised else 0.0,
        repetition_penalty=1.2 if penalised else 1.0,
        seed=rng.randrange(1000),
        max_tokens=max_tokens,
        stop_token_ids=rng.sample(range(VOCAB_SIZE), rng.choice([0, 0, 5])),
        logprobs=rng.choice([None, None, 0, 2]),
        prompt_logprobs=rng.choice([None, None, None, 1]),
    )


@dataclass
class Alone:
    """An engine that serves one request at a time, and what it answered."""

    run: Run

    def answer(self, output: RequestOutput, params: SamplingParams, index: int) -> RequestOutput:
        """Return what one sample of a request is when nothing else runs."""
        single = replace(params, n=1, seed=seed_of_sample(params, index))
        return self.run.generate([output.prompt_token_ids], single)[0]


def assert_same(ours: CompletionOutput, alone: CompletionOutput) -> None:
    """Equal, or as far as it got before it was withdrawn."""
    if ours.finish_reason == "abort":
        assert ours.token_ids == alone.token_ids[: len(ours.token_ids)]
        return
    assert ours.token_ids == alone.token_ids
    assert (ours.finish_reason, ours.stop_reason) == (alone.finish_reason, alone.stop_reason)
    assert (ours.logprobs is None) == (alone.logprobs is None)
    if ours.logprobs is not None and alone.logprobs is not None:
        assert len(ours.logprobs) == len(ours.token_ids)
        for row, other, token in zip(ours.logprobs, alone.logprobs, ours.token_ids, strict=True):
            assert row[token].logprob == pytest.approx(other[token].logprob, abs=1e-3)
        assert ours.cumulative_logprob == pytest.approx(alone.cumulative_logprob, abs=1e-2)


@pytest.fixture(scope="module")
def alone(checkpoint: Folder) -> dict[str, Alone]:
    return {
        name: Alone(
            Run.of(
                checkpoint(name),
                max_num_seqs=1,
                max_model_len=MAX_MODEL_LEN,
                enable_prefix_caching=False,
            )
        )
        for name in CHECKPOINTS
    }


@pytest.mark.parametrize("seed", range(10))
def test_random_requests(seed: int, checkpoint: Folder, alone: dict[str, Alone]) -> None:
    rng = random.Random(seed)
    name = CHECKPOINTS[seed % len(CHECKPOINTS)]
    run = random_engine(rng, checkpoint, name, seed)
    submitted: list[tuple[RequestHandle, SamplingParams]] = []
    interruptions = Interruptions(run)
    while len(submitted) < NUM_REQUESTS or run.llm.engine.has_requests:
        if len(submitted) < NUM_REQUESTS and rng.random() < 0.5:
            now = [handle.snapshot() for handle, _ in submitted]
            known = [o.prompt_token_ids + o.outputs[0].token_ids for o in now]
            prompt, params = random_prompt(rng, known), random_params(rng)
            options = {"priority": rng.randrange(3), "client_id": rng.choice("ab")}
            salt = rng.choice([None, None, None, "salt"])
            submitted.append((run.add(prompt, params, cache_salt=salt, **options), params))
        if submitted and rng.random() < 0.03:
            run.llm.engine.abort_request(rng.choice(submitted)[0].request_id)
        interruptions.ask_for(rng.randrange(3) if rng.random() < 0.06 else -1)
        with suppress(Interrupted):
            run.llm.engine.step()
        run.llm.engine._scheduler._kv.check()  # type: ignore[attr-defined]
    run.finish()
    assert run.preemptions()
    assert interruptions.count
    for handle, params in submitted:
        output = handle.snapshot()
        assert output.finished
        for completion in output.outputs:
            expected = alone[name].answer(output, params, completion.index)
            assert_same(completion, expected.outputs[0])
            if (
                completion.index == 0
                and completion.token_ids
                and params.prompt_logprobs is not None
            ):
                assert_prompt_logprobs(output, expected)


def assert_prompt_logprobs(ours: RequestOutput, alone: RequestOutput) -> None:
    """Every position is scored, whichever steps computed it."""
    assert ours.prompt_logprobs is not None
    assert alone.prompt_logprobs is not None
    rows = zip(ours.prompt_logprobs, alone.prompt_logprobs, ours.prompt_token_ids, strict=True)
    for position, (row, other, token) in enumerate(rows):
        assert (row is None) == (other is None) == (position == 0)
        if row is not None and other is not None:
            assert row[token].logprob == pytest.approx(other[token].logprob, abs=1e-3)
