"""A device's rows, filled by hand, and the sampling tensors of any tokens chosen in them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quire import SamplingParams
from quire.config import EngineConfig
from quire.messages import NewRequest, ScheduledEntry, SchedulerOutput
from quire.runner.input_batch import InputBatch
from quire.sampling import SamplingTensors

CPU = torch.device("cpu")
VOCAB = 8
EOS = (7, VOCAB + 3)  # a config may name an end that the vocabulary does not have

Row = tuple[Sequence[int], Sequence[int], SamplingParams]
"""A request's prompt, what follows it in its row, and its parameters."""


def batch_of(*requests: Row, device: torch.device = CPU) -> InputBatch:
    """Give each request a row, in their order."""
    config = EngineConfig.of(
        max_model_len=32,
        max_num_seqs=6,
        max_num_batched_tokens=64,
        device=device,
        dtype=torch.float32,
        block_size=16,
    )
    batch = InputBatch(config, 1, VOCAB, EOS)
    for row, request in enumerate(requests):
        put(batch, row, request)
    return batch


def put(batch: InputBatch, row: int, request: Row) -> None:
    """Let a request begin in a row."""
    prompt, rest, params = request
    new = NewRequest(str(row), row, [*prompt, *rest], len(prompt), params, seed=90 + row)
    batch.update(SchedulerOutput(step=1, entries=(), new_requests=(new,)))


def gather(batch: InputBatch, chosen: Sequence[tuple[int, int]]) -> SamplingTensors:
    """Return the tensors of the tokens at these (row, position)s."""
    device = batch.token_ids.device
    rows, positions = (torch.tensor(column, device=device) for column in zip(*chosen, strict=True))
    host = [(ScheduledEntry(str(row), row, at - 1, 1, True), at) for row, at in chosen]
    return batch.sampling_tensors(rows, positions, host)
