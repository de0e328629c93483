"""`KVCacheSpec`: what one layer keeps for one token, and what that weighs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.kv.quantized import LARGEST, SCALE_BYTES
from quire.models.config import ModelConfig


@dataclass(frozen=True)
class KVCacheSpec:
    """One layer's cache. Layers with equal specs form a KV group and share block tables."""

    num_kv_heads: int
    head_size: int
    dtype: torch.dtype
    window: int | None = None  # tokens a query may look back on; None: all of them

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's key and value in this layer, with their scales."""
        scale_bytes = SCALE_BYTES if self.has_scales else 0
        return 2 * self.num_kv_heads * (self.head_size * self.dtype.itemsize + scale_bytes)

    @property
    def has_scales(self) -> bool:
        """Whether each token has a scale a head beside its codes."""
        return self.dtype in LARGEST


def layer_specs(config: ModelConfig, dtype: torch.dtype) -> list[KVCacheSpec]:
    """Return the spec of each layer of a model, in order; `dtype` is the cache's."""
    return [
        KVCacheSpec(config.num_kv_heads, config.head_size, dtype, window)
        for window in config.sliding_windows
    ]
