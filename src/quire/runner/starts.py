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
from quire.runner.pending import PendingStep
from quire.sending import send


class Judged:
    """When the newest step that chose tokens has done so, though more is queued behind it.

    Behind a step a draft model reads and guesses, which the host need not wait for.
    """

    def __init__(self, device: torch.device) -> None:
        """Take a stream on which to look at what a step has left."""
        self._stream = torch.cuda.Stream(device)
        self._done: torch.cuda.Event | None = None

    def note(self, pending: PendingStep) -> None:
        """Take a step that was queued; one that chose nothing has judged nothing."""
        self._done = pending.done or self._done

    def beside(self) -> torch.cuda.Stream:
        """Return a stream that goes on once the step has chosen."""
        if self._done is not None:
            self._stream.wait_event(self._done)
        return self._stream


def with_true_starts(
    output: SchedulerOutput, batch: InputBatch, *, is_captured: bool, judged: Judged | None = None
) -> SchedulerOutput:
    """Return a step that can be queued, with its true starts if it needs them.

    Finding them waits for the steps ahead: for all that is queued, or until they have `judged`.

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
    with torch.cuda.stream(None if judged is None else judged.beside()):
        rows, starts = send(numbers, batch.token_ids.device)
        true_starts = batch.true_starts(rows, starts).tolist()
    found = dict(zip(numbers[0].tolist(), true_starts, strict=True))
    entries = tuple(
        replace(entry, start=found.get(entry.row, entry.start), num_unverified=0)
        for entry in output.entries
    )
    return replace(output, entries=entries)
