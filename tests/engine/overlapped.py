"""What tests look at where steps are queued before the drafts ahead of them are judged."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch

from quire import Trace
from quire.messages import ScheduledEntry, SchedulerOutput
from quire.runner import model_runner
from quire.runner.draft_model import DraftModel
from quire.runner.model_runner import ModelRunner
from quire.runner.pending import PendingStep


def count_steps_behind_drafts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the steps that are queued behind drafts: who "waited", and who went "ahead"."""
    counts: Counter[str] = Counter()
    find = model_runner.with_true_starts

    def noted(output: SchedulerOutput, *args: Any, **options: Any) -> SchedulerOutput:
        found = find(output, *args, **options)
        if any(entry.num_unverified > 0 for entry in output.entries):
            counts["ahead" if found is output else "waited"] += 1
        return found

    monkeypatch.setattr(model_runner, "with_true_starts", noted)
    return counts


def watch_the_draft_models_cache(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Where a model guesses for itself, look for holes in its cache; count the rows looked at.

    Behind a step with guesses its keys and values are the model's own, of all known tokens but
    the last, which the model has not computed.
    """
    counts: Counter[str] = Counter()
    execute = ModelRunner.execute

    def looked(self: ModelRunner, output: SchedulerOutput) -> PendingStep:
        pending = execute(self, output)
        sampling = [entry for entry in output.entries if entry.samples]
        if output.num_guesses == 0 or not isinstance(self.drafting, DraftModel):
            return pending
        assert self.batch.num_known is not None
        size = self._parts.config.cache.block_size
        for entry in sampling:
            place = torch.arange(int(self.batch.num_known[entry.row]) - 1)
            blocks = self.batch.block_tables[0][entry.row, place // size].long()
            if entry.request_id.startswith("text-"):  # measured before there are requests
                continue
            for parts in zip(
                self._parts.storage.layers[-1].tensors,
                self.drafting._parts.storage.layers[-1].tensors,
                strict=True,
            ):
                theirs, own = (x[blocks, :, place % size] for x in parts)
                assert torch.allclose(own, theirs, atol=1e-3), entry
            counts["rows"] += 1
        return pending

    monkeypatch.setattr(ModelRunner, "execute", looked)
    return counts


def assert_steps_follow(trace: Trace) -> None:
    """A request's step begins where the one before it left off; a step behind its end may not."""
    steps: dict[str, list[tuple[ScheduledEntry, int]]] = {}
    for step in trace.steps:
        for entry in step.scheduled.entries:
            if entry.samples:
                told = len(step.result.token_ids[entry.request_id])
                steps.setdefault(entry.request_id, []).append((entry, told))
    for own in steps.values():
        for (before, told), (entry, _) in pairwise(own[:-1]):
            known = before.start + before.num_tokens - before.num_draft_tokens + told
            assert (entry.start, entry.num_unverified) == (known - 1, 0)
