"""The attention layer: project, normalise, rotate, write to the cache, attend, project."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quire.attention.interface import AttentionBackend
from quire.kernels.qkv import norm_rotate
from quire.kernels.rotation import Rotation
from quire.kernels.round_inputs import Rounded
from quire.kv.layer import LayerKV
from quire.layers.linear import Linear, MethodFactory
from quire.layers.module import Layer
from quire.layers.norm import HeadNorm
from quire.models.config import ModelConfig
from quire.parallel.comm import Comm, PartialSum
from quire.parallel.part import kv_heads, query_heads


@dataclass
class StepMetadata:
    """What every layer must know of a step; nothing reads a global."""

    positions: Tensor  # int64 [num_tokens]
    attention: list[Any]  # the backend's metadata of each layer's KV group
    slots: list[Tensor]  # int64 [num_tokens], where each layer writes its keys and values
    rotation: Rotation = field(init=False)  # of the positions; set by the decoder


# docs: attention begin
class Attention(Layer):
    """Grouped-query attention over the KV cache (Ainslie et al. 2023)."""

    def __init__(
        self,
        config: ModelConfig,
        backend: AttentionBackend,
        method_for: MethodFactory,
        prefix: str,
        dtype: torch.dtype,
        device: torch.device,
        comm: Comm,
    ) -> None:
        """Create the layer, `prefix` in the checkpoint, with its weights empty.

        A rank of `comm` keeps its query heads, and the KV heads that they read.
        """
        super().__init__()
        queries = query_heads(config, comm.rank, comm.size)
        kv = kv_heads(config, comm.rank, comm.size)
        self.num_heads, self.num_kv_heads = queries.size, kv.size
        self.head_size = config.head_size
        self.scale = config.head_size**-0.5
        self.eps = config.rms_norm_eps
        self.backend = backend
        outputs = queries.times(config.head_size)
        shards = {"q_proj": outputs} | dict.fromkeys(("k_proj", "v_proj"), kv.times(self.head_size))
        self.qkv_proj = Linear(
            config.hidden_size,
            {f"{prefix}.{name}": part for name, part in shards.items()},
            method_for,
            bias=config.qkv_bias,
            dtype=dtype,
            device=device,
        )
        self.o_proj = Linear(
            outputs,
            {f"{prefix}.o_proj": config.hidden_size},
            method_for,
            bias=config.output_bias,
            dtype=dtype,
            device=device,
            reduce=comm,
        )
        self.qk_norm: HeadNorm | None = None
        if config.qk_norm:
            heads = {f"{prefix}.q_norm": self.num_heads, f"{prefix}.k_norm": self.num_kv_heads}
            self.qk_norm = HeadNorm(heads, config.head_size, config.rms_norm_eps, dtype, device)

    def forward(
        self, x: Tensor | Rounded, kv: LayerKV, step: StepMetadata, layer: int
    ) -> Tensor | PartialSum:
        """Attend with the hidden states x, [num_tokens, hidden_size]."""
        metadata, fused = step.attention[layer], self.backend.writes_by_slot
        query, key, value = norm_rotate(
            self.qkv_proj(x),
            None if self.qk_norm is None else self.qk_norm.weight,
            self.eps,
            step.rotation,
            self.num_heads,
            self.num_kv_heads,
            kv if fused else None,
            step.slots[layer] if fused else None,
        )
        if not fused:
            self.backend.write(key, value, kv, metadata)
        attended = self.backend.forward(query, kv, metadata, self.scale, (key, value))
        return self.o_proj(attended.flatten(1))


# docs: attention end
