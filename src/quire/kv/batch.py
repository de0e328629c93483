"""`AttentionBatch`: which tokens of a step belong to which sequence, and where its blocks are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class HostBatch:
    """The lengths of a step as the host knows them, for choices that depend on them."""

    query_starts: list[int]  # R + 1 numbers
    lengths: list[int]  # R numbers
    rows: list[int]  # R numbers
    block_table: NDArray[np.int32]  # [num_rows, max_blocks], what the device's table holds


@dataclass(frozen=True)
class AttentionBatch:
    """Which tokens of a step belong to which sequence, in the scheduler's order.

    Sequence i has the tokens [query_starts[i], query_starts[i + 1]) of the step and, once
    these are written, `lengths[i]` positions in the cache. Its position p lies in block
    `block_table[rows[i], p // block_size]` at offset `p % block_size`.

    In a captured step `host` is None: there are R sequences of one token each, lengths and
    tables change from replay to replay, and a padded sequence has length 0 and slot 0.
    """

    query_starts: Tensor  # int32 [R + 1]
    lengths: Tensor  # int32 [R]
    rows: Tensor  # int32 [R]
    block_table: Tensor  # int32 [num_rows, max_blocks], of one KV group
    positions: Tensor  # int64 [num_tokens]
    slots: Tensor  # int64 [num_tokens]: block * block_size + offset, where a token is written
    block_size: int
    max_length: int  # no sequence of this engine is longer
    host: HostBatch | None
    sinks: int = 0  # a query sees positions [0, sinks) beside its window, where it has one

    @classmethod
    def of(
        cls,
        query_starts: list[int],
        lengths: list[int],
        block_ids: list[list[int]],
        block_size: int,
        device: torch.device,
    ) -> AttentionBatch:
        """Build a batch from R block tables, for a test or a page; the runner keeps buffers."""
        width = max(len(ids) for ids in block_ids)
        table = np.array([ids + [0] * (width - len(ids)) for ids in block_ids], dtype=np.int32)
        rows, slots, positions = [], [], []
        for row, length in enumerate(lengths):
            start = length - (query_starts[row + 1] - query_starts[row])
            for position in range(start, length):
                block, offset = divmod(position, block_size)
                slots.append(block_ids[row][block] * block_size + offset)
                positions.append(position)
            rows.append(row)

        def int32(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        return cls(
            query_starts=int32(query_starts),
            lengths=int32(lengths),
            rows=int32(rows),
            block_table=torch.from_numpy(table).to(device),
            positions=torch.tensor(positions, device=device),
            slots=torch.tensor(slots, device=device),
            block_size=block_size,
            max_length=width * block_size,
            host=HostBatch(query_starts, lengths, rows, table),
        )
