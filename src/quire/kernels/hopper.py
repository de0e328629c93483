"""Where Hopper's own prefill attention serves, and its launch.

The kernel is in `quire.kernels.hopper_prefill`. What it does not take goes to
`quire.kernels.prefill`, which serves every GPU.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from quire.kernels.paged_decode import LOG2_E
from quire.kernels.runtime import HAS_GLUON, capability
from quire.kv.batch import AttentionBatch
from quire.kv.layer import LayerKV

if HAS_GLUON:
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from quire.kernels.hopper_prefill import (
        GROUPS,
        HEAD_SIZE,
        KEYS,
        ROWS,
        SWIZZLED,
        SWIZZLED_HEADS,
        _prefill,
    )


def serves_hopper(query: Tensor, kv: LayerKV, window: int | None) -> bool:
    """Whether this kernel takes a step: of a GPU, heads, a cache and a mask that it was made for.

    `query` is [num_tokens, num_heads, head_size], of the cache's dtype. `wgmma` is Hopper's alone.
    """
    num_kv_heads, page = kv.key.shape[1:3]
    return (
        HAS_GLUON
        and capability(query.device)[0] == 9
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[2] == HEAD_SIZE.value
        and ROWS.value % (query.shape[1] // num_kv_heads) == 0
        and page in (8, 16, 32, 64, 128)  # a divisor of a tile; swizzled are eight rows at a time
        and window is None
        and kv.key_scale is None
        and kv.key.transpose(1, 2).is_contiguous()
    )


def tokens_per_piece(group: int) -> int:
    """Return how many tokens of a chunk one piece of work has, with `group` query heads each."""
    return GROUPS.value * ROWS.value // group


@cache
def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def prefill_on_hopper(
    output: Tensor,
    query: Tensor,
    source: LayerKV | tuple[Tensor, Tensor],
    batch: AttentionBatch,
    tiles: Tensor,
    scale: float,
) -> None:
    """Write the causal attention of chunks of new tokens into their places of `output`.

    The arguments are those of `quire.kernels.prefill.prefill`, with tiles of
    `tokens_per_piece` tokens, at least one, of a step that `serves_hopper` takes.
    """
    if isinstance(source, LayerKV):
        page, parts = batch.block_size, source.slots
    else:
        page, parts = None, source
    num_heads, num_kv_heads = query.shape[1], parts[0].shape[1]
    group = num_heads // num_kv_heads
    key, value = (
        TensorDescriptor.from_tensor(
            x.flatten(1), [page or KEYS.value, HEAD_SIZE.value], SWIZZLED.value
        )
        for x in parts
    )
    num_work = num_kv_heads * tiles.shape[0]
    _prefill[(min(num_work, _num_multiprocessors(query.device)),)](
        output,
        TensorDescriptor.from_tensor(
            query, [ROWS.value // group, group, HEAD_SIZE.value], SWIZZLED_HEADS.value
        ),
        key,
        value,
        batch.block_table,
        batch.rows,
        batch.lengths,
        batch.query_starts,
        tiles,
        scale * LOG2_E,
        batch.block_table.stride(0),
        num_work,
        num_kv_heads=num_kv_heads,
        GROUP=group,
        PAGE=page,
        num_warps=4,
    )
