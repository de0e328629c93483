"""Where a step begins while steps ahead of it still judge drafts.

The host schedules such a step as if all drafts were true; the device knows better once it gets
there (`InputBatch.true_starts`). A captured step reads its start there, and the host goes on. What
the host computes with positions waits: a step that is run kernel by kernel, as one with a prompt
is, and requests that ask for more than a captured step ends with (penalties, log-probabilities,
tokens that are forbidden or not allowed yet).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from quire.messages import SchedulerOutput
from quire.runner.input_batch import InputBatch
from quire.sampling.bias import send


def with_true_starts(
    output: SchedulerOutput, batch: InputBatch, *, is_captured: bool
) -> SchedulerOutput:
    """Return a step that can be queued, with its true starts if it needs them.

    Finding them waits for the steps ahead.

    Args:
        is_captured: the step is replayed from a graph.
    """
    uncertain = [entry for entry in output.entries if entry.num_unverified > 0]
    needs_them = not is_captured or any(
        batch.state(entry.row).needs_uncaptured_sampling(entry.start + 1 - entry.num_unverified)
        for entry in uncertain
    )
    if not uncertain or not needs_them:
        return output
    numbers = torch.tensor([[e.row for e in uncertain], [e.start for e in uncertain]])
    rows, starts = send(numbers, batch.token_ids.device)
    found = dict(zip(numbers[0].tolist(), batch.true_starts(rows, starts).tolist(), strict=True))
    entries = tuple(
        replace(entry, start=found.get(entry.row, entry.start), num_unverified=0)
        for entry in output.entries
    )
    return replace(output, entries=entries)
