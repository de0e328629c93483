"""Log-probabilities of a prompt: the same in chunks, whose logits are few at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest
import torch
from checkpoints import assert_empty, random_prompts
from runs import Folder
from torch import Tensor

from quire import LLM, SamplingParams
from quire.sampling import scoring
from quire.sampling.sampler import TokenLogprobs, gather_logprobs
from quire.sampling.scoring import score_tokens

HIDDEN, VOCAB = 4, 50


def assert_same(one: TokenLogprobs, other: TokenLogprobs) -> None:
    assert torch.equal(one.rank, other.rank)
    assert torch.equal(one.top_ids, other.top_ids)
    torch.testing.assert_close(one.chosen, other.chosen)
    torch.testing.assert_close(one.top_values, other.top_values)


@pytest.mark.parametrize("num_tokens", [1, 6, 7, 8, 21, 100])
@pytest.mark.parametrize("num_top", [0, 3, 60])
def test_chunks_give_what_one_pass_gives(
    num_tokens: int, num_top: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk's float32 logits stay within their bytes: 7 rows of 50 tokens."""
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 7 * VOCAB * 4 + 3)
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, HIDDEN, generator=generator)
    head = torch.randn(VOCAB, HIDDEN, generator=generator)
    token_ids = torch.randint(0, VOCAB, (num_tokens,), generator=generator)
    seen: list[int] = []

    def compute_logits(states: Tensor) -> Tensor:
        seen.append(len(states))
        return states @ head.T

    chunked = score_tokens(compute_logits, hidden, token_ids, num_top, VOCAB)
    assert max(seen) <= 7
    assert sum(seen) == num_tokens
    assert_same(chunked, gather_logprobs(hidden @ head.T, token_ids, num_top))


def test_a_vocabulary_beyond_the_bytes_is_scored_row_by_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 8)
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    token_ids = torch.tensor([4, 0, 49])
    chunked = score_tokens(lambda states: states, logits, token_ids, 2, VOCAB)
    assert_same(chunked, gather_logprobs(logits, token_ids, 2))


def test_the_engine_scores_prompts_in_chunks(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(checkpoint("qwen2"), device="cpu", max_num_seqs=2)
    (prompt,) = checkpoints.random_prompts([40], seed=3)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=2)
    expected = llm.generate([prompt], params)[0].prompt_logprobs
    vocab_size = llm.model_config.vocab_size
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 5 * vocab_size * 4)
    largest = 0
    compute = llm.engine.executor.worker.runner._parts.model.compute_logits

    def watched(states: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(states))
        return compute(states)

    monkeypatch.setattr(llm.engine.executor.worker.runner._parts.model, "compute_logits", watched)
    found = llm.generate([prompt], params)[0].prompt_logprobs
    assert largest == 5
    assert found is not None
    assert expected is not None
    assert len(found) == len(prompt)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours is not None
        assert theirs is not None
        assert {i: lp.rank for i, lp in ours.items()} == {i: lp.rank for i, lp in theirs.items()}
        for token_id, lp in ours.items():
            assert lp.logprob == pytest.approx(theirs[token_id].logprob, abs=1e-5)


def test_a_prompt_alone_is_scored(checkpoint: Folder) -> None:
    """`max_tokens=0` asks for no output: a prompt may then be as long as the model."""
    llm = LLM(checkpoint("qwen2"), device="cpu", max_model_len=40, max_num_batched_tokens=16)
    prompts = random_prompts([40, 1, 17], seed=73)
    score = SamplingParams(max_tokens=0, prompt_logprobs=1)
    outputs = llm.generate(prompts, score)
    one = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.finished
        (completion,) = output.outputs
        assert (completion.token_ids, completion.text) == ([], "")
        assert completion.finish_reason == "length"
        assert output.metrics is not None
        assert output.metrics.ttft is None
        if len(prompt) < 40:
            (other,) = llm.generate([prompt], one)
            for ours, theirs in zip(
                output.prompt_logprobs or [], other.prompt_logprobs or [], strict=True
            ):
                assert list(ours or ()) == list(theirs or ())
                for token, value in (theirs or {}).items():
                    assert (ours or {})[token].logprob == pytest.approx(value.logprob, abs=1e-4)
        assert len(output.prompt_logprobs or []) == len(prompt)
        assert all(output.prompt_logprobs[1:])
    assert_empty(llm)
