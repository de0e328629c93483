"""Paged decode attention: a few new tokens a sequence against its blocks, in one launch.

A decode step does about one multiplication a byte and query head, so reading the cache
once, at the memory's full rate, is all that counts. Three ideas see to it. The query heads
that share a KV head are rows of one small matrix product, so that each key is read once
for all of them (grouped-query attention, Ainslie et al. 2023). Keys arrive through a
pipeline of asynchronous copies, and a tile's block numbers are loaded a tile ahead, since
an address that waits for the block table would stall it. And a long sequence is split over
several programs, of which the last one to finish merges their partial softmaxes.

Where drafts are verified a sequence has several new tokens. They are more rows of the same
product, each of which sees one position more than the one before it: the cache is still read
once.
"""

from __future__ import annotations

from torch import Tensor

from quire.kernels.decode_splits import FEW_SPLITS, DecodeScratch, merge_splits
from quire.kernels.runtime import jit, starts_early, tl, triton
from quire.kernels.tuning import DecodeTuning
from quire.kv.batch import AttentionBatch
from quire.kv.layer import LayerKV

LOG2_E = 1.4426950408889634
MIN_ROWS = 16  # the fewest rows of a matrix product on tensor cores
# Query numbers of a token from which on the next kernel, the output product, is let in at the end.
# On an H200 that saves 0.8 to 1.5 us a layer with 4,096 of them (8B) and costs 0.8 with 2,048
# (0.6B). A likely reason: the loads of a large weight hold up those of the merging.
WIDE = 4096
# Float32 numbers of partial results that a warp merges at once, 128 a thread. On an H200 faster
# than 1,024 for one and four sequences; more was not tried.
MERGED_AT_ONCE = 4096


@jit
def _tile_block(table, tile, length, TILE: tl.constexpr, PAGE: tl.constexpr):
    """Return the block of a tile, or of each of its positions if a tile is larger than a block.

    Behind the sequence's end it is the null block.
    """
    if TILE <= PAGE:
        return tl.load(table + tile * TILE // PAGE, mask=tile * TILE < length, other=0)
    else:
        positions = tile * TILE + tl.arange(0, TILE)[:, None]
        return tl.load(table + positions // PAGE, mask=positions < length, other=0)


@jit
def _tile(turn, sink_tiles, skipped):
    """Return which tile comes at a turn: those of the sinks, then those of the window."""
    return tl.where(turn < sink_tiles, turn, turn + skipped)


@jit
def _scale_offset(block, tile, num_kv_heads, TILE: tl.constexpr, PAGE: tl.constexpr):
    """Return where the scales of a tile's blocks are: a number, or one a position."""
    if TILE <= PAGE:
        return block.to(tl.int64) * num_kv_heads * PAGE + tile * TILE % PAGE
    else:
        return tl.reshape(block.to(tl.int64) * num_kv_heads * PAGE, [TILE])


@jit
def _own_view(positions, ends, window, sinks):
    """Return which positions [P] each row of queries sees, whose views end at `ends` [rows]."""
    own = positions[None, :] < ends[:, None]
    if window is not None:
        inside = positions[None, :] >= ends[:, None] - window
        if sinks is not None:
            inside |= positions[None, :] < sinks
        own &= inside
    return own


@jit
def _paged_decode(
    output,  # [num_tokens, num_heads, HEAD_SIZE], contiguous
    query,  # the same shape
    key,  # [num_blocks, num_kv_heads, PAGE, HEAD_SIZE], strided
    value,
    key_scale,  # float32 [num_blocks, num_kv_heads, PAGE], contiguous; None: no codes
    value_scale,
    block_table,
    rows,
    lengths,
    query_starts,
    sequences,  # [D] the sequences of this launch, one token each; None: all, TOKENS each
    partials,  # float32 [D, num_kv_heads, splits, PADDED, HEAD_SIZE]
    sums,  # float32 [D, num_kv_heads, splits, 2, PADDED]: each split's maximum and sum
    arrivals,  # int32 [D, num_kv_heads], zero before and after
    scale,  # of the scores, in units of log 2
    window,  # positions a query sees; None: all
    sinks,  # positions from the first on that it sees as well; None: none
    query_stride,
    block_stride,
    head_stride,
    offset_stride,
    table_stride,
    TOKENS: tl.constexpr,  # new tokens a sequence
    GROUP: tl.constexpr,  # query heads a KV head
    PADDED: tl.constexpr,  # the power of two above TOKENS * GROUP
    ROWS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    MIN_TILES: tl.constexpr,  # the fewest worth a program
    STAGES: tl.constexpr,
    MOST: tl.constexpr,  # splits there can be
    CHUNK: tl.constexpr,  # splits that are merged at once
    EARLY: tl.constexpr,  # see `starts_early`
    LATE: tl.constexpr,  # let the next kernel in at the end alone
):
    kv_head = tl.program_id(0)  # fastest, so that neighbouring programs read neighbouring bytes
    item = tl.program_id(1)
    split = tl.program_id(2)
    num_kv_heads = tl.num_programs(0)
    splits = tl.num_programs(2)  # the most there can be
    sequence = item if sequences is None else tl.load(sequences + item)
    token = sequence * TOKENS if sequences is None else tl.load(query_starts + sequence)
    length = tl.load(lengths + sequence)
    table = block_table + tl.load(rows + sequence).to(tl.int64) * table_stride
    # Where the view of the first new token ends; a later one's ends as much further on.
    first_end = length - (TOKENS - 1)
    first = 0 if window is None else tl.maximum(first_end - window, 0)
    first_tile = first // TILE
    sink_tiles = 0 if sinks is None else tl.minimum(tl.cdiv(sinks, TILE), first_tile)
    num_tiles = tl.cdiv(length, TILE) - first_tile + sink_tiles
    num_splits = tl.minimum(tl.maximum(num_tiles // MIN_TILES, 1), splits)
    if split >= num_splits:
        return
    begin = num_tiles * split // num_splits
    end = num_tiles * (split + 1) // num_splits

    skipped = first_tile - sink_tiles  # behind the sinks
    block = _tile_block(table, _tile(begin, sink_tiles, skipped), length, TILE, PAGE)
    # `norm_rotate`, in front, lets this kernel in only after its own wait; so lengths and tables,
    # which the step's first kernel wrote, can be read before this one. Behind a kernel that lets in
    # before it has waited they could not.
    if EARLY:
        tl.extra.cuda.gdc_wait()
    row = tl.arange(0, ROWS)
    column = tl.arange(0, HEAD_SIZE)
    later, heads = row // GROUP, kv_head * GROUP + row % GROUP
    places = heads[:, None] * HEAD_SIZE + column[None, :]
    used = (row < TOKENS * GROUP)[:, None]
    queries = query + (token + later).to(tl.int64)[:, None] * query_stride + places
    q = tl.load(queries, mask=used, other=0.0)
    # Where the positions of a tile lie in block 0; a block's own place is added in the loop.
    place = tl.arange(0, TILE)
    inside = (place % PAGE)[:, None] * offset_stride + column[None, :]
    keys = key + kv_head * head_stride + inside
    values = value + kv_head * head_stride + inside
    if key_scale is not None:
        inside_scales = kv_head * PAGE + place % PAGE
        key_scales, value_scales = key_scale + inside_scales, value_scale + inside_scales

    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, HEAD_SIZE], tl.float32)
    for turn in tl.range(begin, end, num_stages=STAGES):
        tile = _tile(turn, sink_tiles, skipped)
        offset = block.to(tl.int64) * block_stride + tile * TILE % PAGE * offset_stride
        scale_offset = _scale_offset(block, tile, num_kv_heads, TILE, PAGE)
        block = _tile_block(table, _tile(turn + 1, sink_tiles, skipped), length, TILE, PAGE)
        k = tl.load(keys + offset).to(q.dtype)
        scores = tl.dot(q, k.T, input_precision="ieee") * scale
        if key_scale is not None:  # one factor a key, hence one a column
            scores *= tl.load(key_scales + scale_offset)[None, :]
        seen = tile * TILE + place < length
        if sinks is not None:
            seen &= (tile * TILE + place >= first) | (tile * TILE + place < sinks)
        elif window is not None:
            seen &= tile * TILE + place >= first
        scores = tl.where(seen[None, :], scores, float("-inf"))
        if TOKENS > 1:
            own = _own_view(tile * TILE + place, first_end + later, window, sinks)
            scores = tl.where(own, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        base = new_maximum
        if TOKENS > 1:  # of a tile that only later ones see: -inf less -inf is no number
            base = tl.where(new_maximum > float("-inf"), new_maximum, 0.0)
        shrink = tl.exp2(maximum - base)
        weights = tl.exp2(scores - base[:, None])
        total = total * shrink + tl.sum(weights, 1)
        # A block may hold anything behind the sequence's end, and 0 · NaN is not 0.
        v = tl.load(values + offset, mask=seen[:, None], other=0.0)
        mixed = mixed * shrink[:, None]
        if value_scale is not None:
            weights *= tl.load(value_scales + scale_offset, mask=seen, other=0.0)[None, :]
        mixed = tl.dot(weights.to(q.dtype), v.to(q.dtype), mixed, input_precision="ieee")
        maximum = new_maximum

    if EARLY and not LATE:  # not before: the next kernel's programs would take places unevenly
        tl.extra.cuda.gdc_launch_dependents()
    out = output + token.to(tl.int64) * num_kv_heads * GROUP * HEAD_SIZE
    if num_splits == 1:
        # A padded sequence has no key at all: its total is 0 and its output too.
        tokens = later[:, None] * num_kv_heads * GROUP * HEAD_SIZE
        tl.store(out + tokens + places, mixed / tl.where(total > 0, total, 1.0)[:, None], mask=used)
        return
    unit = item * num_kv_heads + kv_head
    parts = partials + unit.to(tl.int64) * splits * PADDED * HEAD_SIZE
    stats = sums + unit.to(tl.int64) * splits * 2 * PADDED
    inside = row[:, None] * HEAD_SIZE + column[None, :]
    kept = row < PADDED
    tl.store(parts + split * PADDED * HEAD_SIZE + inside, mixed, mask=kept[:, None])
    tl.store(stats + split * 2 * PADDED + row, maximum, mask=kept)
    tl.store(stats + split * 2 * PADDED + PADDED + row, total, mask=kept)
    tl.debug_barrier()  # every thread's stores are done before one thread announces them
    if tl.atomic_add(arrivals + unit, 1, sem="acq_rel") < num_splits - 1:
        return
    tl.store(arrivals + unit, 0)  # for the next layer
    merged = merge_splits(parts, stats, num_splits, PADDED, HEAD_SIZE, MOST, CHUNK)
    row = tl.arange(0, PADDED)
    heads = (row // GROUP * num_kv_heads + kv_head) * GROUP + row % GROUP
    inside = heads[:, None] * HEAD_SIZE + column[None, :]
    tl.store(out + inside, merged, mask=(row < TOKENS * GROUP)[:, None])


def paged_decode(
    output: Tensor,
    query: Tensor,
    kv: LayerKV,
    batch: AttentionBatch,
    sequences: Tensor | None,
    scratch: DecodeScratch,
    scale: float,
    window: int | None,
    tuning: DecodeTuning,
) -> None:
    """Write the attention of sequences with few new tokens into their tokens of `output`.

    Args:
        output: [num_tokens, num_heads, head_size], contiguous.
        query: the same shape; tokens may be strided.
        sequences: int32 [D], the sequences to attend for, one token each; None: all R, where
            each has `batch.tokens_per_sequence`.
    """
    num_kv_heads, page, head_size = kv.key.shape[1:]
    group = query.shape[1] // num_kv_heads
    tokens = batch.tokens_per_sequence if sequences is None else 1
    padded = triton.next_power_of_2(tokens * group)
    early = starts_early(query)
    items = batch.lengths.shape[0] if sequences is None else sequences.shape[0]
    most = max(triton.next_power_of_2(scratch.splits), FEW_SPLITS)
    _paged_decode[(num_kv_heads, items, scratch.splits)](
        output,
        query,
        kv.key,
        kv.value,
        kv.key_scale,
        kv.value_scale,
        batch.block_table,
        batch.rows,
        batch.lengths,
        batch.query_starts,
        sequences,
        scratch.partials,
        scratch.sums,
        scratch.arrivals,
        scale * LOG2_E,
        window,
        batch.sinks if window is not None and batch.sinks > 0 else None,
        query.stride(0),
        *kv.key.stride()[:3],
        batch.block_table.stride(0),
        TOKENS=tokens,
        GROUP=group,
        PADDED=padded,
        ROWS=max(padded, MIN_ROWS),
        HEAD_SIZE=head_size,
        PAGE=page,
        TILE=tuning.tile,
        MIN_TILES=max(tuning.min_keys // tuning.tile, 1),
        STAGES=tuning.stages,
        MOST=most,
        CHUNK=min(max(MERGED_AT_ONCE * tuning.warps // (padded * head_size), 1), most),
        EARLY=early,
        LATE=query.shape[1] * head_size >= WIDE,
        num_warps=tuning.warps,
        launch_pdl=early,
    )
