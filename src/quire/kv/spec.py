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

    `groups[i]` is the KV group of layer i, in [0, num_groups); groups are numbered in order of
    appearance. A part of the layers may have none of a group.
    """

    specs: list[KVCacheSpec]
    groups: list[int]
    num_groups: int  # and so block tables a request

    @classmethod
    def of(
        cls, config: ModelConfig, dtype: torch.dtype, draft: ModelConfig | None = None
    ) -> CacheLayout:
        """Return the layout of a model's cache of this dtype.

        The layers of a draft model come behind those of the model. A layer of it shares the block
        tables of the first group with its window: it keeps other keys and values, but of the same
        positions, and for as long.
        """
        specs = layer_specs(config, dtype)
        numbers: dict[KVCacheSpec, int] = {}
        groups = [numbers.setdefault(spec, len(numbers)) for spec in specs]
        layout = cls(specs, groups, len(numbers))
        for spec in [] if draft is None else layer_specs(draft, dtype):
            windows = list(layout.windows.values())
            group = windows.index(spec.window) if spec.window in windows else len(windows)
            num_groups = max(layout.num_groups, group + 1)
            layout = cls([*layout.specs, spec], [*layout.groups, group], num_groups)
        return layout

    def part(self, begin: int, end: int) -> CacheLayout:
        """Return the layout of layers [begin, end), which keep their groups' numbers."""
        return CacheLayout(self.specs[begin:end], self.groups[begin:end], self.num_groups)

    @cached_property  # read in every step
    def windows(self) -> dict[int, int | None]:
        """How far back a query looks in each group that has a layer here; None: all the way."""
        first = {group: self.groups.index(group) for group in sorted(set(self.groups))}
        return {group: self.specs[layer].window for group, layer in first.items()}

    @property
    def has_scales(self) -> bool:
        """Whether any layer keeps codes and scales."""
        return any(spec.has_scales for spec in self.specs)
