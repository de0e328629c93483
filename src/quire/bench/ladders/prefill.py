"""The ladder of prefill attention: from scores in memory to scores that never leave a tile.

Prompts of one length, fresh, causal; 32 query heads of 128 share 8 KV heads in fours.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from quire.attention.triton_backend import TritonAttention, TritonMetadata
from quire.bench.ladders.ladder import Ladder, draw, sets_of
from quire.bench.ladders.prefill_scores import Prompts, scores_in_memory
from quire.kernels.paged_decode import LOG2_E
from quire.kernels.runtime import jit, tl, triton
from quire.kernels.tuning import Tuning, tuning
from quire.kv.batch import AttentionBatch, HostBatch
from quire.kv.layer import LayerKV

PAGE = 16


@dataclass(frozen=True)
class Sizes:
    """Of a prefill: by default four prompts of 4,096 tokens at the heads of the 8B model."""

    batch: int = 4
    length: int = 4096
    num_heads: int = 32
    num_kv_heads: int = 8
    head_size: int = 128


def ladder(
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    sizes: Sizes | None = None,
    settings: Tuning | None = None,
    tile: tuple[int, int] = (128, 64),
) -> Ladder[Prompts]:
    """Causal attention of whole prompts.

    Args:
        settings: launch settings of the engine; None: those of the GPU's table.
        tile: queries and keys of a tile of the online steps.
    """
    sizes = sizes or Sizes()
    tokens = sizes.batch * sizes.length
    shapes = [(tokens, n, sizes.head_size) for n in (sizes.num_heads, *(sizes.num_kv_heads,) * 2)]
    num_bytes = sum(a * b * c for a, b, c in (shapes[0], *shapes)) * dtype.itemsize
    inputs = []
    for i in range(sets_of(num_bytes, device)):
        query, key, value = (
            draw(3 * i + j, *shape, device=device, dtype=dtype) for j, shape in enumerate(shapes)
        )
        inputs.append(Prompts(query, key, value, sizes.length))
    others: dict[str, Callable[[Prompts], Tensor]] = {"torch SDPA": sdpa(None)}
    if device.type == "cuda":
        others = {
            "torch SDPA, flash": sdpa(SDPBackend.FLASH_ATTENTION),
            "torch SDPA, cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION),
        }
    return Ladder(
        "prefill",
        inputs,
        {
            "scores-in-memory": scores_in_memory,
            "online": lambda prompts: online(prompts, *tile, skips=False),
            "skipping": lambda prompts: online(prompts, *tile, skips=True),
            "engine": engine(sizes, device, settings),
        },
        others,
        oracle,
        num_bytes,
        4.0 * sizes.batch * sizes.length * (sizes.length + 1) / 2 * sizes.num_heads
        * sizes.head_size,
        beside_copy=False,
        parameters={"batch": float(sizes.batch), "length": float(sizes.length)},
    )  # fmt: skip


def oracle(prompts: Prompts) -> Tensor:
    """Attention in float64, one prompt and KV head after another: the scores take much memory."""
    query, key, value = prompts.by_head()
    group = query.shape[1] // key.shape[1]
    out = torch.empty(query.shape, device=query.device, dtype=torch.float64)
    later = torch.ones(prompts.length, prompts.length, device=query.device).triu(1).bool()
    for i in range(query.shape[0]):
        for head in range(key.shape[1]):
            mine = slice(head * group, (head + 1) * group)
            scores = query[i, mine].double() @ key[i, head].double().T
            scores = scores.mul_(query.shape[-1] ** -0.5).masked_fill_(later, -float("inf"))
            out[i, mine] = scores.softmax(-1) @ value[i, head].double()
    return out.transpose(1, 2).flatten(0, 1)


def sdpa(backend: SDPBackend | None) -> Callable[[Prompts], Tensor]:
    """torch's attention by one of its backends; None: the one that it chooses."""

    def attend(prompts: Prompts) -> Tensor:
        query, key, value = prompts.by_head()
        if backend is None:
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        else:
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(
                    query, key, value, is_causal=True, enable_gqa=True
                )
        return out.transpose(1, 2).flatten(0, 1)

    return attend


def engine(
    sizes: Sizes, device: torch.device, settings: Tuning | None
) -> Callable[[Prompts], Tensor]:
    """The engine's kernel: rows of four heads share keys, and only the diagonal pays for a mask.

    It is the one for every GPU, in Triton; Hopper's own is in Gluon and not a step of this ladder.
    """
    metadata = _metadata(sizes, device)
    backend = TritonAttention(settings or tuning(device, sizes.head_size, 2))
    steps: dict[str, TritonMetadata] = {"step": backend.build(metadata, None)}

    def attend(prompts: Prompts) -> Tensor:
        shape = (1, sizes.num_kv_heads, PAGE, sizes.head_size)  # no block: all keys are new
        empty = prompts.key.new_empty(shape)
        return backend.forward(
            prompts.query,
            LayerKV(empty, empty),
            steps["step"],
            sizes.head_size**-0.5,
            (prompts.key, prompts.value),
        )

    return attend


def _metadata(sizes: Sizes, device: torch.device) -> AttentionBatch:
    """Return a step of whole prompts."""
    batch, length = sizes.batch, sizes.length
    starts = list(range(0, batch * length + 1, length))
    table = torch.zeros(batch, triton.cdiv(length, PAGE), dtype=torch.int32)
    whole = torch.full((batch,), length, dtype=torch.int32, device=device)
    return AttentionBatch(
        query_starts=torch.tensor(starts, dtype=torch.int32, device=device),
        lengths=whole,
        rows=torch.arange(batch, dtype=torch.int32, device=device),
        block_table=table.to(device),
        positions=torch.arange(length, device=device).repeat(batch),
        slots=torch.zeros(batch * length, dtype=torch.int64, device=device),
        block_size=PAGE,
        max_length=length,
        host=HostBatch(starts, [length] * batch, list(range(batch)), table.numpy()),
    )


def online(prompts: Prompts, block: int, tile: int, *, skips: bool) -> Tensor:
    """One kernel: the softmax is kept running; with `skips` no tile above the diagonal is read."""
    tokens, num_heads, head_size = prompts.query.shape
    num_kv_heads, length = prompts.key.shape[1], prompts.length
    out = torch.empty_like(prompts.query)
    _online_kernel[(triton.cdiv(length, block), tokens // length * num_heads)](
        prompts.query,
        prompts.key,
        prompts.value,
        out,
        length,
        head_size**-0.5 * LOG2_E,
        group=num_heads // num_kv_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        block=block,
        tile=tile,
        skips=skips,
        num_warps=8,
        num_stages=3,
    )
    return out


@jit
def _online_kernel(
    query,  # [batch * length, num_heads, head_size]
    key,  # [batch * length, num_kv_heads, head_size]
    value,
    out,  # the shape of query
    length,
    scale,  # in units of log 2
    group: tl.constexpr,
    num_kv_heads: tl.constexpr,
    head_size: tl.constexpr,
    block: tl.constexpr,
    tile: tl.constexpr,
    skips: tl.constexpr,
):
    """One program `block` queries of one head; keys and values pass by in tiles."""
    # The last queries see the most keys: they start first, so that none is left for the end.
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) * block + tl.arange(0, block)
    item = tl.program_id(1).to(tl.int64)
    first, head = item // (group * num_kv_heads) * length, item % (group * num_kv_heads)
    size = tl.arange(0, head_size)
    own = ((first + row) * (group * num_kv_heads) + head)[:, None] * head_size + size[None, :]
    q = tl.load(query + own, (row < length)[:, None], other=0.0)
    maximum = tl.full((block,), -float("inf"), tl.float32)
    total = tl.zeros((block,), tl.float32)
    mixed = tl.zeros((block, head_size), tl.float32)
    end = length
    if skips:
        end = tl.minimum(tl.max(row) + 1, length)
    for start in range(0, end, tile):
        column = start + tl.arange(0, tile)
        place = ((first + column) * num_kv_heads + head // group)[:, None] * head_size
        there = (column < length)[:, None]
        k = tl.load(key + place + size[None, :], there, other=0.0)
        scores = tl.dot(q, k.T, input_precision="ieee") * scale
        scores = tl.where(column[None, :] <= row[:, None], scores, -float("inf"))
        higher = tl.maximum(maximum, tl.max(scores, 1))  # finite: every query sees key 0
        shrink = tl.exp2(maximum - higher)
        weights = tl.exp2(scores - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        v = tl.load(value + place + size[None, :], there, other=0.0)
        mixed = tl.dot(weights.to(v.dtype), v, mixed * shrink[:, None], input_precision="ieee")
        maximum = higher
    mixed = mixed / total[:, None]
    tl.store(out + own, mixed.to(out.dtype.element_ty), (row < length)[:, None])
