"""`LayerKV`: one layer's keys and values in the paged cache, as kernels and backends see them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from quire.kv.quantized import dequantize, quantize


@dataclass
class LayerKV:
    """The cache of one layer: slot s is position s % block_size of block s // block_size.

    In memory the heads of a position lie side by side, so that blocks with neighbouring
    ids are one piece of the sequence's keys.
    """

    key: Tensor  # [num_blocks, num_kv_heads, block_size, head_size], strided
    value: Tensor  # the same
    key_scale: Tensor | None = None  # float32 [num_blocks, num_kv_heads, block_size]: key and
    value_scale: Tensor | None = None  # value are codes (`quire.kv.quantized`); None: they are not

    @cached_property
    def slots(self) -> tuple[Tensor, Tensor]:
        """Key and value as views [num_blocks * block_size, num_kv_heads, head_size]."""
        num_blocks, num_kv_heads, block_size, head_size = self.key.shape
        shape = (num_blocks * block_size, num_kv_heads, head_size)
        return self.key.transpose(1, 2).view(shape), self.value.transpose(1, 2).view(shape)

    @cached_property
    def tensors(self) -> list[Tensor]:
        """Everything a block consists of, each tensor's first dimension being blocks."""
        parts = (self.key, self.value, self.key_scale, self.value_scale)
        # Not every operation on a device takes FP8; as bytes they all do.
        return [_as_bytes(x) for x in parts if x is not None]

    def write(self, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store keys and values [num_tokens, num_kv_heads, head_size] at int64 `slots`."""
        keys, values = self.slots
        if self.key_scale is None or self.value_scale is None:
            keys.index_copy_(0, slots, key)
            values.index_copy_(0, slots, value)
            return
        places = slots // self.key_scale.shape[2], slots % self.key_scale.shape[2]
        parts = (key, keys, self.key_scale), (value, values, self.value_scale)
        for x, cache, scales in parts:
            codes, scale = quantize(x, cache.dtype)
            _as_bytes(cache).index_copy_(0, slots, _as_bytes(codes))
            scales[places[0], :, places[1]] = scale

    def dequantized(self, blocks: Tensor | slice, dtype: torch.dtype) -> list[Tensor]:
        """Return keys and values of n blocks of codes, [n, block_size, num_kv_heads, head_size]."""
        assert self.key_scale is not None
        assert self.value_scale is not None
        found = []
        for cache, scales in ((self.key, self.key_scale), (self.value, self.value_scale)):
            codes = _as_bytes(cache.transpose(1, 2))[blocks].view(cache.dtype)
            found.append(dequantize(codes, scales.transpose(1, 2)[blocks], dtype))
        return found

    @cached_property
    def heads(self) -> tuple[Tensor, Tensor]:
        """Key and value as views [1, num_kv_heads, num_blocks * block_size, head_size]."""
        key, value = self.slots
        return key.transpose(0, 1)[None], value.transpose(0, 1)[None]


def _as_bytes(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.dtype.itemsize == 1 else x
