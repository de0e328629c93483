"""Caches too small for what runs: requests lose their blocks, are computed anew, and say the same.

Every test watches the trace, so that it cannot pass without a preemption.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from checkpoints import SPECS, assert_greedy, assert_logprobs, random_prompts
from runs import Folder, Oracle, Run

from quire import SamplingParams
from quire.engine import seed_of_sample

GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
# 11 blocks of 8 positions, where each of these requests needs up to 10.
TIGHT: dict[str, Any] = {"block_size": 8, "num_blocks": 12, "max_model_len": 80, "max_num_seqs": 4}
PROMPTS = random_prompts([20, 13, 33, 6], seed=60)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_tokens_and_logprobs(name: str, overlap: bool, checkpoint: Folder, oracle: Oracle) -> None:
    """Decodes push each other out; prompt log-probabilities are asked for in two of them."""
    run = Run.of(checkpoint(name), overlap=overlap, max_num_batched_tokens=24, **TIGHT)
    each = [replace(GREEDY, logprobs=1, prompt_logprobs=(None, 2)[i % 2]) for i in range(4)]
    handles = [run.add(prompt, params) for prompt, params in zip(PROMPTS, each, strict=True)]
    outputs = run.finish_all(handles)
    assert len(run.preemptions()) >= 3
    for output in outputs:
        assert len(output.outputs[0].token_ids) == 40
        assert_greedy(oracle(name), output)
        assert_logprobs(oracle(name), output)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("budget", [3, 5])
def test_in_the_middle_of_a_prompt(
    budget: int, caching: bool, overlap: bool, checkpoint: Folder, oracle: Oracle
) -> None:
    """A long prompt comes in small chunks beside one that decodes and needs its blocks."""
    run = Run.of(
        checkpoint("qwen2-two-groups"),
        overlap=overlap,
        max_num_batched_tokens=budget,
        enable_prefix_caching=caching,
        **TIGHT,
    )
    long = replace(GREEDY, prompt_logprobs=0, logprobs=0)
    handles = [run.add(PROMPTS[0], GREEDY)]
    while handles[0].num_output_tokens == 0:
        run.llm.engine.step()
    (prompt,) = random_prompts([62], seed=61)
    handles.append(run.add(prompt, replace(long, max_tokens=10)))
    outputs = run.finish_all(handles)
    assert any(preemption.in_prefill for preemption in run.preemptions())
    for output in outputs:
        assert_greedy(oracle("qwen2-two-groups"), output)
    assert_logprobs(oracle("qwen2-two-groups"), outputs[1])


def test_a_token_on_its_way_is_dropped_and_drawn_again(checkpoint: Folder, oracle: Oracle) -> None:
    """With overlap a request may be preempted while a step still computes its next token."""
    run = Run.of(checkpoint("llama3-scaled"), overlap=True, **TIGHT)
    outputs = run.generate(PROMPTS, replace(GREEDY, logprobs=0))
    preempted = [p for p in run.preemptions() if p.sampled_in_the_step_before]
    assert preempted
    drawn = dict.fromkeys([f"{o.request_id}-0" for o in outputs], 0)
    for step in run.trace.steps:
        for request_id, token_ids in step.result.token_ids.items():
            drawn[request_id] += len(token_ids)
    for output in outputs:
        request_id = f"{output.request_id}-0"
        dropped = sum(p.request_id == request_id for p in preempted)
        assert drawn[request_id] == 40 + dropped
        assert_greedy(oracle("llama3-scaled"), output)
        assert_logprobs(oracle("llama3-scaled"), output)
        assert output.metrics is not None
        assert len(output.metrics.token_times) == 40


def test_resumed_requests_find_their_own_blocks(checkpoint: Folder, oracle: Oracle) -> None:
    """What was computed before the preemption and not overwritten is not computed again."""
    run = Run.of(checkpoint("mistral"), **TIGHT)
    for output in run.generate(PROMPTS, GREEDY):
        assert_greedy(oracle("mistral"), output)
    assert max(run.hits()[4:]) > 0  # the first four are no resumptions


@pytest.mark.parametrize("overlap", [False, True])
def test_the_policy_chooses_whom(overlap: bool, checkpoint: Folder, oracle: Oracle) -> None:
    run = Run.of(checkpoint("qwen3-sharded"), policy="priority", overlap=overlap, **TIGHT)
    handles = [
        run.add(prompt, GREEDY, priority=priority)
        for prompt, priority in zip(PROMPTS, (3, 1, 2, 0), strict=True)
    ]
    outputs = run.finish_all(handles)
    preempted = [p.request_id for p in run.preemptions()]
    assert preempted
    assert f"{outputs[3].request_id}-0" not in preempted  # the most urgent
    assert preempted.count(f"{outputs[0].request_id}-0") == max(map(preempted.count, preempted))
    for output in outputs:
        assert_greedy(oracle("qwen3-sharded"), output)


@pytest.mark.parametrize("overlap", [False, True])
def test_sampled_penalised_and_parallel_requests(overlap: bool, checkpoint: Folder) -> None:
    """Seeds and counts of tokens come back with a request: the answers of a large cache."""
    params = [
        replace(GREEDY, temperature=1.2, seed=1, top_p=0.95),
        replace(GREEDY, frequency_penalty=0.7, presence_penalty=0.4, repetition_penalty=1.2),
        replace(GREEDY, temperature=0.9, seed=2, frequency_penalty=0.5, max_tokens=30),
        replace(GREEDY, temperature=1.5, seed=3, n=3, top_k=30),
    ]
    tight = Run.of(checkpoint("qwen2"), overlap=overlap, **TIGHT)
    handles = [tight.add(prompt, own) for prompt, own in zip(PROMPTS, params, strict=True)]
    outputs = tight.finish_all(handles)
    preempted = {p.request_id.split("-")[0] for p in tight.preemptions()}
    assert len(preempted) >= 3
    assert any(p.request_id == f"{outputs[3].request_id}-2" for p in tight.preemptions())

    roomy = Run.of(checkpoint("qwen2"))
    for output, prompt, own in zip(outputs, PROMPTS, params, strict=True):
        for completion in output.outputs:
            single = replace(own, n=1, seed=seed_of_sample(own, completion.index))
            (alone,) = roomy.generate([prompt], single)
            assert completion.token_ids == alone.outputs[0].token_ids
    assert not roomy.preemptions()


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("step", range(4, 40, 7))
def test_abort_while_others_are_preempted(
    step: int, overlap: bool, checkpoint: Folder, oracle: Oracle
) -> None:
    """Waiting after a preemption or running: whoever is withdrawn leaves nothing behind."""
    run = Run.of(checkpoint("llama-linear-biased"), overlap=overlap, **TIGHT)
    handles = [run.add(prompt, GREEDY) for prompt in PROMPTS]
    for _ in range(step):
        run.llm.engine.step()
    for handle in handles[step % 2 :: 2]:
        run.llm.engine.abort_request(handle.request_id)
    outputs = run.finish_all(handles)
    for output in outputs:
        assert_greedy(oracle("llama-linear-biased"), output)
    assert [len(o.outputs[0].token_ids) for o in outputs[1 - step % 2 :: 2]] == [40, 40]
