"""The first node of a captured step: from what the host sent to what every layer needs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quire.kernels.runtime import jit, tl


@dataclass(frozen=True)
class DecodeInputs:
    """What the host sends for a step of one token a request; R sequences, padding included."""

    rows: Tensor  # int32 [R]
    positions: Tensor  # int32 [R], of the token to compute
    lengths: Tensor  # int32 [R]: position + 1, or 0 for a padded sequence
    new_blocks: Tensor  # int32 [groups, R]: the block that begins here, or the null block


def begin_step(
    inputs: DecodeInputs,
    token_ids: Tensor,
    block_tables: list[Tensor],
    block_size: int,
    *,
    tokens: Tensor,
    positions: Tensor,
    slots: list[Tensor],
) -> None:
    """Append new blocks to the tables; look up each row's token and where its KV goes.

    Args:
        inputs: what the host sent.
        token_ids: int64 [num_rows, max_len + 1], the rows' tokens.
        block_tables: per KV group, int32 [num_rows, max_blocks]; changed in place.
        tokens, positions: int64 [R], filled.
        slots: per KV group, int64 [R], filled.
    """
    num_sequences = len(inputs.rows)
    for group, table in enumerate(block_tables):
        _begin_step[(num_sequences,)](
            inputs.rows,
            inputs.positions,
            inputs.new_blocks[group],
            token_ids,
            token_ids.stride(0),
            table,
            table.stride(0),
            tokens,
            positions,
            slots[group],
            block_size=block_size,
            num_warps=1,
        )


@jit
def _begin_step(
    rows,
    positions,
    new_blocks,
    token_ids,
    tokens_stride,
    table,
    table_stride,
    tokens_out,
    positions_out,
    slots_out,
    block_size: tl.constexpr,
):
    i = tl.program_id(0)
    row = tl.load(rows + i).to(tl.int64)
    position = tl.load(positions + i).to(tl.int64)
    new_block = tl.load(new_blocks + i)
    entry = table + row * table_stride + position // block_size
    known = tl.load(entry)
    block = tl.where(new_block > 0, new_block, known)
    tl.store(entry, block)
    tl.store(tokens_out + i, tl.load(token_ids + row * tokens_stride + position))
    tl.store(positions_out + i, position)
    tl.store(slots_out + i, block.to(tl.int64) * block_size + position % block_size)
