"""Prefill attention: chunks of new tokens against all their sequence's keys.

A long prompt does hundreds of operations a byte, so here the tensor cores are what counts.
A program owns a tile of query rows and walks over the keys once, with the softmax kept
running (FlashAttention, Dao et al. 2022). Rows are pairs of token and query head, all of one
KV head, so that even a short chunk fills a tile. Only tiles that the diagonal or the edge of
a window crosses pay for a mask. Keys come from the step's own tensors where the sequence
starts in this step, else from its blocks.

Of a long prompt cut by positions a launch attends to one part of the keys. It then also gives
the logarithm of each softmax's sum, by which parts are merged (`quire.kernels.part_attention`).
"""

from __future__ import annotations

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from quire.kernels.paged_decode import LOG2_E, MIN_ROWS
from quire.kernels.runtime import jit, tl, triton
from quire.kernels.tuning import PrefillTuning
from quire.kv.batch import AttentionBatch
from quire.kv.layer import LayerKV


@jit
def _load(source, start, table, length, first_row, kv_head, block_stride, offset_stride,
          HEAD_SIZE: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Load the keys or values of positions [start, start + TILE): [TILE, HEAD_SIZE]."""
    if PAGE is None:
        return source.load([first_row + start, kv_head * HEAD_SIZE])
    else:
        place = start + tl.arange(0, TILE)[:, None]
        block = tl.load(table + place // PAGE, mask=place < length, other=0)
        offset = block.to(tl.int64) * block_stride + place % PAGE * offset_stride
        return tl.load(source + offset + tl.arange(0, HEAD_SIZE)[None, :])


@jit
def _load_scale(source, start, table, length, kv_head, num_kv_heads,
                PAGE: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Load the scales of positions [start, start + TILE): [TILE]; 0 behind the sequence's end."""
    place = start + tl.arange(0, TILE)
    block = tl.load(table + place // PAGE, mask=place < length, other=0)
    offset = (block.to(tl.int64) * num_kv_heads + kv_head) * PAGE + place % PAGE
    return tl.load(source + offset, mask=place < length, other=0.0)


@jit
def _attend(q, maximum, total, mixed, keys, values, key_scale, value_scale, table, begin, end,
            length, first_row, kv_head, num_kv_heads, positions, window, sinks, scale, block_stride,
            offset_stride, MASKED: tl.constexpr, HEAD_SIZE: tl.constexpr, PAGE: tl.constexpr,
            TILE: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """Walk over the tiles that begin in [begin, end); returns the running softmax.

    `maximum` [ROWS] is the largest score so far in units of log 2, `total` [ROWS] the sum of
    the weights relative to it, `mixed` [ROWS, HEAD_SIZE] the values so weighted.
    """
    for start in tl.range(begin, end, TILE, num_stages=STAGES):
        k = _load(keys, start, table, length, first_row, kv_head, block_stride, offset_stride,
                  HEAD_SIZE, PAGE, TILE)  # fmt: skip
        scores = tl.dot(q, k.to(q.dtype).T, input_precision="ieee")
        if key_scale is not None:  # one factor a key, hence one a column
            scores *= _load_scale(key_scale, start, table, length, kv_head, num_kv_heads,
                                  PAGE, TILE)[None, :]  # fmt: skip
        place = start + tl.arange(0, TILE)
        if MASKED:
            seen = place[None, :] <= positions[:, None]
            if window is not None:
                in_window = place[None, :] > positions[:, None] - window
                seen &= in_window if sinks is None else in_window | (place[None, :] < sinks)
            scores = tl.where(seen, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1) * scale)
        base = new_maximum
        if MASKED:  # a row that has seen no key yet has no maximum to go by
            base = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        weights = tl.exp2(scores * scale - base[:, None])
        shrink = tl.exp2(maximum - base)
        total = total * shrink + tl.sum(weights, 1)
        v = _load(values, start, table, length, first_row, kv_head, block_stride, offset_stride,
                  HEAD_SIZE, PAGE, TILE)  # fmt: skip
        if MASKED:  # behind the sequence's end may lie anything, and 0 · NaN is not 0
            v = tl.where(place[:, None] < length, v, 0.0)
        if value_scale is not None:
            weights *= _load_scale(value_scale, start, table, length, kv_head, num_kv_heads,
                                   PAGE, TILE)[None, :]  # fmt: skip
        mixed = tl.dot(
            weights.to(q.dtype), v.to(q.dtype), mixed * shrink[:, None], input_precision="ieee"
        )
        maximum = new_maximum
    return maximum, total, mixed


@jit
def _prefill(
    output,  # [num_tokens, num_heads, HEAD_SIZE], contiguous
    query,  # the same shape
    key,  # [num_blocks, num_kv_heads, PAGE, HEAD_SIZE], strided; fresh: a descriptor of tiles of
    value,  # [num_tokens, num_kv_heads * HEAD_SIZE], and PAGE is None
    key_scale,  # float32 [num_blocks, num_kv_heads, PAGE], contiguous; None: no codes
    value_scale,
    block_table,
    rows,
    lengths,
    query_starts,
    tiles,  # int32 [number of tiles, 2]: sequence, first token of the tile within its chunk
    scale,  # of the scores, in units of log 2
    window,  # positions a query sees; None: all
    sinks,  # positions from the first on that it sees as well; None: none
    lse,  # float32 [num_tokens, num_heads], contiguous; None: not stored
    key_starts,  # of fresh keys that all queries of a sequence see; None: the mask is causal
    query_stride,
    block_stride,
    head_stride,
    offset_stride,
    table_stride,
    num_kv_heads: tl.constexpr,
    GROUP: tl.constexpr,  # query heads a KV head
    ROWS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
):
    program = tl.program_id(0)  # one axis: the others end at 65,535, and a step may have more tiles
    kv_head = program % num_kv_heads
    tile = program // num_kv_heads
    sequence = tl.load(tiles + tile * 2)
    first_token = tl.load(tiles + tile * 2 + 1)
    query_start = tl.load(query_starts + sequence)
    num_new = tl.load(query_starts + sequence + 1) - query_start
    first_key = query_start
    length = num_new if PAGE is None else tl.load(lengths + sequence)
    if key_starts is not None:
        first_key = tl.load(key_starts + sequence)
        length = tl.load(key_starts + sequence + 1) - first_key
    past = 0 if PAGE is None else length - num_new

    row = tl.arange(0, ROWS)
    token = first_token + row // GROUP
    used = ((row < ROWS // GROUP * GROUP) & (token < num_new))[:, None]
    positions = past + token
    if key_starts is not None:  # each query stands at the last key
        positions = tl.zeros([ROWS], tl.int32) + length - 1
    heads = (kv_head * GROUP + row % GROUP)[:, None] * HEAD_SIZE + tl.arange(0, HEAD_SIZE)[None, :]
    step_token = (query_start + token).to(tl.int64)[:, None]
    q = tl.load(query + step_token * query_stride + heads, mask=used, other=0.0)
    if PAGE is not None:
        key += kv_head * head_stride
        value += kv_head * head_stride
    table = block_table + tl.load(rows + sequence).to(tl.int64) * table_stride

    # Every row sees the keys [edge, whole); those before, up to a window's begin, and those
    # behind, up to the diagonal's end, some rows do not.
    first = past + first_token
    last = tl.minimum(first + ROWS // GROUP, length)
    whole = (first + 1) // TILE * TILE
    if key_starts is not None:
        last = length
        whole = length // TILE * TILE
    edge = 0
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, HEAD_SIZE], tl.float32)
    if window is not None:
        begin = tl.maximum(first - window + 1, 0) // TILE * TILE
        edge = tl.minimum(tl.cdiv(tl.maximum(last - window, 0), TILE) * TILE, whole)
        edge = tl.maximum(edge, begin)
        if sinks is not None:
            maximum, total, mixed = _attend(
                q, maximum, total, mixed, key, value, key_scale, value_scale, table, 0,
                tl.minimum(sinks, begin), length, first_key, kv_head, num_kv_heads, positions,
                window, sinks, scale, block_stride, offset_stride,
                True, HEAD_SIZE, PAGE, TILE, 1,
            )  # fmt: skip
        maximum, total, mixed = _attend(
            q, maximum, total, mixed, key, value, key_scale, value_scale, table, begin, edge,
            length, first_key, kv_head, num_kv_heads, positions, window, sinks, scale,
            block_stride, offset_stride, True, HEAD_SIZE, PAGE, TILE, 1,
        )  # fmt: skip
    maximum, total, mixed = _attend(
        q, maximum, total, mixed, key, value, key_scale, value_scale, table, edge, whole,
        length, first_key, kv_head, num_kv_heads, positions, window, sinks, scale, block_stride,
        offset_stride, False, HEAD_SIZE, PAGE, TILE, STAGES,
    )  # fmt: skip
    maximum, total, mixed = _attend(
        q, maximum, total, mixed, key, value, key_scale, value_scale, table,
        tl.maximum(edge, whole), last, length, first_key, kv_head, num_kv_heads, positions,
        window, sinks, scale, block_stride, offset_stride, True, HEAD_SIZE, PAGE, TILE, 1,
    )  # fmt: skip
    out = output + step_token * num_kv_heads * GROUP * HEAD_SIZE + heads
    total = tl.where(total > 0, total, 1.0)  # 0: no key was seen, and `maximum` is -inf
    mixed = mixed / total[:, None]
    tl.store(out, mixed.to(output.dtype.element_ty), mask=used)
    if lse is not None:
        head = kv_head * GROUP + row[:, None] % GROUP
        place = lse + step_token * num_kv_heads * GROUP + head
        row_lse = (maximum + tl.log2(total)) * 0.6931471805599453  # log 2
        tl.store(place, row_lse[:, None], mask=used)


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
    lse: Tensor | None = None,
    key_starts: Tensor | None = None,
) -> None:
    """Write the attention of chunks of new tokens into their places of `output`.

    Args:
        output: [num_tokens, num_heads, head_size], contiguous.
        query: the same shape; tokens may be strided.
        source: the cache; or the step's own keys and values, [num_tokens, num_kv_heads,
            head_size] with equal strides, where all the tiles' sequences start in this step.
        tiles: int32 [number of tiles, 2]: sequence and first token in its chunk.
        lse: float32 [num_tokens, num_heads], contiguous: written with the natural logarithm
            of the sum of each row's exponentials, -inf of no key at all. None: not stored.
        key_starts: int32 [sequences + 1]: sequence i sees the tokens [key_starts[i],
            key_starts[i + 1]) of a pair `source`, without a mask; `source` has as many tokens as
            it likes, at least one. None: causal.

    Raises:
        ValueError: `key_starts` with the cache or a window.
    """
    num_heads, head_size = query.shape[1:]
    if key_starts is not None and (isinstance(source, LayerKV) or window is not None):
        raise ValueError(
            f"queries see all of a part only of fresh keys and without a window, not window "
            f"{window} and keys from {type(source).__name__}: leave key_starts out"
        )
    if isinstance(source, LayerKV):
        key, value, page = source.key, source.value, batch.block_size
        scales = source.key_scale, source.value_scale
        num_kv_heads, strides = key.shape[1], key.stride()[:3]
    else:
        num_kv_heads, page, strides = source[0].shape[1], None, (0, 0, 0)
        scales = None, None
        key, value = (
            TensorDescriptor.from_tensor(x.flatten(1), [tuning.keys, head_size]) for x in source
        )
    group = num_heads // num_kv_heads
    _prefill[(num_kv_heads * tiles.shape[0],)](
        output,
        query,
        key,
        value,
        *scales,
        batch.block_table,
        batch.rows,
        batch.lengths,
        batch.query_starts,
        tiles,
        scale * LOG2_E,
        window,
        batch.sinks if window is not None and batch.sinks > 0 else None,
        lse,
        key_starts,
        query.stride(0),
        *strides,
        batch.block_table.stride(0),
        num_kv_heads=num_kv_heads,
        GROUP=group,
        ROWS=max(tuning.rows, triton.next_power_of_2(group), MIN_ROWS),
        HEAD_SIZE=head_size,
        PAGE=page,
        TILE=tuning.keys,
        STAGES=tuning.stages,
        num_warps=tuning.warps,
    )
