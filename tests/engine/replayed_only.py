"""`ReplayedOnly`: imported by ranks, it refuses decode steps that are not replayed."""

from __future__ import annotations

from itertools import pairwise

from quire.attention.triton_backend import TritonAttention, TritonMetadata
from quire.errors import QuireError
from quire.kv.batch import AttentionBatch


class ReplayedOnly(TritonAttention):
    """quire's kernels, for steps that are captured or hold a prompt."""

    def build(self, batch: AttentionBatch, window: int | None) -> TritonMetadata:
        """Describe a step; the host's lists are given where it is run kernel by kernel."""
        if batch.host is not None:
            counts = [end - begin for begin, end in pairwise(batch.host.query_starts)]
            # A prompt of one token, which warm-up brings, is no decode step.
            if set(counts) == {1} and min(batch.host.lengths) > 1:
                raise QuireError(f"a decode step of {len(counts)} requests was not replayed")
        return super().build(batch, window)
