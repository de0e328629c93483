"""`AttentionBackend`: how a step's queries read the cache. The swap point and its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from quire.kv.storage import LayerKV


@dataclass(frozen=True)
class HostBatch:
    """The lengths of a step as the host knows them, for choices that depend on them."""

    query_starts: list[int]  # R + 1 numbers
    lengths: list[int]  # R numbers
    block_ids: list[list[int]]  # R block tables


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


class AttentionBackend(Protocol):
    """Writes new keys and values into the cache and attends over it.

    One backend serves one KV group, hence one window. `build` runs once a step, the other
    two once a layer.
    """

    graph_safe: bool  # whether CUDA graphs may capture it

    def build(self, batch: AttentionBatch, window: int | None) -> Any:
        """Prepare what every layer of the group needs; the result is passed to the others."""
        ...

    def write(self, key: Tensor, value: Tensor, kv: LayerKV, metadata: Any) -> None:
        """Store a step's keys and values, [num_tokens, num_kv_heads, head_size]."""
        ...

    def forward(
        self,
        query: Tensor,
        kv: LayerKV,
        metadata: Any,
        scale: float,
        fresh_kv: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend with queries [num_tokens, num_heads, head_size]; returns the same shape.

        `fresh_kv` are the step's own keys and values, already written: a sequence that
        starts in this step may be read from there, without the detour over its blocks.
        """
        ...
