"""Seeds in the engine: the same tokens alone, in any batch, in any row; n samples apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import naive_sampling
import pytest
from naive_sampling import assert_distributed

from quire import LLM, SamplingParams, Trace


@pytest.fixture(scope="module")
def engine(checkpoint: Callable[[str], Path]) -> LLM:
    return LLM(checkpoint("qwen2"), device="cpu", max_num_seqs=6, max_num_batched_tokens=32)


def tokens_of(llm: LLM, prompts: list[list[int]], params: list[SamplingParams]) -> list[list[int]]:
    return [o.outputs[0].token_ids for o in llm.generate(prompts, params)]


def seeded(count: int) -> list[SamplingParams]:
    return [
        SamplingParams(
            temperature=1.0 + i / 4,
            top_p=(1.0, 0.9)[i % 2],
            top_k=(0, 20, 5)[i % 3],
            frequency_penalty=(0.0, 0.3)[i % 2],
            seed=1000 + i,
            max_tokens=24,
        )
        for i in range(count)
    ]


def test_a_seed_gives_the_same_tokens_alone_and_in_any_batch(engine: LLM) -> None:
    prompts = checkpoints.random_prompts([3, 1, 17, 8, 40, 5, 2, 11, 9], seed=20)
    params = seeded(len(prompts))
    alone = [tokens_of(engine, [p], [s])[0] for p, s in zip(prompts, params, strict=True)]
    assert tokens_of(engine, prompts, params) == alone  # rows are reused: nine in six
    assert tokens_of(engine, prompts[::-1], params[::-1])[::-1] == alone
    greedy = [SamplingParams(temperature=0, max_tokens=30)] * 3
    beside = tokens_of(engine, prompts[:3] + prompts, greedy + params)
    assert beside[3:] == alone
    checkpoints.assert_empty(engine)


def test_seeds_matter(engine: LLM) -> None:
    prompt = [5, 6, 7]
    params = [SamplingParams(temperature=2.0, seed=s, max_tokens=12) for s in range(20)]
    rows = tokens_of(engine, [prompt] * 20, params)
    assert len({tuple(row) for row in rows}) == 20
    unseeded = [SamplingParams(temperature=2.0, max_tokens=12)] * 6
    first = tokens_of(engine, [prompt] * 6, unseeded)
    second = tokens_of(engine, [prompt] * 6, unseeded)
    assert len({tuple(row) for row in first + second}) == 12


def test_n_samples_are_distinct_and_repeatable(engine: LLM) -> None:
    params = SamplingParams(n=8, temperature=2.0, seed=2**63 - 1, max_tokens=12, logprobs=2)
    (output,) = engine.generate([1, 2, 3], params)
    assert [c.index for c in output.outputs] == list(range(8))
    rows = [c.token_ids for c in output.outputs]
    assert len({tuple(row) for row in rows}) == 8
    again = engine.generate([[9, 9], [1, 2, 3]], params)[1]
    assert [c.token_ids for c in again.outputs] == rows
    single = engine.generate([1, 2, 3], replace(params, n=1))[0].outputs[0]
    assert single.token_ids == rows[0]  # sample 0 keeps the seed
    for completion in output.outputs:
        assert completion.logprobs is not None
        assert len(completion.logprobs) == len(completion.token_ids)
        chosen = [
            row[token].logprob
            for row, token in zip(completion.logprobs, completion.token_ids, strict=True)
        ]
        assert completion.cumulative_logprob == pytest.approx(sum(chosen))


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("repetition", "presence", "frequency"),
    # Rewards make the model say its last token again: one that was not counted would show.
    [(1.3, 2.0, 1.5), (0.6, 0.0, 0.0), (1.0, -2.0, -1.5), (1.0, 0.0, 2.0)],
)
def test_engine_penalties_see_prompt_and_output(
    repetition: float,
    presence: float,
    frequency: float,
    overlap: bool,
    checkpoint: Callable[[str], Path],
    oracle: Callable[[str], Any],
) -> None:
    """Greedy with penalties, step by step against the naive formula on transformers' logits."""
    prompts = checkpoints.random_prompts([60, 9], seed=21)
    params = SamplingParams(
        temperature=0,
        max_tokens=40,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
    )
    plain = replace(params, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)
    llm = LLM(checkpoint("qwen2"), device="cpu", max_num_seqs=4, overlap=overlap)
    outputs = tokens_of(llm, prompts * 2, [params, params, plain, plain])
    assert outputs[:2] != outputs[2:]
    for prompt, tokens in zip(prompts, outputs, strict=False):
        logits = checkpoints.oracle_logits(oracle("qwen2"), prompt + tokens)[len(prompt) - 1 : -1]
        for i, token in enumerate(tokens):
            values = naive_sampling.penalised(logits[i].tolist(), params, prompt, tokens[:i])
            assert values[token] >= max(values) - checkpoints.TOLERANCE


def test_engine_draws_from_the_models_distribution(
    engine: LLM, oracle: Callable[[str], Any]
) -> None:
    """Seeds, positions and rows of the engine feed the sampler as the sampler's tests do."""
    prompt = [11, 12, 13, 14]
    params = SamplingParams(temperature=1.5, top_k=12, top_p=0.9, max_tokens=1)
    rows = [replace(params, seed=seed) for seed in range(1500)]
    tokens = [row[0] for row in tokens_of(engine, [prompt] * len(rows), rows)]
    logits = checkpoints.oracle_logits(oracle("qwen2"), prompt)[-1].tolist()
    assert_distributed(tokens, naive_sampling.distribution(logits, params))


def test_a_seed_is_drawn_once_and_travels_in_the_message(checkpoint: Callable[[str], Path]) -> None:
    """Two runners that are given the same messages draw the same tokens, unseeded ones too."""
    trace = Trace()
    options: dict[str, Any] = {"device": "cpu", "max_num_seqs": 2, "num_blocks": 6}
    llm = LLM(checkpoint("qwen2"), trace=trace, max_model_len=64, **options)
    params = SamplingParams(temperature=2.0, n=2, max_tokens=40)
    tokens_of(llm, [[5, 6, 7], [8, 9]], [params] * 2)
    twin = LLM(checkpoint("qwen2"), max_model_len=64, **options).engine.executor.worker.runner
    for step in trace.steps:
        assert twin.execute(step.scheduled).wait().token_ids == step.result.token_ids
    seeds: dict[str, set[int]] = {}
    for step in trace.steps:
        for new in step.scheduled.new_requests:
            seeds.setdefault(new.request_id, set()).add(new.seed)
    assert any(step.scheduled.preempted_ids for step in trace.steps)
    assert all(len(own) == 1 for own in seeds.values()), "a resumed request keeps its seed"
    assert len(set.union(*seeds.values())) == len(seeds) == 4
