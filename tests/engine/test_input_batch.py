"""`InputBatch`: the sampling parameters of a step's rows, several rows a request included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from quire import SamplingParams
from quire.config import EngineConfig
from quire.messages import NewRequest, ScheduledEntry, SchedulerOutput
from quire.runner.input_batch import InputBatch
from quire.sampling import SamplingTensors

CPU = torch.device("cpu")
VOCAB = 8


def batch_of(*requests: tuple[Sequence[int], Sequence[int], dict[str, Any]]) -> InputBatch:
    """Give each (prompt, what follows it, parameters) a row, in their order."""
    config = EngineConfig(
        max_model_len=32,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        device=CPU,
        dtype=torch.float32,
        block_size=16,
    )
    batch = InputBatch(config, 1, VOCAB, eos_token_ids=(0,))
    new = tuple(
        NewRequest(
            str(row), row, [*prompt, *rest], len(prompt), SamplingParams(**options), seed=90 + row
        )
        for row, (prompt, rest, options) in enumerate(requests)
    )
    batch.update(SchedulerOutput(step=1, entries=(), new_requests=new))
    return batch


def gather(batch: InputBatch, chosen: Sequence[tuple[int, int]]) -> SamplingTensors:
    """The tensors of the tokens at these (row, position)s."""
    rows, positions = (torch.tensor(column) for column in zip(*chosen, strict=True))
    host = [(ScheduledEntry(str(row), row, at - 1, 1, True), at) for row, at in chosen]
    return batch.sampling_tensors(rows, positions, host)


def test_a_request_may_choose_several_tokens() -> None:
    """Each row has its request's seed and parameters, its own position and what lies before it."""
    draft = ([1, 2], [3, 3, 5], {"temperature": 0.5, "presence_penalty": 1.0})
    batch = batch_of(draft, ([4], [], {"top_k": 3}))
    tensors = gather(batch, [(0, 2), (0, 3), (1, 1), (0, 4), (0, 5)])
    assert tensors.seeds.tolist() == [90, 90, 91, 90, 90]
    assert tensors.positions.tolist() == [2, 3, 1, 4, 5]
    assert tensors.temperature.tolist() == [0.5, 0.5, 1.0, 0.5, 0.5]
    assert tensors.top_k is not None
    assert tensors.top_k.tolist() == [0, 0, 3, 0, 0]
    assert tensors.penalties is not None
    assert [counts[3] for counts in tensors.penalties.output_counts.tolist()] == [0, 1, 0, 2, 2]
    assert [counts[5] for counts in tensors.penalties.output_counts.tolist()] == [0, 0, 0, 0, 1]
    assert tensors.penalties.prompt_counts.sum(1).tolist() == [2, 2, 1, 2, 2]
