"""A step scheduled while the one before it runs: the same tokens, one thrown away at an end."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from checkpoints import (
    SPECS,
    WINDOW,
    Scripted,
    assert_empty,
    assert_greedy,
    assert_logprobs,
    random_prompts,
)
from runs import Folder, Oracle, Run
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from quire import LLM, Components, SamplingParams
from quire.sampling import SamplerOutput, SamplingTensors

RAGGED = [1, 2, 7, 8, 9, WINDOW - 1, WINDOW, WINDOW + 1, 63, 64, 65]
GREEDY = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)


@pytest.mark.parametrize(
    ("block_size", "budget", "overlap"),
    [(8, 13, True), (8, 4096, False), (16, 4096, True), (64, 40, True)],
)
@pytest.mark.parametrize("name", SPECS)
def test_any_block_size(
    name: str, block_size: int, budget: int, overlap: bool, checkpoint: Folder, oracle: Oracle
) -> None:
    """Ragged prompts that end and windows that begin on and beside the edges of blocks."""
    run = Run.of(
        checkpoint(name),
        block_size=block_size,
        max_num_batched_tokens=budget,
        max_num_seqs=7,
        overlap=overlap,
    )
    for output in run.generate(random_prompts(RAGGED, seed=80), GREEDY):
        assert len(output.outputs[0].token_ids) == 30
        assert_greedy(oracle(name), output)


def test_a_step_is_scheduled_before_the_last_one_is_known(checkpoint: Folder) -> None:
    """Two in flight with overlap, one without: what `begin` and `end` of the steps say."""
    for overlap in (False, True):
        run = Run.of(checkpoint("qwen2"), overlap=overlap)
        run.generate(random_prompts([5, 9]), GREEDY)
        early = [later.begin < earlier.end for earlier, later in pairwise(run.trace.steps)]
        assert early == [overlap] * len(early)


@pytest.mark.parametrize("overlap", [False, True])
def test_no_step_is_wasted_on_a_length_known_beforehand(
    overlap: bool, checkpoint: Folder, oracle: Oracle
) -> None:
    """`max_tokens` and the longest sequence are counts: nothing is computed past them."""
    run = Run.of(checkpoint("mistral"), overlap=overlap, max_model_len=50, max_num_seqs=3)
    prompts = random_prompts([10, 45, 3], seed=81)
    each = [replace(GREEDY, max_tokens=n) for n in (1, 500, 12)]
    handles = [run.add(prompt, params) for prompt, params in zip(prompts, each, strict=True)]
    outputs = run.finish_all(handles)
    lengths = [len(o.outputs[0].token_ids) for o in outputs]
    assert lengths == [1, 5, 12]
    for output, length in zip(outputs, lengths, strict=True):
        entries = [
            entry
            for step in run.trace.steps
            for entry in step.scheduled.entries
            if entry.request_id == f"{output.request_id}-0"
        ]
        assert sum(entry.samples for entry in entries) == length
        assert (
            entries[-1].start + entries[-1].num_tokens == len(output.prompt_token_ids) + length - 1
        )
        assert_greedy(oracle("mistral"), output)


@pytest.mark.parametrize("name", ["qwen3-sharded", "qwen2-two-groups"])
def test_one_token_after_a_stop_token_is_dropped(
    name: str, checkpoint: Folder, oracle: Oracle
) -> None:
    """The end is seen one step late; of that step nothing reaches the caller."""
    prompts = random_prompts([6, 17], seed=82)
    plain = Run.of(checkpoint(name)).generate(prompts, GREEDY)
    answer = plain[0].outputs[0].token_ids
    place = next(i for i in range(8, 30) if answer[i] not in answer[:i])
    stops = replace(GREEDY, stop_token_ids=[answer[place]], logprobs=1)
    run = Run.of(checkpoint(name), overlap=True)
    handles = [run.add(prompts[0], stops), run.add(prompts[1], replace(GREEDY, logprobs=1))]
    outputs = run.finish_all(handles)
    ended, beside = (output.outputs[0] for output in outputs)
    assert ended.token_ids == answer[: place + 1]
    assert (ended.finish_reason, ended.stop_reason) == ("stop", answer[place])
    assert ended.logprobs is not None
    assert len(ended.logprobs) == place + 1
    assert outputs[0].metrics is not None
    assert len(outputs[0].metrics.token_times) == place + 1
    assert beside.token_ids == plain[1].outputs[0].token_ids
    for output in outputs:
        assert_logprobs(oracle(name), output)
    drawn = [
        token
        for step in run.trace.steps
        for token in step.result.token_ids.get(f"{outputs[0].request_id}-0", [])
    ]
    assert drawn == answer[: place + 2]  # the one after the end was computed, and dropped


class Counted(Scripted):
    """Counts the steps that drew a token."""

    num_calls = 0

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Tensor | None = None
    ) -> SamplerOutput:
        self.num_calls += 1
        return super().__call__(logits, sampling, drafts)


@pytest.mark.parametrize("stop", [["item"], []], ids=["stop string", "end of sequence"])
def test_nothing_leaks_into_the_text(
    stop: list[str], text_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A word follows the end at once; it was sampled, and is in no field of the output."""
    prompt = tokenizer.encode("def push")
    before = tokenizer.encode("return item")
    end = [] if stop else [tokenizer.eos_token_id]
    script = before + end + tokenizer.encode("leaked") * 20
    for overlap in (False, True):
        sampler = Counted(len(prompt), script)
        components = Components(sampler=lambda sampler=sampler: sampler)
        llm = LLM(text_folder, device="cpu", overlap=overlap, components=components)
        params = SamplingParams(max_tokens=50, stop=stop, logprobs=0)
        (output,) = llm.generate([prompt], params)
        assert sampler.num_calls == len(before + end) + overlap
        completion = output.outputs[0]
        assert completion.text == ("return " if stop else "return item")
        assert completion.token_ids == before + end
        assert (completion.finish_reason, completion.stop_reason) == ("stop", (stop or [None])[0])
        assert completion.logprobs is not None
        assert [next(iter(row)) for row in completion.logprobs] == before + end
        shown = [output.outputs[0].text for output in llm.stream(prompt, params)]
        assert shown[-1] == completion.text
        assert all(later.startswith(earlier) for earlier, later in pairwise(shown))
        assert_empty(llm)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", ["llama3-scaled", "qwen2-two-groups"])
def test_a_neighbour_is_withdrawn_at_every_step(
    name: str, overlap: bool, checkpoint: Folder, oracle: Oracle
) -> None:
    """Before it ran, in its prompt, in its answer, with its token on the way: others go on."""
    run = Run.of(
        checkpoint(name),
        block_size=8,
        max_num_seqs=3,
        max_num_batched_tokens=16,
        overlap=overlap,
        enable_prefix_caching=False,
    )
    prompts = random_prompts([12, 30, 5, 9], seed=83)
    short = replace(GREEDY, max_tokens=8)
    kept = []
    for step in range(12):
        handles = [run.add(prompt, short) for prompt in prompts]
        leaving = handles.pop(step % 2)
        for _ in range(step):
            run.llm.engine.step()
        num_known = leaving.num_output_tokens
        run.llm.engine.abort_request(leaving.request_id)
        outputs = run.finish_all(handles)
        neighbour = leaving.snapshot()
        assert neighbour.finished
        assert len(neighbour.outputs[0].token_ids) == num_known
        assert_greedy(oracle(name), neighbour)
        kept.append([output.outputs[0].token_ids for output in outputs])
        if step < 2:
            for output in outputs:
                assert_greedy(oracle(name), output)
    assert all(len(tokens) == 8 for answers in kept for tokens in answers)
    assert kept == kept[:2] * 6
