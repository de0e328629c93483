"""Prompts that begin with what is cached: fewer positions computed, the same tokens."""

from __future__ import annotations

import pytest
from checkpoints import SPECS, assert_greedy, assert_logprobs, random_prompts
from runs import Folder, Oracle, Run

from quire import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, logprobs=0)
BLOCK = 8
(BASE,) = random_prompts([45], seed=50)  # five blocks and five tokens
(OTHER,) = random_prompts([60], seed=51)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_hits(name: str, overlap: bool, checkpoint: Folder, oracle: Oracle) -> None:
    """From no block to all but one token of the prompt, and into a request's own output."""
    run = Run.of(checkpoint(name), block_size=BLOCK, overlap=overlap, max_num_seqs=2)
    (first,) = run.generate([BASE], GREEDY)
    answer = first.outputs[0].token_ids
    prompts = {
        "the same prompt": (BASE, 40),
        "whole blocks and one token": (BASE[:41], 40),  # one token is left to compute
        "whole blocks, all cached": (BASE[:40], 32),  # one token must be left: a block is
        "a prefix": (BASE[:20], 16),
        "the same beginning": (BASE[:35] + OTHER[:20], 32),
        "less than a block": (BASE[:7] + OTHER[:20], 0),
        "the same blocks elsewhere": (OTHER[:BLOCK] + BASE, 0),
        "a block left out": (BASE[:8] + BASE[16:], 8),  # what follows was after another block
        # Of 45 + 10 tokens, 54 were computed: the last one sampled never is.
        "the answer as well": (BASE + answer + [3], 48),
    }
    for why, (prompt, expected) in prompts.items():
        (output,) = run.generate([prompt], GREEDY)
        assert run.hits()[-1] == expected, why
        assert_greedy(oracle(name), output)
        assert_logprobs(oracle(name), output)
    computed = sum(step.scheduled.num_tokens for step in run.trace.steps)
    asked = sum(len(prompt) + 9 for prompt, _ in prompts.values()) + len(BASE) + 9
    assert computed == asked - sum(run.hits())


def test_without_caching_nothing_is_found(checkpoint: Folder) -> None:
    run = Run.of(checkpoint("qwen2"), block_size=BLOCK, enable_prefix_caching=False)
    run.generate([BASE], GREEDY)
    run.generate([BASE], GREEDY)
    assert run.hits() == [0, 0]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", ["mistral", "qwen2-two-groups"])
def test_hits_after_eviction(name: str, overlap: bool, checkpoint: Folder, oracle: Oracle) -> None:
    """A cache of 11 blocks: newcomers take the oldest prompt's blocks, the last one first."""
    run = Run.of(
        checkpoint(name), block_size=BLOCK, num_blocks=12, max_model_len=80, overlap=overlap
    )
    outputs = run.generate([BASE], GREEDY)  # holds seven blocks, six of them full
    outputs += run.generate([OTHER[:41]], GREEDY)  # seven: the four unused ones, three of BASE's
    outputs += run.generate([BASE], GREEDY)
    assert run.hits() == [0, 0, 32]  # blocks 0 to 3 of BASE were left
    outputs += run.generate([OTHER], GREEDY)
    outputs += run.generate([BASE], GREEDY)
    assert run.hits()[-1] < 32
    for output in outputs:
        assert_greedy(oracle(name), output)


def test_cache_salt_keeps_apart(checkpoint: Folder, oracle: Oracle) -> None:
    run = Run.of(checkpoint("llama3-scaled"), block_size=BLOCK)
    salts = [None, "a", "b", "a", None, "b", ""]
    outputs = [run.generate([BASE], GREEDY, cache_salt=salt)[0] for salt in salts]
    assert run.hits() == [0, 0, 0, 40, 40, 40, 0]
    for output in outputs:
        assert_greedy(oracle("llama3-scaled"), output)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("num_steps", [1, 3, 6, 12])
def test_blocks_shared_by_requests_that_run(
    num_steps: int, overlap: bool, checkpoint: Folder, oracle: Oracle
) -> None:
    """A second request reads the first one's blocks while it runs, and after it is gone."""
    run = Run.of(
        checkpoint("qwen3-sharded"),
        block_size=BLOCK,
        overlap=overlap,
        max_num_seqs=3,
        max_num_batched_tokens=16,
    )
    long = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    first = run.add(BASE, long)
    for _ in range(num_steps):
        run.llm.engine.step()
    second = run.add([*BASE[:40], 7, 8, 9], long)
    third = run.add(BASE, long)
    for _ in range(4):
        run.llm.engine.step()
    run.llm.engine.abort_request(first.request_id)
    outputs = run.finish_all([first, second, third])
    found = run.hits()[1:]
    assert found[0] > 0
    if num_steps > 3:  # all of the prompt's full blocks are published by then
        assert found == [40, 40]
    for output in outputs:
        assert_greedy(oracle("qwen3-sharded"), output)
    assert len(outputs[1].outputs[0].token_ids) == 30


def test_prompt_logprobs_want_every_position(checkpoint: Folder, oracle: Oracle) -> None:
    """A request that asks for them computes its whole prompt, and others still find it."""
    run = Run.of(checkpoint("qwen2"), block_size=BLOCK, max_num_batched_tokens=16)
    scored = SamplingParams(
        temperature=0, max_tokens=5, ignore_eos=True, logprobs=3, prompt_logprobs=3
    )
    for params in (GREEDY, scored, scored, GREEDY):
        (output,) = run.generate([BASE], params)
        assert_greedy(oracle("qwen2"), output)
        assert_logprobs(oracle("qwen2"), output)
    assert run.hits() == [0, 0, 0, 40]
