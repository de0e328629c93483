"""`KVStorage`: the tensors that hold keys and values, cut into blocks."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from copy import copy
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from quire.errors import QuireError
from quire.kv.layer import LayerKV
from quire.kv.spec import KVCacheSpec
from quire.messages import Transfer
from quire.sending import send


class HostTier(Protocol):
    """The tier below the device's blocks: blocks saved in the host's memory."""

    def carry_out(self, transfers: Sequence[Transfer]) -> None:
        """Queue copies between the tiers, with the effect of one after another."""
        ...


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
        self.host: HostTier | None = None  # the tier below, where there is one
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

    def part(self, begin: int, end: int) -> KVStorage:
        """Return layers [begin, end) of this storage: one of several models that share it."""
        view = copy(self)
        view.layers, view._groups = self.layers[begin:end], self._groups[begin:end]
        return view

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers' keys and values, scales included."""
        return sum(x.nbytes for kv in self.layers for x in kv.tensors)

    def copy_blocks(self, copies: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Copy whole blocks in every layer of a group; `copies[group]` are (from, to)."""
        device = self.layers[0].key.device
        sent = {
            group: send(torch.tensor(pairs).T.contiguous(), device)
            for group, pairs in enumerate(copies)
            if pairs
        }
        for kv, group in zip(self.layers, self._groups, strict=True):
            if group in sent:
                sources, targets = sent[group]
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
    """Raise QuireError if a GPU cannot hold the cache beside what it already holds.

    A CPU's pages cost memory only once they are written, so there it is the machine's whole
    memory that must not be exceeded.
    """
    if device.type != "cuda":
        memory = machine_memory()
        if num_blocks * block_bytes > memory:
            raise QuireError(
                f"num_blocks={num_blocks}: the KV cache needs {num_blocks * block_bytes / 1e9:.1f} "
                f"GB and the machine has {memory / 1e9:.1f} GB of memory: lower num_blocks to at "
                f"most {memory // block_bytes}"
            )
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


def machine_memory() -> int:
    """Return the bytes of memory that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros: a padded batch reads what nobody wrote, and 0 · NaN would not be 0.

    On a CPU they come from calloc, where a page costs memory only once it is written;
    `torch.zeros` would write them all.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    buffer = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(buffer).view(dtype).view(shape)
