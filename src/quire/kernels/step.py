"""The first node of a captured step: from what the host sent to what every layer needs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quire.kernels.runtime import jit, tl, triton


@dataclass(frozen=True)
class DecodeInputs:
    """What the host sends for a step of W tokens a request; R sequences, padding included.

    A sequence with fewer than W - 1 drafts, and a padded one, has tokens that nobody looks at:
    their keys and values go to the null block.
    """

    rows: Tensor  # int32 [R]
    positions: Tensor  # int32 [R], of the first token to compute, or an upper bound
    num_drafts: Tensor  # int32 [R], behind that token; -1 for a padded sequence
    first_new: Tensor  # int32 [groups, R]: which of its blocks the first new one is
    new_blocks: Tensor  # int32 [groups, R, B]: new blocks in order, then the null block


def begin_step(
    inputs: DecodeInputs,
    token_ids: Tensor,
    block_tables: list[Tensor],
    block_size: int,
    *,
    tokens: Tensor,
    positions: Tensor,
    slots: list[Tensor],
    lengths: Tensor,
    num_known: Tensor | None,
) -> None:
    """Append new blocks to the tables; look up each token and where its keys and values go.

    A step that was queued before the drafts ahead of it were judged begins at its row's last
    known token, which lies before `inputs.positions` where a draft was rejected.

    Args:
        inputs: what the host sent.
        token_ids: int64 [num_rows, max_len + 1], the rows' tokens.
        block_tables: per KV group, int32 [num_rows, max_blocks]; changed in place.
        tokens, positions: int64 [R * W], filled.
        slots: per KV group, int64 [R * W], filled.
        lengths: int32 [R], filled: of each sequence after the step; 0 for a padded one.
        num_known: int64 [num_rows], how many tokens of a row are known; None: the positions that
            the host sent are exact.
    """
    num_sequences = len(inputs.rows)
    width = len(tokens) // num_sequences
    most_new = inputs.new_blocks.shape[2]
    for group, table in enumerate(block_tables):
        _begin_step[(num_sequences,)](
            inputs.rows,
            inputs.positions,
            inputs.num_drafts,
            inputs.first_new[group],
            inputs.new_blocks[group],
            token_ids,
            token_ids.stride(0),
            table,
            table.stride(0),
            tokens,
            positions,
            slots[group],
            lengths,
            num_known,
            block_size=block_size,
            width=width,
            padded_width=triton.next_power_of_2(width),
            most_new=most_new,
            padded_new=triton.next_power_of_2(most_new),
            num_warps=1,
        )


@jit
def _begin_step(
    rows,
    first_positions,
    num_drafts,
    first_new,
    new_blocks,
    token_ids,
    tokens_stride,
    table,
    table_stride,
    tokens_out,
    positions_out,
    slots_out,
    lengths_out,
    num_known,
    block_size: tl.constexpr,
    width: tl.constexpr,
    padded_width: tl.constexpr,
    most_new: tl.constexpr,
    padded_new: tl.constexpr,
):
    i = tl.program_id(0)
    row = tl.load(rows + i).to(tl.int64)
    begin = tl.load(first_positions + i).to(tl.int64)
    if num_known is not None:
        begin = tl.maximum(tl.minimum(begin, tl.load(num_known + row) - 1), 0)
    drafts = tl.load(num_drafts + i)
    tl.store(lengths_out + i, tl.where(drafts >= 0, begin + width, 0).to(tl.int32))
    new = tl.load(first_new + i)
    column = tl.arange(0, padded_new)
    ids = tl.load(new_blocks + i * most_new + column, column < most_new, other=0)
    entries = table + row * table_stride
    tl.store(entries + new + column, ids, ids > 0)

    later = tl.arange(0, padded_width)
    wanted = later < width
    known = later <= drafts
    position = begin + tl.where(known, later, 0)
    # What was stored above is not read again, so nobody waits for it.
    ahead = (position // block_size - new).to(tl.int32)
    is_new = (ahead >= 0) & (ahead < most_new)
    added = tl.load(new_blocks + i * most_new + ahead, wanted & is_new, other=0)
    held = tl.load(entries + position // block_size, wanted, other=0)
    block = tl.where(added > 0, added, held).to(tl.int64)
    slot = tl.where(known, block * block_size + position % block_size, 0)
    token = tl.load(token_ids + row * tokens_stride + position, wanted, other=0)
    place = i * width + later
    tl.store(tokens_out + place, token, wanted)
    tl.store(positions_out + place, position, wanted)
    tl.store(slots_out + place, slot, wanted)
