"""`TorchAttention`: the reference backend, torch's `scaled_dot_product_attention`.

It serves any device and dtype over the contiguous cache, where a sequence's keys are one
slice of one block. Sequences that compute one token are attended together, the others
one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.attention.interface import AttentionBatch
from quire.kv.storage import LayerKV


@dataclass
class _Chunk:
    """Several tokens of one sequence: queries [begin, end) see keys [first_key, length)."""

    begin: int
    end: int
    block_id: int
    first_key: int
    length: int
    mask: Tensor | None  # bool [end - begin, length - first_key]; None: plain causal


@dataclass
class _Decode:
    """One token of each of D sequences, all padded to the longest."""

    tokens: Tensor | None  # int64 [D], their places in the step; None: all, in order
    blocks: Tensor | slice  # D block ids; a slice when that avoids a copy
    longest: int
    mask: Tensor | None  # bool [D, 1, 1, longest]; None: every position is seen


@dataclass
class TorchMetadata:
    """Where this step's tokens are written, and which keys its queries see."""

    write_blocks: Tensor  # int64 [num_tokens]
    write_offsets: Tensor  # int64 [num_tokens]
    decode: _Decode | None
    chunks: list[_Chunk]


class TorchAttention:
    """See the module. Expects one block a sequence (`SlotManager`)."""

    graph_safe = False

    def __init__(self) -> None:
        """Choose among torch's own kernels, for the whole process."""
        # cuDNN's attention builds a plan for each new shape, and every decode step has a
        # new length: 44 ms for a plan on an H200 (measurements/pitfalls-h200.json).
        torch.backends.cuda.enable_cudnn_sdp(False)

    def build(self, batch: AttentionBatch, window: int | None) -> TorchMetadata:
        """Split the step into single-token and longer sequences."""
        device = batch.positions.device
        singles: list[int] = []
        chunks: list[_Chunk] = []
        write_blocks: list[int] = []
        for i, length in enumerate(batch.lengths):
            begin, end = batch.query_starts[i], batch.query_starts[i + 1]
            (block_id,) = batch.block_ids[i]
            write_blocks += [block_id] * (end - begin)
            if end - begin == 1:
                singles.append(i)
            else:
                chunks.append(_chunk(begin, end, block_id, length, window, device))
        return TorchMetadata(
            write_blocks=torch.tensor(write_blocks, device=device),
            write_offsets=batch.positions,
            decode=_decode(batch, singles, window) if singles else None,
            chunks=chunks,
        )

    def write(self, key: Tensor, value: Tensor, kv: LayerKV, metadata: TorchMetadata) -> None:
        """Store keys and values [num_tokens, num_kv_heads, head_size] at their positions."""
        kv.key[metadata.write_blocks, :, metadata.write_offsets] = key
        kv.value[metadata.write_blocks, :, metadata.write_offsets] = value

    def forward(self, query: Tensor, kv: LayerKV, metadata: TorchMetadata, scale: float) -> Tensor:
        """Attend with queries [num_tokens, num_heads, head_size]; returns the same shape."""
        output = torch.empty_like(query)
        for chunk in metadata.chunks:
            keys = kv.key[chunk.block_id, :, chunk.first_key : chunk.length]
            values = kv.value[chunk.block_id, :, chunk.first_key : chunk.length]
            attended = F.scaled_dot_product_attention(
                query[chunk.begin : chunk.end].transpose(0, 1)[None],
                keys[None],
                values[None],
                attn_mask=chunk.mask,
                is_causal=chunk.mask is None,
                scale=scale,
                enable_gqa=True,
            )
            output[chunk.begin : chunk.end] = attended[0].transpose(0, 1)
        if metadata.decode is not None:
            decode = metadata.decode
            rows = query if decode.tokens is None else query[decode.tokens]
            attended = _attend_single(rows, kv, decode, scale)
            if decode.tokens is None:
                return attended
            output[decode.tokens] = attended
        return output


def _chunk(
    begin: int, end: int, block_id: int, length: int, window: int | None, device: torch.device
) -> _Chunk:
    start = length - (end - begin)  # position of the first query
    first_key = 0 if window is None else max(0, start - window + 1)
    if start == 0 and (window is None or length <= window):
        return _Chunk(begin, end, block_id, 0, length, mask=None)
    queries = torch.arange(start, length, device=device)[:, None]
    keys = torch.arange(first_key, length, device=device)[None, :]
    mask = keys <= queries
    if window is not None:
        mask &= keys > queries - window
    return _Chunk(begin, end, block_id, first_key, length, mask)


def _decode(batch: AttentionBatch, singles: list[int], window: int | None) -> _Decode:
    device = batch.positions.device
    lengths = [batch.lengths[i] for i in singles]
    ids = [batch.block_ids[i][0] for i in singles]
    longest = max(lengths)
    mask = None
    if min(lengths) < longest or (window is not None and longest > window):
        keys = torch.arange(longest, device=device)
        ends = torch.tensor(lengths, device=device)[:, None]
        seen = keys < ends
        if window is not None:
            seen &= keys >= ends - window
        mask = seen[:, None, None, :]
    in_sequence = ids == list(range(ids[0], ids[0] + len(ids)))
    return _Decode(
        tokens=(
            None
            if len(singles) == len(batch.lengths)
            else torch.tensor([batch.query_starts[i] for i in singles], device=device)
        ),
        # Neighbouring blocks are read in place, scattered ones are gathered first.
        blocks=slice(ids[0], ids[0] + len(ids))
        if in_sequence
        else torch.tensor(ids, device=device),
        longest=longest,
        mask=mask,
    )


def _attend_single(query: Tensor, kv: LayerKV, decode: _Decode, scale: float) -> Tensor:
    """One query token a sequence: [D, num_heads, head_size] in and out.

    The query heads that share a KV head take the place of query positions, so that each
    key is read once for all of them.
    """
    keys = kv.key[decode.blocks, :, : decode.longest]  # [D, num_kv_heads, longest, head_size]
    values = kv.value[decode.blocks, :, : decode.longest]
    num_sequences, num_heads, head_size = query.shape
    grouped = query.view(num_sequences, keys.shape[1], -1, head_size)
    attended = F.scaled_dot_product_attention(
        grouped, keys, values, attn_mask=decode.mask, scale=scale
    )
    return attended.reshape(num_sequences, num_heads, head_size)
