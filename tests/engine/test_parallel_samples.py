"""n samples of a prompt: its blocks are computed once and shared, the samples are their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from checkpoints import SPECS, assert_greedy, assert_logprobs, random_prompts
from runs import Folder, Oracle, Run

from quire import SamplingParams
from quire.engine import seed_of_sample

BLOCK = 8
GREEDY = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True, logprobs=0)
SAMPLED = SamplingParams(temperature=1.4, top_p=0.97, seed=7, max_tokens=14, ignore_eos=True)


@pytest.mark.parametrize(
    ("length", "overlap"),
    [(1, True), (2, False), (BLOCK, True), (BLOCK + 1, True), (21, False), (21, True)],
)
@pytest.mark.parametrize("name", SPECS)
def test_greedy_samples(
    name: str, length: int, overlap: bool, checkpoint: Folder, oracle: Oracle
) -> None:
    """Each sample computes the last prompt token itself and shares what lies before it."""
    (prompt,) = random_prompts([length], seed=70)
    run = Run.of(checkpoint(name), block_size=BLOCK, overlap=overlap, max_num_seqs=4)
    (output,) = run.generate([prompt], replace(GREEDY, n=3, prompt_logprobs=0))
    assert_greedy(oracle(name), output)
    assert_logprobs(oracle(name), output)
    assert [c.token_ids for c in output.outputs] == [output.outputs[0].token_ids] * 3
    assert run.hits() == [0, length - 1, length - 1]
    # A partial block is copied before the sample writes behind what it shares.
    copies = run.decisions("copy")
    num_groups = len(run.trace.steps[0].scheduled.entries[0].new_block_ids)
    assert len(copies) == (2 * num_groups if (length - 1) % BLOCK else 0)
    assert {copy.request_id for copy in copies} <= {"0-1", "0-2"}
    for copy in copies:
        assert copy.details["from"] != copy.details["to"]


def test_blocks_are_shared(checkpoint: Folder) -> None:
    """Eight samples of 60 tokens hold the prompt's blocks once."""
    (prompt,) = random_prompts([60], seed=71)
    run = Run.of(checkpoint("qwen2"), block_size=BLOCK, num_blocks=41, max_num_seqs=8)
    run.generate([prompt], replace(SAMPLED, n=8, max_tokens=12))
    # Seven full blocks for all; each sample one for the rest of the prompt and one more.
    assert min(step.scheduled.num_free_blocks for step in run.trace.steps) == 40 - 7 - 8 * 2
    assert not run.preemptions()
    computed = sum(step.scheduled.num_tokens for step in run.trace.steps)
    assert computed == 60 + 7 + 8 * 11


@pytest.mark.parametrize(
    ("max_num_seqs", "budget", "overlap"),
    [(1, 4096, True), (2, 5, True), (2, 4096, False), (5, 5, False), (8, 4096, True)],
)
def test_seeded_samples_are_those_of_separate_requests(
    max_num_seqs: int, budget: int, overlap: bool, checkpoint: Folder
) -> None:
    """With fewer rows than samples some begin when the first is gone; with small chunks late."""
    prompts = random_prompts([19, 5], seed=72)
    run = Run.of(
        checkpoint("qwen2-two-groups"),
        block_size=BLOCK,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        overlap=overlap,
    )
    each = [replace(SAMPLED, n=5, logprobs=2), replace(SAMPLED, n=3, presence_penalty=0.5)]
    handles = [run.add(prompt, params) for prompt, params in zip(prompts, each, strict=True)]
    outputs = run.finish_all(handles)
    for output, params in zip(outputs, each, strict=True):
        assert len({tuple(c.token_ids) for c in output.outputs}) == params.n
        for completion in output.outputs:
            single = replace(params, n=1, seed=seed_of_sample(params, completion.index))
            (alone,) = run.generate([output.prompt_token_ids], single)
            assert completion.token_ids == alone.outputs[0].token_ids
            assert completion.cumulative_logprob == pytest.approx(
                alone.outputs[0].cumulative_logprob, abs=1e-3
            )


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("num_steps", range(6))
def test_the_first_sample_may_end_before_the_others_begin(
    num_steps: int, overlap: bool, checkpoint: Folder, oracle: Oracle
) -> None:
    """It has one token, or the caller of another prompt leaves: the blocks are still right."""
    (prompt,) = random_prompts([27], seed=73)
    run = Run.of(
        checkpoint("mistral"),
        block_size=BLOCK,
        max_num_seqs=2,
        max_num_batched_tokens=10,
        overlap=overlap,
    )
    one = run.add(prompt, replace(GREEDY, n=4, max_tokens=1, prompt_logprobs=0))
    gone = run.add(prompt, replace(SAMPLED, n=4))
    stays = run.add(prompt, replace(GREEDY, n=3))
    for _ in range(num_steps):
        run.llm.engine.step()
    run.llm.engine.abort_request(gone.request_id)
    outputs = run.finish_all([one, stays])
    for output in outputs:
        assert_greedy(oracle("mistral"), output)
        assert_logprobs(oracle("mistral"), output)
    assert [len(c.token_ids) for c in outputs[0].outputs] == [1] * 4
    assert [len(c.token_ids) for c in outputs[1].outputs] == [14] * 3


@pytest.mark.parametrize("overlap", [False, True])
def test_samples_under_preemption(overlap: bool, checkpoint: Folder, oracle: Oracle) -> None:
    """Sample 0 itself may be preempted before or after the others were forked from it."""
    prompts = random_prompts([21, 30], seed=74)
    for num_blocks in (11, 15):
        run = Run.of(
            checkpoint("llama3-scaled"),
            block_size=BLOCK,
            num_blocks=num_blocks,
            max_model_len=72,
            max_num_seqs=6,
            max_num_batched_tokens=16,
            overlap=overlap,
        )
        for output in run.generate(prompts, replace(GREEDY, n=4, max_tokens=40)):
            assert_greedy(oracle("llama3-scaled"), output)
            assert_logprobs(oracle("llama3-scaled"), output)
        assert run.decisions("copy")
        assert len(run.preemptions()) >= 2
