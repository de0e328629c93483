"""Prefill attention on Hopper: one warp copies, two groups of four warps multiply.

`quire.kernels.prefill` leaves to Triton's compiler when to copy, what to wait for and in which
order products run. Here that is written out, in Gluon, after FlashAttention-3 (Shah et al. 2024;
page "Below Triton"). A warp copies tiles of keys and values into rings of buffers by TMA,
a whole tile at a time or block by block of the cache. Each group owns 64 rows, pairs of token and
query head of one KV head. While the softmax of a group runs, its product with the values of the
tile before is in flight, and then the other group's products. One program a multiprocessor takes
pieces of work in turns, so that the copies of the next piece run under the end of this one.
"""

from __future__ import annotations

from functools import partial

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from quire.kernels.rings import acquire, arrived, make_ring, release
from quire.kernels.runtime import gluon_jit

# Triton 3.9 has a new name for it.
copy_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
HEAD_SIZE = gl.constexpr(128)
KEYS = gl.constexpr(128)  # in a tile
STAGES = gl.constexpr(2)  # tiles of keys, of values and of queries in shared memory
GROUPS = gl.constexpr(2)  # of four warps
ROWS = gl.constexpr(64)  # of a group, as many as a `wgmma` takes
# Stands for a block behind a sequence's end. Scores there are masked and values cleared, so what is
# copied does not matter. Times 8 or 16 it lies far behind any cache, where TMA reads zeros; times
# 32, in 32 bits, below 0, where it does too; times 64 or 128 it is slot 0.
NO_BLOCK = gl.constexpr(1 << 26)
SWIZZLED = gl.constexpr(gl.NVMMASharedLayout(128, 16, rank=2))
SWIZZLED_HEADS = gl.constexpr(gl.NVMMASharedLayout(128, 16, rank=3))
SCORES = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))
ROW = gl.constexpr(gl.SliceLayout(1, SCORES.value))
COLUMN = gl.constexpr(gl.SliceLayout(0, SCORES.value))
WEIGHTS = gl.constexpr(gl.DotOperandLayout(0, SCORES.value, 2))  # stay in registers
BLOCKED = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))


@gluon_jit
def _fetch(turn, num_work, tiles, num_kv_heads: gl.constexpr):
    """Return (KV head, sequence, first token) of this program's piece of work number `turn`.

    Pieces are dealt out forwards and backwards by turns, for a sequence's long ones come first.
    One turn past a program's last it is a piece of another's, which is read and not used.
    """
    wide = gl.num_programs(0)
    program = gl.program_id(0)
    if turn % 2 == 1:
        program = gl.minimum(wide, num_work - turn * wide) - 1 - program
    work = gl.minimum(turn * wide + program, num_work - 1)
    tile = work // num_kv_heads
    return work % num_kv_heads, gl.load(tiles + tile * 2), gl.load(tiles + tile * 2 + 1)


@gluon_jit
def _extent(sequence, query_starts, lengths, PAGE: gl.constexpr):
    """Return a sequence's first token in the step, its number of new tokens, and its length."""
    query_start = gl.load(query_starts + sequence)
    num_new = gl.load(query_starts + sequence + 1) - query_start
    length = num_new if PAGE is None else gl.load(lengths + sequence)
    return query_start, num_new, length


@gluon_jit
def _span(first_token, num_new, length, GROUP: gl.constexpr):
    """Return the number of key tiles, and how many of the first all rows see in full.

    The last one never counts as such: it is where what lies behind the sequence's end is masked.
    """
    first = length - num_new + first_token
    last = gl.minimum(first + GROUPS * ROWS // GROUP, length)
    num_tiles = (last + KEYS - 1) // KEYS
    return num_tiles, gl.minimum((first + 1) // KEYS, num_tiles - 1)


@gluon_jit
def _blocks(table, start, length, PAGE: gl.constexpr):
    """Return the first slot of each block of positions [start, start + KEYS): a tuple."""
    slots = ()
    if PAGE is not None:
        for i in gl.static_range(KEYS // PAGE):
            page = start // PAGE + i
            block = gl.load(table + page, mask=page * PAGE < length, other=NO_BLOCK)
            slots += (block * PAGE,)  # type: ignore[assignment]
    return slots


@gluon_jit
def _copy(source, ring, n, place, slots, column, PAGE: gl.constexpr):
    """Copy a tile of keys or values into buffer n of a ring: from `place` on, or block by block."""
    buffer, full = acquire(ring, n, KEYS * HEAD_SIZE * 2)
    if PAGE is None:
        copy_tile(source, [place, column], full, buffer)
    else:
        for i in gl.static_range(KEYS // PAGE):
            copy_tile(source, [slots[i], column], full, buffer.slice(i * PAGE, PAGE))


@gluon_jit
def _produce(query, key, value, block_table, rows, lengths, query_starts, tiles, table_stride,
             num_work, queries, keys, values, num_kv_heads: gl.constexpr, GROUP: gl.constexpr,
             PAGE: gl.constexpr):  # fmt: skip
    """The copying warp: the queries of each piece of work, then its keys, the last tile first."""
    n = 0
    for turn in range((num_work - 1 - gl.program_id(0)) // gl.num_programs(0) + 1):
        kv_head, sequence, first_token = _fetch(turn, num_work, tiles, num_kv_heads)
        query_start, num_new, length = _extent(sequence, query_starts, lengths, PAGE)
        num_tiles, _ = _span(first_token, num_new, length, GROUP)
        table = block_table
        if PAGE is not None:
            table += gl.load(rows + sequence).to(gl.int64) * table_stride
        for group in gl.static_range(GROUPS):
            buffer, full = acquire(queries, turn * GROUPS + group, ROWS * HEAD_SIZE * 2)
            token = query_start + first_token + group * (ROWS // GROUP)
            copy_tile(query, [token, kv_head * GROUP, 0], full, buffer)
        for i in range(num_tiles):
            start = (num_tiles - 1 - i) * KEYS
            slots = _blocks(table, start, length, PAGE)  # read before there is room: no one waits
            _copy(key, keys, n, query_start + start, slots, kv_head * HEAD_SIZE, PAGE)
            _copy(value, values, n, query_start + start, slots, kv_head * HEAD_SIZE, PAGE)
            n += 1


@gluon_jit
def _softmax(scores, maximum, total, start, positions, scale, MASKED: gl.constexpr,
             dtype: gl.constexpr):  # fmt: skip
    """Return a tile's weights [ROWS, KEYS], the running maximum and sum, each [ROWS], and `shrink`.

    `scores` [ROWS, KEYS] are products as they come; times `scale`, which is positive, they are in
    units of log 2. What was summed before is to be multiplied by `shrink` [ROWS].
    """
    if MASKED:
        place = start + gl.arange(0, KEYS, COLUMN)
        scores = gl.where(place[None, :] <= positions[:, None], scores, float("-inf"))
    new_maximum = gl.maximum(maximum, gl.max(scores, 1) * scale)
    base = new_maximum
    if MASKED:  # a row that has seen no key yet has no maximum to go by
        base = gl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    weights = gl.exp2(scores * scale - base[:, None])
    shrink = gl.exp2(maximum - base)
    total = total * shrink + gl.sum(weights, 1)
    return gl.convert_layout(weights.to(dtype), WEIGHTS), new_maximum, total, shrink


@gluon_jit
def _begin_scores(q, keys, n, turns, group: gl.constexpr):
    """Wait for this group's turn at the tensor cores, then begin the scores of tile n."""
    first: gl.constexpr = 1 - group  # group 0 has the first turn: its first wait lets through
    mbarrier.wait(turns.index(group), n & 1 ^ first)
    k = arrived(keys, n).permute([1, 0])
    zeros = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
    return warpgroup_mma(q, k, zeros, use_acc=False, is_async=True)


# docs: step begin
@gluon_jit
def _step(q, weights, mixed, maximum, total, n, start, positions, scale, keys, values, turns,
          group: gl.constexpr, MASKED: gl.constexpr):  # fmt: skip
    """The scores of tile n and their softmax, over the product of weights and values n - 1."""
    scores = _begin_scores(q, keys, n, turns, group)
    mixed = warpgroup_mma(weights, arrived(values, n - 1), mixed, is_async=True)
    mbarrier.arrive(turns.index(1 - group), count=1)  # the other group's turn
    scores = warpgroup_mma_wait(1, [scores])
    release(keys, n)
    new_weights, maximum, total, shrink = _softmax(
        scores, maximum, total, start, positions, scale, MASKED, q.dtype
    )
    # It has come long ago. But this wait ends a basic block: without it NVIDIA's assembler puts
    # the next one before the softmax, and the softmax runs under no product of its own group.
    arrived(values, n - 1)
    mixed, weights, new_weights = warpgroup_mma_wait(0, [mixed, weights, new_weights])
    release(values, n - 1)
    return new_weights, mixed * shrink[:, None], maximum, total


# docs: step end
@gluon_jit
def _clear(values, n, first):
    """Zero the rows of tile n from `first` on.

    Both groups do it, each before its own product; in rows before `first` a store writes what is
    there, so that neither disturbs the other.
    """
    buffer = arrived(values, n)
    row = gl.arange(0, KEYS, gl.SliceLayout(1, BLOCKED))
    buffer.store(gl.where(row[:, None] < first, buffer.load(BLOCKED), 0.0))
    fence_async_shared()


@gluon_jit
def _consume(group: gl.constexpr, output, lengths, query_starts, tiles, scale, num_work, queries,
             keys, values, turns, num_kv_heads: gl.constexpr, GROUP: gl.constexpr,
             PAGE: gl.constexpr):  # fmt: skip
    """A group of four warps: 64 rows of each piece of work."""
    row = gl.arange(0, ROWS, ROW)
    column = gl.arange(0, HEAD_SIZE, COLUMN)
    n = 0  # tiles of keys so far
    kv_head, sequence, first_token = _fetch(0, num_work, tiles, num_kv_heads)
    query_start, num_new, length = _extent(sequence, query_starts, lengths, PAGE)
    for turn in range((num_work - 1 - gl.program_id(0)) // gl.num_programs(0) + 1):
        # What comes next is read in two steps, each far from its use, so that nothing waits.
        next_head, sequence, next_token = _fetch(turn + 1, num_work, tiles, num_kv_heads)
        num_tiles, num_whole = _span(first_token, num_new, length, GROUP)
        token = first_token + group * (ROWS // GROUP) + row // GROUP
        positions = length - num_new + token
        maximum = gl.full([ROWS], float("-inf"), gl.float32, ROW)
        total = gl.zeros([ROWS], gl.float32, ROW)
        mixed = gl.zeros([ROWS, HEAD_SIZE], gl.float32, SCORES)
        q = arrived(queries, turn * GROUPS + group).reshape([ROWS, HEAD_SIZE])

        start = (num_tiles - 1) * KEYS
        scores = _begin_scores(q, keys, n, turns, group)
        mbarrier.arrive(turns.index(1 - group), count=1)
        scores = warpgroup_mma_wait(0, [scores])
        release(keys, n)
        weights, maximum, total, _ = _softmax(
            scores, maximum, total, start, positions, scale, True, q.dtype
        )
        if start + KEYS > length:  # behind the end may lie anything, and 0 · NaN is not 0
            _clear(values, n, length - start)
        num_masked = num_tiles - num_whole
        for i in range(1, num_masked):
            weights, mixed, maximum, total = _step(
                q, weights, mixed, maximum, total, n + i, start - i * KEYS, positions, scale,
                keys, values, turns, group, True,
            )  # fmt: skip
        for i in range(num_masked, num_tiles):
            weights, mixed, maximum, total = _step(
                q, weights, mixed, maximum, total, n + i, start - i * KEYS, positions, scale,
                keys, values, turns, group, False,
            )  # fmt: skip
        n += num_tiles
        release(queries, turn * GROUPS + group)
        next_start, next_new, next_length = _extent(sequence, query_starts, lengths, PAGE)
        mixed = warpgroup_mma(weights, arrived(values, n - 1), mixed, is_async=True)
        mixed, weights = warpgroup_mma_wait(0, [mixed, weights])
        release(values, n - 1)

        mixed = mixed / total[:, None]
        head = kv_head * GROUP + row % GROUP
        place = ((query_start + token).to(gl.int64) * num_kv_heads * GROUP + head) * HEAD_SIZE
        gl.store(output + place[:, None] + column[None, :], mixed.to(q.dtype),
                 mask=(token < num_new)[:, None])  # fmt: skip
        kv_head, first_token = next_head, next_token
        query_start, num_new, length = next_start, next_new, next_length


@partial(gluon_jit, any_number=["num_work"])
def _prefill(
    output,  # [num_tokens, num_heads, HEAD_SIZE], contiguous
    query,  # a descriptor of tiles [ROWS // GROUP, GROUP, HEAD_SIZE] of the same shape
    key,  # a descriptor of tiles of [slots, num_kv_heads * HEAD_SIZE], a block each; fresh: of
    value,  # [num_tokens, num_kv_heads * HEAD_SIZE], KEYS tokens each, and PAGE is None
    block_table,
    rows,
    lengths,
    query_starts,
    tiles,  # int32 [number of tiles, 2]: sequence, first token of the tile within its chunk
    scale,  # of the scores, in units of log 2
    table_stride,
    num_work,  # tiles times KV heads
    num_kv_heads: gl.constexpr,
    GROUP: gl.constexpr,  # query heads a KV head
    PAGE: gl.constexpr,
):
    queries = make_ring(
        query.dtype, [STAGES * GROUPS, ROWS // GROUP, GROUP, HEAD_SIZE], SWIZZLED_HEADS, 1
    )
    keys = make_ring(key.dtype, [STAGES, KEYS, HEAD_SIZE], SWIZZLED, GROUPS)
    values = make_ring(key.dtype, [STAGES, KEYS, HEAD_SIZE], SWIZZLED, GROUPS)
    turns = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
    for group in gl.static_range(GROUPS):
        mbarrier.init(turns.index(group), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_consume, (0, output, lengths, query_starts, tiles, scale, num_work, queries, keys,
                        values, turns, num_kv_heads, GROUP, PAGE)),
            (_consume, (1, output, lengths, query_starts, tiles, scale, num_work, queries, keys,
                        values, turns, num_kv_heads, GROUP, PAGE)),
            (_produce, (query, key, value, block_table, rows, lengths, query_starts, tiles,
                        table_stride, num_work, queries, keys, values, num_kv_heads, GROUP, PAGE)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
