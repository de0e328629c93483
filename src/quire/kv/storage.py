"""`KVStorage`: the tensors that hold keys and values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quire.errors import QuireError
from quire.kv.spec import KVCacheSpec


@dataclass
class LayerKV:
    """The cache of one layer: position p of a sequence is at [block, :, p % block_size]."""

    key: Tensor  # [num_blocks, num_kv_heads, block_size, head_size]
    value: Tensor  # the same


class KVStorage:
    """The cache of a model, a `LayerKV` a layer.

    Block 0 is the null block and belongs to no request. Until the chapter "The paged KV
    cache", a block is as long as the longest sequence, so that each request has one.
    """

    def __init__(
        self, specs: list[KVCacheSpec], num_blocks: int, block_size: int, device: torch.device
    ) -> None:
        """Allocate `num_blocks` blocks of `block_size` tokens, the null block among them."""
        self.block_size = block_size
        self.layers = []
        _require_room(specs, num_blocks, block_size, device)
        for spec in specs:
            shape = (num_blocks, spec.num_kv_heads, block_size, spec.head_size)
            key, value = (_zeros(shape, spec.dtype, device) for _ in range(2))
            self.layers.append(LayerKV(key, value))

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers' keys and values."""
        return sum(kv.key.nbytes + kv.value.nbytes for kv in self.layers)


def _require_room(
    specs: list[KVCacheSpec], num_blocks: int, block_size: int, device: torch.device
) -> None:
    """Raise QuireError if a GPU cannot hold the cache beside what it already holds."""
    if device.type != "cuda":
        return
    needed = num_blocks * block_size * sum(spec.bytes_per_token for spec in specs)
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise QuireError(
            f"the KV cache needs {needed / 1e9:.1f} GB for {num_blocks - 1} sequences of "
            f"{block_size} tokens and the GPU has {free / 1e9:.1f} GB free: lower max_num_seqs "
            "or max_model_len"
        )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros: a padded batch reads what nobody wrote, and 0 · NaN would not be 0.

    On a CPU they come from calloc, where a page costs memory only once it is written;
    `torch.zeros` would write them all.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    buffer = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(buffer).view(dtype).view(shape)
