"""`StepTokens`: the tokens of a step that is no captured decode, and their way to the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quire.messages import ScheduledEntry
from quire.runner.device import DeviceParts


class TokensOnDevice(NamedTuple):
    """What the forward pass of such a step reads; see `quire.kv.batch.AttentionBatch`."""

    rows: Tensor  # int64 [num_tokens], of each token
    positions: Tensor  # int64 [num_tokens]
    query_starts: Tensor  # int32 [R + 1]
    lengths: Tensor  # int32 [R]
    sequence_rows: Tensor  # int32 [R]
    slots: list[Tensor]  # int64 [num_tokens], of each KV group


@dataclass(frozen=True)
class StepTokens:
    """A step's tokens as the host counts them."""

    rows_of_entries: list[int]
    lengths: list[int]  # of each entry's sequence after the step
    ends: list[int]  # where each entry's tokens end in the step
    rows: NDArray[np.int64]  # of each token
    positions: NDArray[np.int64]  # of each token

    @classmethod
    def of(cls, entries: list[ScheduledEntry]) -> StepTokens:
        """Count the tokens of a step's requests."""
        rows, counts = [e.row for e in entries], [e.num_tokens for e in entries]
        ends = np.cumsum(counts)
        lengths = [e.start + e.num_tokens for e in entries]
        # Token t of the step, of the sequence that ends at `end`, is at length - (end - t).
        shift = np.repeat(np.array(lengths) - ends, counts)
        positions = np.arange(len(shift)) + shift
        return cls(rows, lengths, ends.tolist(), np.repeat(rows, counts), positions)

    def padded(self, size: int, null_row: int) -> StepTokens:
        """Return `size` tokens: behind these, position 0 of the null row, of no sequence."""
        padding = 0, size - len(self.rows)
        rows = np.pad(self.rows, padding, constant_values=null_row)
        return replace(self, rows=rows, positions=np.pad(self.positions, padding))

    def rows_to_choose_from(self, entries: list[ScheduledEntry]) -> list[int]:
        """Return the tokens of the step whose logits say what follows: the last, and drafts."""
        return [
            token
            for entry, end in zip(entries, self.ends, strict=True)
            if entry.samples
            for token in range(end - 1 - entry.num_draft_tokens, end)
        ]

    def put(self, parts: DeviceParts) -> TokensOnDevice:
        """Begin the step's upload with these, so that the same sizes lie at the same places."""
        put = parts.staging.put
        parts.staging.begin()
        return TokensOnDevice(
            put(self.rows, np.int64),
            put(self.positions, np.int64),
            put([0, *self.ends], np.int32),
            put(self.lengths, np.int32),
            put(self.rows_of_entries, np.int32),
            [put(s, np.int64) for s in parts.batch.slots(self.rows, self.positions)],
        )
