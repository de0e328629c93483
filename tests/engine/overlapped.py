"""What tests look at where steps are queued before the drafts ahead of them are judged."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from quire import Trace
from quire.messages import ScheduledEntry, SchedulerOutput
from quire.runner import model_runner


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
