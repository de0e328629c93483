"""`AttentionBatch`: which tokens of a step belong to which sequence, and where its blocks are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class HostSequences:
    """The sequences of a step as the host knows them, for choices that depend on them."""

    query_starts: list[int]  # R + 1 numbers
    lengths: list[int]  # R numbers
    rows: list[int]  # R numbers


@dataclass(frozen=True)
class HostBatch(HostSequences):
    """The same, and the blocks of one KV group."""

    block_table: NDArray[np.int32]  # [num_rows, max_blocks], what the device's table holds


@dataclass(frozen=True)
class AttentionBatch:
    """Which tokens of a step belong to which sequence, in the scheduler's order.

    Sequence i has the tokens [query_starts[i], query_starts[i + 1]) of the step and, once
    these are written, `lengths[i]` positions in the cache. Its position p lies in block
    `block_table[rows[i], p // block_size]` at offset `p % block_size`.

    In a captured step `host` is None: there are R sequences of `tokens_per_sequence` each,
    lengths and tables change from replay to replay, and a padded sequence has length 0 and
    slot 0. Where `are_prompts`, a sequence has at most `tokens_per_sequence` tokens: `query_starts`
    says how many. Tokens behind the last sequence are padding, with slot 0.
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
    tokens_per_sequence: int = 1  # where `host` is None
    are_prompts: bool = False  # where `host` is None

    @classmethod
    def of_groups(
        cls,
        *,
        query_starts: Tensor,
        lengths: Tensor,
        rows: Tensor,
        positions: Tensor,
        slots: Sequence[Tensor],
        block_tables: Sequence[Tensor],
        block_size: int,
        max_length: int,
        sinks: int = 0,
        tokens_per_sequence: int = 1,
        are_prompts: bool = False,
        host: HostSequences | None = None,
        host_tables: Sequence[NDArray[np.int32]] = (),
    ) -> list[AttentionBatch]:
        """Describe a step to each KV group: they differ in slots and block tables alone.

        Every batch is made here. `slots`, `block_tables` and, unless `host` is None,
        `host_tables` have an entry a group; the rest is as in the class.
        """
        hosts: list[HostBatch | None] = [None] * len(block_tables)
        if host is not None:
            hosts = [HostBatch(**vars(host), block_table=table) for table in host_tables]
        return [
            cls(
                query_starts=query_starts,
                lengths=lengths,
                rows=rows,
                block_table=block_table,
                positions=positions,
                slots=own_slots,
                block_size=block_size,
                max_length=max_length,
                host=own_host,
                sinks=sinks,
                tokens_per_sequence=tokens_per_sequence,
                are_prompts=are_prompts,
            )
            for own_slots, block_table, own_host in zip(slots, block_tables, hosts, strict=True)
        ]

    @classmethod
    def of(
        cls,
        query_starts: list[int],
        lengths: list[int],
        block_ids: list[list[int]],
        block_size: int,
        device: torch.device,
    ) -> AttentionBatch:
        """Build a batch of one group from R block tables; the runner keeps buffers instead."""
        width = max(len(ids) for ids in block_ids)
        table = np.array([ids + [0] * (width - len(ids)) for ids in block_ids], dtype=np.int32)
        slots, positions = [], []
        for row, length in enumerate(lengths):
            start = length - (query_starts[row + 1] - query_starts[row])
            for position in range(start, length):
                block, offset = divmod(position, block_size)
                slots.append(block_ids[row][block] * block_size + offset)
                positions.append(position)
        host = HostSequences(query_starts, lengths, list(range(len(lengths))))

        def int32(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        (batch,) = cls.of_groups(
            query_starts=int32(host.query_starts),
            lengths=int32(host.lengths),
            rows=int32(host.rows),
            positions=torch.tensor(positions, device=device),
            slots=[torch.tensor(slots, device=device)],
            block_tables=[torch.from_numpy(table).to(device)],
            block_size=block_size,
            max_length=width * block_size,
            host=host,
            host_tables=[table],
        )
        return batch
