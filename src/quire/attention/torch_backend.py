"""`TorchAttention`: the reference backend, torch's `scaled_dot_product_attention` over blocks.

It serves any device and dtype. A sequence's blocks are gathered first, or read in place
where they are neighbours. Sequences that compute one token are attended together, padded
to the longest; the others one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from quire.kv.batch import AttentionBatch
from quire.kv.layer import LayerKV


@dataclass
class _Chunk:
    """Several tokens of one sequence: queries [begin, end) see keys [first_key, length).

    Keys are counted from the first position of the first block in `blocks`.
    """

    begin: int
    end: int
    fresh: bool  # the whole sequence is in this step
    blocks: Tensor | slice
    first_key: int
    length: int
    mask: Tensor | None  # bool [end - begin, length - first_key]; None: plain causal


@dataclass
class _Decode:
    """One token of each of D sequences, all padded to the longest."""

    tokens: Tensor | None  # int64 [D], their places in the step; None: all, in order
    blocks: Tensor | slice  # D block tables on end, each padded with the null block
    longest: int
    mask: Tensor | None  # bool [D, 1, 1, longest]; None: every position is seen


@dataclass
class TorchMetadata:
    """Where this step's tokens are written, and which keys its queries see."""

    slots: Tensor  # int64 [num_tokens]
    decode: _Decode | None
    chunks: list[_Chunk]


class TorchAttention:
    """See the module."""

    graph_safe = captures_prompts = False
    writes_by_slot = True
    sees_sinks = True
    reads_scales = True

    def __init__(self) -> None:
        """Choose among torch's own kernels, for the whole process."""
        # cuDNN's attention builds a plan for each new shape, and every decode step has a
        # new length: 44 ms for a plan on an H200 (measurements/pitfalls-h200.json).
        torch.backends.cuda.enable_cudnn_sdp(False)

    def build(self, batch: AttentionBatch, window: int | None) -> TorchMetadata:
        """Split the step into single-token and longer sequences."""
        assert batch.host is not None, "graph_safe is False"
        starts = batch.host.query_starts
        singles = [i for i in range(len(starts) - 1) if starts[i + 1] - starts[i] == 1]
        chunks = [i for i in range(len(starts) - 1) if starts[i + 1] - starts[i] > 1]
        return TorchMetadata(
            slots=batch.slots,
            decode=_decode(batch, singles, window) if singles else None,
            chunks=[_chunk(batch, i, window) for i in chunks],
        )

    def write(self, key: Tensor, value: Tensor, kv: LayerKV, metadata: TorchMetadata) -> None:
        """Store keys and values [num_tokens, num_kv_heads, head_size] at their slots."""
        kv.write(metadata.slots, key, value)

    def forward(
        self,
        query: Tensor,
        kv: LayerKV,
        metadata: TorchMetadata,
        scale: float,
        fresh_kv: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend with queries [num_tokens, num_heads, head_size]; returns the same shape."""
        decode = metadata.decode
        if decode is not None and decode.tokens is None:
            return _attend_single(query, kv, decode, scale)
        output = torch.empty_like(query)
        for chunk in metadata.chunks:
            output[chunk.begin : chunk.end] = _attend_chunk(query, kv, chunk, scale, fresh_kv)
        if decode is not None:
            output[decode.tokens] = _attend_single(query[decode.tokens], kv, decode, scale)
        return output


def _chunk(batch: AttentionBatch, i: int, window: int | None) -> _Chunk:
    assert batch.host is not None
    begin, end = batch.host.query_starts[i : i + 2]
    length, device = batch.host.lengths[i], batch.positions.device
    start = length - (end - begin)  # position of the first query
    first_seen = 0 if window is None else max(0, start - window + 1)
    first_key = 0 if batch.sinks > 0 else first_seen
    first_block = first_key // batch.block_size
    table = batch.host.block_table[batch.host.rows[i], : -(-length // batch.block_size)]
    if first_key < first_seen:
        table = _only_seen(table, np.array([first_seen]), batch)
    blocks = _blocks(table[first_block:], device)
    mask = None
    if start > 0 or (window is not None and length > window):
        queries = torch.arange(start, length, device=device)[:, None]
        keys = torch.arange(first_key, length, device=device)[None, :]
        mask = keys <= queries
        if window is not None:
            mask &= (keys > queries - window) | (keys < batch.sinks)
    skipped = first_block * batch.block_size
    return _Chunk(begin, end, start == 0, blocks, first_key - skipped, length - skipped, mask)


def _decode(batch: AttentionBatch, singles: list[int], window: int | None) -> _Decode:
    host, device = batch.host, batch.positions.device
    assert host is not None
    lengths = [host.lengths[i] for i in singles]
    longest = max(lengths)
    num_blocks = -(-longest // batch.block_size)
    mask = None
    if min(lengths) < longest or (window is not None and longest > window):
        keys = torch.arange(longest, device=device)
        ends = torch.tensor(lengths, device=device)[:, None]
        seen = keys < ends
        if window is not None:
            seen &= (keys >= ends - window) | (keys < batch.sinks)
        mask = seen[:, None, None, :]
    table = host.block_table[[host.rows[i] for i in singles], :num_blocks]
    if mask is not None:  # behind a sequence's own blocks its row holds anything
        used = -(-np.array(lengths) // batch.block_size)
        table = np.where(np.arange(num_blocks) < used[:, None], table, 0)
        if window is not None:
            table = _only_seen(table, np.array(lengths)[:, None] - window, batch)
    every = len(singles) == len(host.lengths)
    return _Decode(
        tokens=None
        if every
        else torch.tensor([host.query_starts[i] for i in singles], device=device),
        blocks=_blocks(table.reshape(-1), device),
        longest=longest,
        mask=mask,
    )


def _only_seen(
    table: NDArray[np.int32], first_seen: NDArray[np.int64], batch: AttentionBatch
) -> NDArray[np.int32]:
    """Let blocks between sinks and window, which others may hold, read as the window's first."""
    begins = np.arange(table.shape[-1]) * batch.block_size
    seen = (begins + batch.block_size > first_seen) | (begins < batch.sinks)
    first_column = np.maximum(first_seen, 0) // batch.block_size
    return np.where(seen, table, np.take_along_axis(table, first_column, -1))


def _blocks(ids: NDArray[np.int32], device: torch.device) -> Tensor | slice:
    """Return an index of blocks: a slice where they are neighbours, which costs no copy."""
    first, last = int(ids[0]), int(ids[-1])
    if last - first == len(ids) - 1 and bool((ids[1:] - ids[:-1] == 1).all()):
        return slice(first, last + 1)
    return torch.from_numpy(ids).to(device)


def _gather(
    kv: LayerKV,
    blocks: Tensor | slice,
    num_sequences: int,
    first: int,
    last: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Return keys and values at positions [first, last) of the sequences in `blocks`.

    Each is [num_sequences, num_kv_heads, last - first, head_size]; `dtype` is what codes are
    turned back into.
    """
    _, num_kv_heads, block_size, head_size = kv.key.shape
    if kv.key_scale is not None:
        found = kv.dequantized(blocks, dtype)
    elif isinstance(blocks, slice):
        if num_sequences == 1:  # one view of the cache, which costs a step least
            begin = blocks.start * block_size + first
            return [x.narrow(2, begin, last - first) for x in kv.heads]
        found = [x.transpose(1, 2)[blocks] for x in (kv.key, kv.value)]
    else:  # whole blocks as long rows: far faster than indexing four dimensions
        found = [x.transpose(1, 2).flatten(1).index_select(0, blocks) for x in (kv.key, kv.value)]
    shape = (num_sequences, -1, num_kv_heads, head_size)
    return [x.view(shape).transpose(1, 2)[:, :, first:last] for x in found]


def _attend_chunk(
    query: Tensor,
    kv: LayerKV,
    chunk: _Chunk,
    scale: float,
    fresh_kv: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Several query tokens of one sequence: [tokens, num_heads, head_size]."""
    if chunk.fresh and fresh_kv is not None and kv.key_scale is None:
        keys, values = (x[chunk.begin : chunk.end].transpose(0, 1)[None] for x in fresh_kv)
    else:
        keys, values = _gather(kv, chunk.blocks, 1, chunk.first_key, chunk.length, query.dtype)
    attended = F.scaled_dot_product_attention(
        query[chunk.begin : chunk.end].transpose(0, 1)[None],
        keys,
        values,
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=scale,
        enable_gqa=True,
    )
    return attended[0].transpose(0, 1)


def _attend_single(query: Tensor, kv: LayerKV, decode: _Decode, scale: float) -> Tensor:
    """One query token a sequence: [D, num_heads, head_size] in and out.

    The query heads that share a KV head take the place of query positions, so that each
    key is read once for all of them.
    """
    num_sequences, num_heads, head_size = query.shape
    keys, values = _gather(kv, decode.blocks, num_sequences, 0, decode.longest, query.dtype)
    grouped = query.reshape(num_sequences, keys.shape[1], -1, head_size)
    attended = F.scaled_dot_product_attention(
        grouped, keys, values, attn_mask=decode.mask, scale=scale
    )
    return attended.reshape(num_sequences, num_heads, head_size)
