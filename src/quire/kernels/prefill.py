"""Prefill attention: chunks of new tokens against all their sequence's keys.

A long prompt does hundreds of operations a byte, so here the tensor cores are what counts.
A program owns a tile of query rows and walks over the keys once, with the softmax kept
running (FlashAttention, Dao et al. 2022). Rows are pairs of token and query head, all of one
KV head, so that even a short chunk fills a tile. Only tiles that the diagonal or the edge of
a window crosses pay for a mask. Keys come from the step's own tensors where the sequence
starts in this step, else from its blocks.
"""

from __future__ import annotations

from torch import Tensor

from quire.attention.interface import AttentionBatch
from quire.kernels.paged_decode import LOG2_E, MIN_ROWS
from quire.kernels.runtime import jit, tl, triton
from quire.kernels.tuning import PrefillTuning
from quire.kv.storage import LayerKV


@jit
def _attend(
    q,
    maximum,
    total,
    mixed,
    keys,
    values,
    table,
    begin,
    end,
    length,
    positions,
    first_seen,
    scale,
    block_stride,
    offset_stride,
    MASKED: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Walk over the keys [begin, end), both multiples of TILE; returns the running softmax."""
    column = tl.arange(0, HEAD_SIZE)
    for start in tl.range(begin, end, TILE, num_stages=STAGES):
        place = start + tl.arange(0, TILE)
        if PAGE is None:
            offsets = place.to(tl.int64) * offset_stride
        else:
            block = tl.load(table + place // PAGE, mask=place < length, other=0)
            offsets = block.to(tl.int64) * block_stride + place % PAGE * offset_stride
        inside = place < length
        if MASKED:
            k = tl.load(keys + offsets[None, :] + column[:, None], mask=inside[None, :], other=0.0)
        else:
            k = tl.load(keys + offsets[None, :] + column[:, None])
        scores = tl.dot(q, k, input_precision="ieee")
        if MASKED:
            seen = (place[None, :] <= positions[:, None]) & (place[None, :] >= first_seen[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1) * scale)
        # A row that has seen no key yet keeps its sum at zero.
        base = tl.where(new_maximum == float("-inf"), 0.0, new_maximum) if MASKED else new_maximum
        weights = tl.exp2(scores * scale - base[:, None])
        shrink = tl.exp2(maximum - base)
        total = total * shrink + tl.sum(weights, 1)
        if MASKED:
            v = tl.load(
                values + offsets[:, None] + column[None, :], mask=inside[:, None], other=0.0
            )
        else:
            v = tl.load(values + offsets[:, None] + column[None, :])
        mixed = mixed * shrink[:, None]
        mixed = tl.dot(weights.to(v.dtype), v, mixed, input_precision="ieee")
        maximum = new_maximum
    return maximum, total, mixed


@jit
def _prefill(
    output,  # [num_tokens, num_heads, HEAD_SIZE], contiguous
    query,  # the same shape
    key,  # [num_blocks, num_kv_heads, PAGE, HEAD_SIZE], strided; fresh: [num_tokens, kv heads, …]
    value,
    block_table,  # None: keys and values are fresh
    rows,
    lengths,
    query_starts,
    tiles,  # int32 [number of tiles, 2]: sequence, first token of the tile within its chunk
    scale,  # of the scores, in units of log 2
    window,  # positions a query sees; None: all
    query_stride,
    block_stride,
    head_stride,
    offset_stride,
    table_stride,
    GROUP: tl.constexpr,  # query heads a KV head
    ROWS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
):
    kv_head = tl.program_id(0)
    tile = tl.program_id(1)
    num_kv_heads = tl.num_programs(0)
    sequence = tl.load(tiles + tile * 2)
    first_token = tl.load(tiles + tile * 2 + 1)
    query_start = tl.load(query_starts + sequence)
    num_new = tl.load(query_starts + sequence + 1) - query_start
    length = tl.load(lengths + sequence)

    row = tl.arange(0, ROWS)
    column = tl.arange(0, HEAD_SIZE)
    token = first_token + row // GROUP
    used = (row < ROWS // GROUP * GROUP) & (token < num_new)
    positions = length - num_new + token
    inside = (kv_head * GROUP + row % GROUP)[:, None] * HEAD_SIZE + column[None, :]
    step_token = (query_start + token).to(tl.int64)[:, None]
    q = tl.load(query + step_token * query_stride + inside, mask=used[:, None], other=0.0)

    keys = key + kv_head * head_stride
    values = value + kv_head * head_stride
    if block_table is None:
        keys += query_start.to(tl.int64) * offset_stride
        values += query_start.to(tl.int64) * offset_stride
        table = None
    else:
        table = block_table + tl.load(rows + sequence).to(tl.int64) * table_stride
    # Keys [0, whole) are seen by every row of the tile, [whole, end) need a mask.
    whole = (length - num_new + first_token + 1) // TILE * TILE
    end = tl.minimum(length, length - num_new + first_token + ROWS // GROUP)
    first_seen = tl.zeros([ROWS], tl.int32)
    begin = 0
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, HEAD_SIZE], tl.float32)
    if window is not None:
        first_seen = tl.maximum(positions - window + 1, 0)
        begin = tl.maximum(length - num_new + first_token - window + 1, 0) // TILE * TILE
        edge = tl.maximum(length - num_new + first_token + ROWS // GROUP - window, 0)
        edge = tl.minimum(tl.cdiv(edge, TILE) * TILE, whole)
        maximum, total, mixed = _attend(
            q, maximum, total, mixed, keys, values, table, begin, edge, length, positions,
            first_seen, scale, block_stride, offset_stride, True, HEAD_SIZE, PAGE, TILE, STAGES,
        )  # fmt: skip
        begin = tl.maximum(begin, edge)
    maximum, total, mixed = _attend(
        q, maximum, total, mixed, keys, values, table, begin, whole, length, positions,
        first_seen, scale, block_stride, offset_stride, False, HEAD_SIZE, PAGE, TILE, STAGES,
    )  # fmt: skip
    maximum, total, mixed = _attend(
        q, maximum, total, mixed, keys, values, table, tl.maximum(begin, whole), end, length,
        positions, first_seen, scale, block_stride, offset_stride, True, HEAD_SIZE, PAGE, TILE,
        STAGES,
    )  # fmt: skip
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    out = output + step_token * num_kv_heads * GROUP * HEAD_SIZE + inside
    tl.store(out, mixed, mask=used[:, None])


def tokens_per_tile(group: int, tuning: PrefillTuning) -> int:
    """Return how many tokens of a chunk one program serves, with `group` query heads each."""
    return max(tuning.rows, triton.next_power_of_2(group), MIN_ROWS) // group


def prefill(
    output: Tensor,
    query: Tensor,
    source: LayerKV | tuple[Tensor, Tensor],
    batch: AttentionBatch,
    tiles: Tensor,
    scale: float,
    window: int | None,
    tuning: PrefillTuning,
) -> None:
    """Write the attention of chunks of new tokens into their places of `output`.

    Args:
        output: [num_tokens, num_heads, head_size], contiguous.
        query: the same shape; tokens may be strided.
        source: the cache; or the step's own keys and values, [num_tokens, num_kv_heads,
            head_size] with equal strides, where all the tiles' sequences start in this step.
        tiles: int32 [number of tiles, 2]: sequence and first token in its chunk.
    """
    num_heads, head_size = query.shape[1:]
    if isinstance(source, LayerKV):
        key, value, table, page = source.key, source.value, batch.block_table, batch.block_size
        strides = key.stride()[:3]
    else:
        key, value, table, page = *source, None, None
        strides = (0, key.stride(1), key.stride(0))
    group = num_heads // key.shape[1]
    _prefill[(key.shape[1], tiles.shape[0])](
        output,
        query,
        key,
        value,
        table,
        batch.rows,
        batch.lengths,
        batch.query_starts,
        tiles,
        scale * LOG2_E,
        window,
        query.stride(0),
        *strides,
        batch.block_table.stride(0),
        GROUP=group,
        ROWS=max(tuning.rows, triton.next_power_of_2(group), MIN_ROWS),
        HEAD_SIZE=head_size,
        PAGE=page,
        TILE=tuning.keys,
        STAGES=tuning.stages,
        num_warps=tuning.warps,
    )
