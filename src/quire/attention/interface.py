"""`AttentionBackend`: how a step's queries read the cache. The swap point and its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from quire.kv.storage import LayerKV


@dataclass(frozen=True)
class AttentionBatch:
    """Which tokens of a step belong to which sequence, in the scheduler's order.

    Sequence i has the tokens [query_starts[i], query_starts[i + 1]) of the step and, once
    these are written, `lengths[i]` positions in the cache.
    """

    query_starts: list[int]  # R + 1 numbers
    lengths: list[int]  # R numbers
    block_ids: list[list[int]]  # R block tables
    positions: Tensor  # int64 [num_tokens], on the device


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

    def forward(self, query: Tensor, kv: LayerKV, metadata: Any, scale: float) -> Tensor:
        """Attend with queries [num_tokens, num_heads, head_size]; returns the same shape."""
        ...
