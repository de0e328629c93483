"""The attention layer: project, normalise, rotate, write to the cache, attend, project."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quire.attention.interface import AttentionBackend
from quire.kv.storage import LayerKV
from quire.layers.linear import Linear
from quire.layers.module import Layer
from quire.layers.norm import HeadNorm
from quire.layers.rope import rotate
from quire.models.config import ModelConfig


@dataclass
class StepMetadata:
    """What every layer must know of a step; nothing reads a global."""

    positions: Tensor  # int64 [num_tokens]
    attention: list[Any]  # the backend's metadata of each layer's KV group
    logits_indices: Tensor  # int64 [R], the tokens whose logits are wanted
    rotary: tuple[Tensor, Tensor] = field(init=False)  # cos and sin of the positions


# docs: attention begin
class Attention(Layer):
    """Grouped-query attention over the KV cache (Ainslie et al. 2023)."""

    def __init__(
        self,
        config: ModelConfig,
        backend: AttentionBackend,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Create the layer with its weights empty."""
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_size = config.head_size
        self.scale = config.head_size**-0.5
        self.backend = backend
        q_size = config.num_heads * config.head_size
        kv_size = config.num_kv_heads * config.head_size
        hidden, sizes = config.hidden_size, {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
        self.qkv_proj = Linear(hidden, sizes, bias=config.qkv_bias, dtype=dtype, device=device)
        sizes = {"o_proj": hidden}
        self.o_proj = Linear(q_size, sizes, bias=config.output_bias, dtype=dtype, device=device)
        self.qk_norm: HeadNorm | None = None
        if config.qk_norm:
            kinds = {"q_norm": config.num_heads, "k_norm": config.num_kv_heads}
            self.qk_norm = HeadNorm(kinds, config.head_size, config.rms_norm_eps, dtype, device)

    def forward(self, x: Tensor, kv: LayerKV, step: StepMetadata, layer: int) -> Tensor:
        """Attend with the hidden states x, [num_tokens, hidden_size]."""
        heads = self.qkv_proj(x).view(x.shape[0], -1, self.head_size)
        rotated, value = heads.split([self.num_heads + self.num_kv_heads, self.num_kv_heads], dim=1)
        if self.qk_norm is not None:
            rotated = self.qk_norm(rotated)
        rotated = rotate(rotated, *step.rotary)
        query, key = rotated.split([self.num_heads, self.num_kv_heads], dim=1)
        self.backend.write(key, value, kv, step.attention[layer])
        attended = self.backend.forward(query, kv, step.attention[layer], self.scale)
        return self.o_proj(attended.flatten(1))


# docs: attention end
