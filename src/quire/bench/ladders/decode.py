"""The ladder of decode attention over a paged cache: the keys are read, once if one is careful.

Eight sequences of 8,192 keys have one new token each; 32 query heads of 128 share 8 KV heads
in fours, and a block holds 16 positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from quire.attention.triton_backend import TritonAttention
from quire.bench.ladders.decode_kernels import DecodeStep, by_kv_head, by_query_head
from quire.bench.ladders.ladder import Ladder, draw, sets_of
from quire.kernels.tuning import Tuning
from quire.kv.batch import AttentionBatch
from quire.kv.layer import LayerKV


@dataclass(frozen=True)
class Sizes:
    """Of a decode step: by default eight sequences at the heads of the 8B model."""

    batch: int = 8
    length: int = 8192
    num_heads: int = 32
    num_kv_heads: int = 8
    head_size: int = 128
    page: int = 16
    splits: int = 16  # programs that share the keys of a sequence, in the step that splits


def ladder(
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    sizes: Sizes | None = None,
    settings: Tuning | None = None,
) -> Ladder[DecodeStep]:
    """Attention of one token a sequence.

    Args:
        settings: launch settings of the engine; None: those of the GPU's table.
    """
    sizes = sizes or Sizes()
    backend = TritonAttention(settings)
    num_bytes = 2 * sizes.batch * sizes.length * sizes.num_kv_heads * sizes.head_size
    num_bytes *= dtype.itemsize
    inputs = [
        random_step(i, device, dtype, sizes, backend) for i in range(sets_of(num_bytes, device))
    ]
    return Ladder(
        "decode",
        inputs,
        {
            "a-query-head": by_query_head,
            "gqa-rows": lambda step: by_kv_head(step, 1),
            "split-kv": lambda step: by_kv_head(step, sizes.splits),
            "engine": lambda step: backend.forward(step.query, step.kv, step.metadata, step.scale),
        },
        _others(inputs, device),
        oracle,
        num_bytes + 2 * inputs[0].query.nbytes,
        4.0 * sizes.batch * sizes.length * sizes.num_heads * sizes.head_size,
        parameters={"batch": float(sizes.batch), "length": float(sizes.length)},
    )


def random_step(
    seed: int, device: torch.device, dtype: torch.dtype, sizes: Sizes, backend: TritonAttention
) -> DecodeStep:
    """Return a step whose blocks lie in random order; block 0 is nobody's."""
    each = -(-sizes.length // sizes.page)
    count = sizes.batch * each
    shape = (count + 1, sizes.page, sizes.num_kv_heads, sizes.head_size)
    key, value = (
        draw(3 * seed + j, *shape, device=device, dtype=dtype).transpose(1, 2) for j in range(2)
    )
    generator = torch.Generator().manual_seed(seed)
    table = (torch.randperm(count, generator=generator) + 1).int().view(sizes.batch, each)
    ends = torch.arange(sizes.batch + 1, dtype=torch.int32, device=device)
    batch = AttentionBatch(
        query_starts=ends,
        lengths=torch.full((sizes.batch,), sizes.length, dtype=torch.int32, device=device),
        rows=ends[:-1],
        block_table=table.to(device),
        positions=torch.full((sizes.batch,), sizes.length - 1, device=device),
        slots=torch.zeros(sizes.batch, dtype=torch.int64, device=device),
        block_size=sizes.page,
        max_length=sizes.length,
        host=None,
    )
    query_shape = (sizes.batch, sizes.num_heads, sizes.head_size)
    return DecodeStep(
        draw(3 * seed + 2, *query_shape, device=device, dtype=dtype),
        LayerKV(key, value),
        batch.block_table,
        sizes.length,
        backend.build(batch, None),
    )


def oracle(step: DecodeStep) -> Tensor:
    """Attention in float64, a sequence at a time."""
    group = step.query.shape[1] // step.kv.key.shape[1]
    key, value = step.gathered()
    out = torch.empty(step.query.shape, device=step.query.device, dtype=torch.float64)
    for i, (keys, values) in enumerate(zip(key, value, strict=True)):
        query = step.query[i].double().unflatten(0, (-1, group))  # [KV heads, group, head_size]
        scores = query @ keys.double().transpose(1, 2) * step.scale
        out[i] = (scores.softmax(-1) @ values.double()).flatten(0, 1)
    return out


def _others(
    inputs: list[DecodeStep], device: torch.device
) -> dict[str, Callable[[DecodeStep], Tensor]]:
    """torch on contiguous keys, which nobody has: the heads of a group stand for positions."""
    dense = {id(step): step.gathered() for step in inputs}

    def attend(step: DecodeStep) -> Tensor:
        key, value = dense[id(step)]
        query = step.query.unflatten(1, (key.shape[1], -1))
        out = F.scaled_dot_product_attention(query, key, value)
        return out.flatten(1, 2)

    def on_flash(step: DecodeStep) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return attend(step)

    def on_cudnn(step: DecodeStep) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return attend(step)

    if device.type != "cuda":
        return {"torch SDPA": attend}
    return {"torch SDPA, flash": on_flash, "torch SDPA, cuDNN": on_cudnn}
