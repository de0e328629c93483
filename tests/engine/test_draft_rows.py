"""The runner's side of drafts: a row of logits for each, several tokens kept and answered."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import checkpoints
import pytest
import torch
from runs import Folder
from torch import Tensor

from quire import LLM, Components, QuireError, SamplingParams
from quire.messages import NewRequest, ScheduledEntry, SchedulerOutput, StepResult
from quire.sampling.sampler import Drafts, SamplerOutput, TorchSampler, gather_logprobs
from quire.sampling.tensors import SamplingTensors

PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)
BLOCKS = 4


class AcceptEqual(TorchSampler):
    """Accepts a draft if it is what the row above it chooses."""

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Drafts | None = None
    ) -> SamplerOutput:
        if drafts is None:
            return super().__call__(logits, sampling)
        chosen = self.choose(logits, sampling)
        starts = drafts.first_rows
        requests = list(pairwise(starts))
        width = max(end - begin for begin, end in requests)
        tokens = torch.zeros((len(requests), width), dtype=torch.int64)
        counts = []
        for r, (begin, end) in enumerate(requests):
            tokens[r, : end - begin] = chosen[begin:end]
            right = (chosen[begin : end - 1] == drafts.tokens[begin : end - 1]).long()
            counts.append(1 + int(right.cumprod(0).sum()))
        return SamplerOutput(
            tokens,
            torch.tensor(counts),
            gather_logprobs(logits, chosen, sampling.num_logprobs or 0),
        )


def runner_of(llm: LLM) -> Any:
    return llm.engine.executor.worker.runner  # type: ignore[attr-defined]


def first_step(prompts: list[list[int]]) -> SchedulerOutput:
    """Compute every prompt; request r has the blocks from 1 + BLOCKS · r on."""
    new = tuple(NewRequest(str(r), r, p, len(p), PARAMS, seed=r) for r, p in enumerate(prompts))
    entries = tuple(
        ScheduledEntry(
            str(r), r, 0, len(p), True, (tuple(range(1 + BLOCKS * r, 1 + BLOCKS * (r + 1))),)
        )
        for r, p in enumerate(prompts)
    )
    return SchedulerOutput(1, entries, new)


@pytest.mark.parametrize("num_right", [0, 1, 2, 3])
def test_each_request_gets_the_drafts_that_are_right(num_right: int, checkpoint: Folder) -> None:
    prompts = checkpoints.random_prompts([5, 9, 3], seed=70)
    plain = LLM(checkpoint("qwen2"), device="cpu")
    expected = [output.outputs[0] for output in plain.generate(prompts, PARAMS)]

    llm = LLM(
        checkpoint("qwen2"), device="cpu", num_blocks=32, components=Components(sampler=AcceptEqual)
    )
    runner = runner_of(llm)
    first = runner.execute(first_step(prompts)).wait()
    assert [first.token_ids[str(r)] for r in range(3)] == [e.token_ids[:1] for e in expected]

    numbers = (3, 0, 2)  # drafts of each request
    entries = []
    for r, (prompt, number) in enumerate(zip(prompts, numbers, strict=True)):
        begin = len(prompt)
        drafts = expected[r].token_ids[1 : 1 + number]
        drafts = [token if i < num_right else (token + 1) % 100 for i, token in enumerate(drafts)]
        if drafts:
            runner._parts.batch.token_ids[r, begin + 1 : begin + 1 + number] = torch.tensor(drafts)
        entries.append(ScheduledEntry(str(r), r, begin, 1 + number, True, (), number))
    second: StepResult = runner.execute(SchedulerOutput(2, tuple(entries))).wait()

    for r, number in enumerate(numbers):
        kept = 1 + min(num_right, number)
        assert second.token_ids[str(r)] == expected[r].token_ids[1 : 1 + kept]
        begin = 1 + len(prompts[r])
        row = runner._parts.batch.token_ids[r, begin : begin + kept].tolist()
        assert row == second.token_ids[str(r)]
        logprobs, wanted = second.logprobs[str(r)], (expected[r].logprobs or [])[1 : 1 + kept]
        for ours, theirs in zip(logprobs, wanted, strict=True):
            assert list(ours) == list(theirs)
            for token, value in theirs.items():
                assert ours[token].logprob == pytest.approx(value.logprob, abs=1e-4)

    third = [  # what was kept is where the next step reads it
        ScheduledEntry(str(r), r, len(p) + len(second.token_ids[str(r)]), 1, True)
        for r, p in enumerate(prompts)
    ]
    tokens = runner.execute(SchedulerOutput(3, tuple(third))).wait().token_ids
    for r in range(3):
        said = 1 + len(second.token_ids[str(r)])
        assert tokens[str(r)] == expected[r].token_ids[said : said + 1]


class Uncounted(AcceptEqual):
    """Forgets to say how many tokens count."""

    def __call__(self, *args: Any) -> SamplerOutput:
        output = super().__call__(*args)
        return SamplerOutput(output.tokens, None, output.logprobs)


def test_a_sampler_that_does_not_say_how_many_were_right(checkpoint: Folder) -> None:
    llm = LLM(
        checkpoint("qwen2"), device="cpu", num_blocks=32, components=Components(sampler=Uncounted)
    )
    runner = runner_of(llm)
    runner.execute(first_step([[1, 2, 3]])).wait()
    entry = ScheduledEntry("0", 0, 3, 3, True, (), 2)
    with pytest.raises(QuireError, match=r"shape \[1, 3\] without num_accepted"):
        runner.execute(SchedulerOutput(2, (entry,)))
