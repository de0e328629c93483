"""`KVStorage`: the tensors that hold keys and values, cut into blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from quire.errors import QuireError
from quire.kv.quantized import dequantize, quantize
from quire.kv.spec import KVCacheSpec

if TYPE_CHECKING:
    from quire.offload.storage import HostBlocks


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
        for x, cache, scales in ((key, keys, self.key_scale), (value, values, self.value_scale)):
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


class KVStorage:
    """The cache of a model, a `LayerKV` a layer.

    Block 0 is the null block: it belongs to no request, and padded rows write there.
    """

    def __init__(
        self,
        specs: Sequence[KVCacheSpec],
        layer_groups: Sequence[int],
        num_blocks: int,
        block_size: int,
        device: torch.device,
    ) -> None:
        """Allocate `num_blocks` blocks of `block_size` positions, the null block among them.

        `layer_groups[i]` is the KV group of layer i; layers of a group share block tables.

        Raises:
            QuireError: a GPU has no room for them.
        """
        _require_room(num_blocks, bytes_per_block(specs, block_size), device)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.layers: list[LayerKV] = []
        self.host: HostBlocks | None = None  # the tier below, where there is one
        self._groups = layer_groups
        for spec in specs:
            shape = (num_blocks, block_size, spec.num_kv_heads, spec.head_size)
            key, value = (_zeros(shape, spec.dtype, device).transpose(1, 2) for _ in range(2))
            kv = LayerKV(key, value)
            if spec.has_scales:
                scale_shape = (num_blocks, spec.num_kv_heads, block_size)
                kv.key_scale, kv.value_scale = (
                    _zeros(scale_shape, torch.float32, device) for _ in range(2)
                )
            self.layers.append(kv)

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers' keys and values, scales included."""
        return sum(x.nbytes for kv in self.layers for x in kv.tensors)

    def copy_blocks(self, copies: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Copy whole blocks in every layer of a group; `copies[group]` are (from, to)."""
        for kv, group in zip(self.layers, self._groups, strict=True):
            if group < len(copies) and copies[group]:
                sources, targets = torch.tensor(copies[group], device=kv.key.device).T
                for x in kv.tensors:
                    x[targets] = x[sources]


def bytes_per_block(specs: Sequence[KVCacheSpec], block_size: int) -> int:
    """Return what one block takes over all layers."""
    return block_size * sum(spec.bytes_per_token for spec in specs)


def require_one_request(num_blocks: int, blocks_per_request: int, block_size: int) -> None:
    """Raise QuireError unless the cache holds the longest request an engine may get."""
    if num_blocks - 1 < blocks_per_request:
        raise QuireError(
            f"the KV cache has {num_blocks - 1} blocks of {block_size} tokens and one request of "
            f"max_model_len needs {blocks_per_request}: lower max_model_len to at most "
            f"{(num_blocks - 1) * block_size}, or give the cache more blocks (num_blocks, or "
            "gpu_memory_utilization on a GPU)"
        )


def _require_room(num_blocks: int, block_bytes: int, device: torch.device) -> None:
    """Raise QuireError if a GPU cannot hold the cache beside what it already holds."""
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    # What torch's allocator keeps of freed tensors is as good as free.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if num_blocks * block_bytes > free:
        raise QuireError(
            f"num_blocks={num_blocks}: the KV cache needs {num_blocks * block_bytes / 1e9:.1f} GB "
            f"and the GPU has {free / 1e9:.1f} GB free: lower num_blocks to at most "
            f"{free // block_bytes}"
        )


def _as_bytes(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.dtype.itemsize == 1 else x


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros: a padded batch reads what nobody wrote, and 0 · NaN would not be 0.

    On a CPU they come from calloc, where a page costs memory only once it is written;
    `torch.zeros` would write them all.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    buffer = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(buffer).view(dtype).view(shape)
