"""`AttentionBackend`: how a step's queries read the cache. The swap point."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from quire.kv.batch import AttentionBatch
from quire.kv.layer import LayerKV


class AttentionBackend(Protocol):
    """Writes new keys and values into the cache and attends over it.

    One backend serves one KV group, hence one window. `build` runs once a step, the other
    two once a layer.
    """

    graph_safe: bool  # whether CUDA graphs may capture it
    # Whether it serves captured prompts, too (`AttentionBatch.are_prompts`), and leaves rows of
    # padding finite; may be left out: False.
    captures_prompts: bool
    writes_by_slot: bool  # `write` only stores at the slots: a fused kernel may do it instead
    sees_sinks: bool  # whether it serves `AttentionBatch.sinks`
    reads_scales: bool  # whether it serves a cache of codes and scales (`quire.kv.quantized`)

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
        starts in this step may be read from there, without the detour over its blocks. Not so
        with a cache of codes: every key is read as it is stored, or what a request answers
        would depend on how its prompt was cut.
        """
        ...
