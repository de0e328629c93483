"""`KVCacheSpec` and `CacheLayout`: what each layer keeps for a token, and who shares tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from quire.kv.quantized import LARGEST, SCALE_BYTES
from quire.models.config import ModelConfig


@dataclass(frozen=True)
class KVCacheSpec:
    """One layer's cache. Layers with equal specs form a KV group and share block tables."""

    num_kv_heads: int
    head_size: int
    dtype: torch.dtype
    window: int | None = None  # tokens a query sees, itself among them; None: all

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


@dataclass(frozen=True)
class CacheLayout:
    """The layers of a model in KV groups: layers with equal specs share block tables.

    `groups[i]` is the KV group of layer i; groups are numbered in order of appearance.
    """

    specs: list[KVCacheSpec]
    groups: list[int]

    @classmethod
    def of(cls, config: ModelConfig, dtype: torch.dtype) -> CacheLayout:
        """Return the layout of a model's cache of this dtype."""
        specs = layer_specs(config, dtype)
        numbers: dict[KVCacheSpec, int] = {}
        return cls(specs, [numbers.setdefault(spec, len(numbers)) for spec in specs])

    @property
    def num_groups(self) -> int:
        """KV groups, and so block tables a request."""
        return max(self.groups) + 1

    @cached_property  # read in every step
    def windows(self) -> list[int | None]:
        """How far back a query looks in each group, in tokens; None: all the way."""
        return [self.specs[self.groups.index(group)].window for group in range(self.num_groups)]

    @property
    def has_scales(self) -> bool:
        """Whether any layer keeps codes and scales."""
        return any(spec.has_scales for spec in self.specs)
