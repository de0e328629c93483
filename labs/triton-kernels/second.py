# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# Another solution, written from the specification: rows in pieces, a word's slots as an axis,
# tokens as the left operand, all query heads of a KV head together, pairs taken apart by a reshape.

# %% task="norm"
# task: norm
import triton
import triton.language as tl

PIECE = 64


@triton.jit
def summed(x, residual, place, there):
    one = tl.load(x + place, mask=there, other=0).to(tl.float32)
    return one + tl.load(residual + place, mask=there, other=0).to(tl.float32)


@triton.jit
def add_norm(
    x, residual, weight, out, size, stride,
    ### BEGIN VARIANT rope
    group,
    ### END VARIANT
    EPS: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    row = tl.cast(tl.program_id(0), tl.int64) * stride
    lane = tl.arange(0, PIECE)
    first, last = 0, size
    ### BEGIN VARIANT rope
    first = tl.program_id(1) * group
    last = first + group
    ### END VARIANT
    squares = tl.zeros((PIECE,), tl.float32)
    for begin in range(first, last, PIECE):
        column = begin + lane
        total = summed(x, residual, row + column, column < last)
        ### BEGIN VARIANT words
        total = total.to(tl.float16).to(tl.float32)
        ### END VARIANT
        squares += total * total
    mean = tl.sum(squares, 0) / (last - first)
    ### BEGIN VARIANT words rope
    root = tl.sqrt(mean + EPS)
    ### END VARIANT
    ### BEGIN VARIANT sinks
    root = tl.sqrt(mean) + EPS
    ### END VARIANT
    for begin in range(first, last, PIECE):
        column = begin + lane
        there = column < last
        total = summed(x, residual, row + column, there)
        tl.store(residual + row + column, total.to(tl.float16), mask=there)
        factor = tl.load(weight + column, mask=there, other=0).to(tl.float32)
        ### BEGIN VARIANT words
        total = total.to(tl.float16).to(tl.float32)
        factor += 1
        ### END VARIANT
        tl.store(out + row + column, (total / root * factor).to(tl.float16), mask=there)


def add_norm_launch(
    rows: int, size: int, stride: int, eps: float,
    ### BEGIN VARIANT rope
    group: int,
    ### END VARIANT
) -> list[dict]:  # fmt: skip
    grid = (rows,)
    ### BEGIN VARIANT rope
    grid = (rows, size // group)
    ### END VARIANT
    made = {"kernel": "add_norm", "grid": grid, "constants": {"EPS": eps, "PIECE": PIECE}}
    return [{**made, "num_warps": 2, "num_stages": 1}]


# %% task="gemv"
# task: gemv
import triton
import triton.language as tl


@triton.jit
def gemv(
    y, n, k, words_stride, words, x, scales,
    ### BEGIN VARIANT words sinks
    zeros,
    ### END VARIANT
    ### BEGIN VARIANT rope
    offsets,
    ### END VARIANT
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < n
    word, slot = tl.arange(0, WIDTH)[:, None], tl.arange(0, 8)[None, :]
    groups = tl.cdiv(k, 8 * WIDTH)
    ### BEGIN VARIANT words
    offset, low = slot * WIDTH + word, 4 * (7 - slot)
    ### END VARIANT
    ### BEGIN VARIANT sinks
    offset, low = 8 * word + 2 * (slot & 3) + (slot >> 2), 4 * slot
    ### END VARIANT
    ### BEGIN VARIANT rope
    offset, low = 8 * word + slot, 4 * (7 - slot)
    ### END VARIANT
    total = tl.zeros((ROWS,), tl.float32)
    for g in range(groups):
        place = tl.cast(row, tl.int64)[:, None] * words_stride + g * WIDTH
        held = tl.load(words + place + tl.arange(0, WIDTH)[None, :], mask=there[:, None], other=0)
        codes = (held[:, :, None] >> low[None, :, :]) & 0xF
        column = g * 8 * WIDTH + offset
        value = tl.load(x + column, mask=column < k, other=0).to(tl.float32)
        scale = tl.load(scales + row * groups + g, mask=there, other=0).to(tl.float32)
        ### BEGIN VARIANT words sinks
        zero = tl.load(zeros + row * tl.cdiv(groups, 8) + g // 8, mask=there, other=0)
        zero = (zero >> (g % 8) * 4) & 0xF
        ### END VARIANT
        ### BEGIN VARIANT words
        zero = tl.where(zero == 15, 0, zero + 1)
        ### END VARIANT
        ### BEGIN VARIANT sinks
        zero = 15 - zero
        ### END VARIANT
        ### BEGIN VARIANT rope
        codes = tl.where(codes < 8, codes, tl.where(codes == 8, -8, 8 - codes))
        offsets_of = tl.load(offsets + row * groups + g, mask=there, other=0).to(tl.float32)
        ### END VARIANT
        sums = tl.sum(tl.sum(codes.to(tl.float32) * value[None, :, :], 2), 1)
        ### BEGIN VARIANT words sinks
        total += (sums - zero.to(tl.float32) * tl.sum(tl.sum(value, 1), 0)) * scale
        ### END VARIANT
        ### BEGIN VARIANT rope
        total += sums * scale + offsets_of * tl.sum(tl.sum(value, 1), 0)
        ### END VARIANT
    tl.store(y + row, total.to(tl.float16), mask=there)


def gemv_launch(n: int, k: int, group: int, words_stride: int) -> list[dict]:
    made = {
        "kernel": "gemv",
        "grid": ((n + 7) // 8,),
        "constants": {"ROWS": 8, "WIDTH": group // 8},
    }
    return [{**made, "num_warps": 1, "num_stages": 2}]


# %% task="split"
# task: split
import triton
import triton.language as tl


@triton.jit
def partial(weight, x, partials, n, k, splits, rows, WIDE: tl.constexpr):
    token, output = tl.arange(0, 64), tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    mine, lane = tl.program_id(0), tl.arange(0, 64)
    result = tl.zeros((64, WIDE), tl.float32)
    blocks = tl.cdiv(k, 64)
    for block in range(mine, blocks, splits):
        column = block * 64 + lane
        there = (token[:, None] < rows) & (column[None, :] < k)
        a = tl.load(x + token[:, None] * k + column[None, :], mask=there, other=0)
        there = (column[:, None] < k) & (output[None, :] < n)
        b = tl.load(weight + output[None, :] * k + column[:, None], mask=there, other=0)
        result += tl.dot(a, b)
    place = (mine * rows + token[:, None]) * n + output[None, :]
    tl.store(partials + place, result, mask=(token[:, None] < rows) & (output[None, :] < n))


@triton.jit
def combine(partials, y, n, rows, splits, WIDE: tl.constexpr):
    output = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    place = tl.program_id(0) * n + output
    result = tl.load(partials + place, mask=output < n, other=0)
    for split in range(1, splits):
        result += tl.load(partials + split * rows * n + place, mask=output < n, other=0)
    tl.store(y + place, result.to(tl.float16), mask=output < n)


def product_launch(rows: int, n: int, k: int, splits: int) -> list[dict]:
    shared = {"constants": {"WIDE": 32}, "num_warps": 4}
    across = triton.cdiv(n, 32)
    return [
        {"kernel": "partial", "grid": (splits, across), "num_stages": 2, **shared},
        {"kernel": "combine", "grid": (rows, across), "num_stages": 1, **shared},
    ]


# %% task="deep"
# task: deep
import triton
import triton.language as tl

### BEGIN VARIANT words


@triton.jit
def deep(
    x, y, words, words_stride, scales, zeros, columns, values, exceptions, n, k,
    GROUP: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """One program a row: exceptions are taken out of the codes' sum where a column is listed."""
    row = tl.program_id(0)
    groups = tl.cdiv(k, GROUP)
    lane = tl.arange(0, GROUP)
    listed = tl.arange(0, MOST)
    column = tl.load(columns + row * exceptions + listed, mask=listed < exceptions, other=-1)
    value = tl.load(values + row * exceptions + listed, mask=column >= 0, other=0).to(tl.float32)
    at = tl.load(x + column, mask=column >= 0, other=0).to(tl.float32)
    total = tl.sum(value * at, 0)
    for g in range(groups):
        here = g * GROUP + lane
        bit = lane * 3
        base = words + tl.cast(row, tl.int64) * words_stride + g * (3 * GROUP // 32)
        low = tl.load(base + bit // 32, mask=here < k, other=0)
        last = bit // 32 + 1 < 3 * GROUP // 32
        high = tl.load(base + bit // 32 + 1, mask=(here < k) & last, other=0)
        both = (low.to(tl.int64) & 0xFFFFFFFF) | (high.to(tl.int64) << 32)
        code = ((both >> (bit % 32).to(tl.int64)) & 7).to(tl.float32)
        weight = (code - tl.load(zeros + row * groups + g)) * tl.load(scales + row * groups + g)
        is_listed = tl.sum((here[:, None] == column[None, :]).to(tl.int32), 1) > 0
        weight = tl.where(is_listed | (here >= k), 0.0, weight)
        total += tl.sum(weight * tl.load(x + here, mask=here < k, other=0).to(tl.float32), 0)
    tl.store(y + row, total.to(tl.float16))


def deep_launch(n: int, k: int, group: int, words_stride: int, exceptions: int) -> list[dict]:
    constants = {"GROUP": group, "MOST": triton.next_power_of_2(exceptions)}
    made = {"kernel": "deep", "grid": (n,), "constants": constants}
    return [{**made, "num_warps": 1, "num_stages": 1}]


### END VARIANT
### BEGIN VARIANT sinks


@triton.jit
def deep(
    query, key_cache, value_cache, workspace, block_table, lengths, seqs, heads, kv_heads, table,
    splits, size: tl.constexpr, page: tl.constexpr, SCALE: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """One program a sequence, a KV head and a split, with all of its query heads as rows."""
    seq, kv, split = tl.program_id(2), tl.program_id(1), tl.program_id(0)
    many = heads // kv_heads
    length = tl.load(lengths + seq)
    pages = tl.cdiv(length, page)
    share = tl.cdiv(pages, splits)
    mine, dim, slot = tl.arange(0, HEADS), tl.arange(0, size), tl.arange(0, page)
    row = seq * heads + kv * many + mine
    place = row[:, None] * size + dim[None, :]
    q = tl.load(query + place, mask=(mine < many)[:, None], other=0).to(tl.float32)
    largest = tl.full((HEADS,), -1.0e30, tl.float32)
    sums = tl.zeros((HEADS,), tl.float32)
    result = tl.zeros((HEADS, size), tl.float32)
    for number in range(split * share, tl.minimum(split * share + share, pages)):
        block = tl.load(block_table + seq * table + number)
        there = number * page + slot < length
        at = ((tl.cast(block, tl.int64) * page + slot) * kv_heads + kv)[:, None] * size + dim[
            None, :
        ]
        keys = tl.load(key_cache + at, mask=there[:, None], other=0).to(tl.float32)
        values = tl.load(value_cache + at, mask=there[:, None], other=0).to(tl.float32)
        scores = tl.sum(q[:, None, :] * keys[None, :, :], 2) * SCALE
        scores = tl.where(there[None, :], scores, -1.0e30)
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.where(there[None, :], tl.exp(scores - larger[:, None]), 0.0)
        shrink = tl.exp(largest - larger)
        result = result * shrink[:, None] + tl.sum(weights[:, :, None] * values[None, :, :], 1)
        sums = sums * shrink + tl.sum(weights, 1)
        largest = larger
    left = workspace + (split * seqs * heads + row) * (size + 2)
    tl.store(left[:, None] + 2 + dim[None, :], result, mask=(mine < many)[:, None])
    tl.store(left, largest, mask=mine < many)
    tl.store(left + 1, sums, mask=mine < many)


@triton.jit
def joined(workspace, sinks, out, seqs, heads, splits, size: tl.constexpr):
    row = tl.program_id(0)
    dim = tl.arange(0, size)
    largest = tl.maximum(tl.load(sinks + row % heads), -1.0e30)
    for split in range(splits):
        left = workspace + (split * seqs * heads + row) * (size + 2)
        largest = tl.maximum(largest, tl.load(left))
    sums = tl.exp(tl.load(sinks + row % heads) - largest)
    result = tl.zeros((size,), tl.float32)
    for split in range(splits):
        left = workspace + (split * seqs * heads + row) * (size + 2)
        factor = tl.exp(tl.load(left) - largest)
        result += factor * tl.load(left + 2 + dim)
        sums += factor * tl.load(left + 1)
    result = result / tl.where(sums > 0, sums, 1.0)
    tl.store(out + row * size + dim, result.to(tl.float16))


def deep_launch(
    seqs: int, heads: int, kv_heads: int, size: int, page: int, table: int, splits: int,
    scale: float,
) -> list[dict]:  # fmt: skip
    rows = triton.next_power_of_2(heads // kv_heads)
    constants = {"size": size, "page": page, "SCALE": scale, "HEADS": rows}
    return [
        {
            "kernel": "deep", "grid": (splits, kv_heads, seqs), "constants": constants,
            "num_warps": 4, "num_stages": 1,
        },
        {
            "kernel": "joined", "grid": (seqs * heads,), "constants": {"size": size},
            "num_warps": 1, "num_stages": 1,
        },
    ]  # fmt: skip


### END VARIANT
### BEGIN VARIANT rope


@triton.jit
def normed(qkv, factors, at, EPS: tl.constexpr, SIZE: tl.constexpr):
    dim = tl.arange(0, SIZE)
    head = tl.load(qkv + at + dim).to(tl.float32)
    mean = tl.sum(head * head, 0) / SIZE
    return head / tl.sqrt(mean + EPS) * tl.load(factors + dim).to(tl.float32)


@triton.jit
def turned(head, angles, rotary, SIZE: tl.constexpr):
    pair = tl.arange(0, SIZE // 2)
    a, b = tl.split(tl.reshape(head, (SIZE // 2, 2)))
    there = 2 * pair < rotary
    cos = tl.load(angles + pair, mask=there, other=1.0)
    sin = tl.load(angles + rotary // 2 + pair, mask=there, other=0.0)
    return tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (SIZE,))


@triton.jit
def deep(
    qkv, query, key_cache, value_cache, query_norm, key_norm, table, positions, slots, heads,
    kv_heads, rotary, EPS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One program a token."""
    token = tl.program_id(0)
    dim = tl.arange(0, SIZE)
    at = token * (heads + 2 * kv_heads) * SIZE
    slot = tl.load(slots + token)
    angles = table + tl.load(positions + token) * rotary
    for head in range(heads):
        result = turned(normed(qkv, query_norm, at + head * SIZE, EPS, SIZE), angles, rotary, SIZE)
        tl.store(query + (token * heads + head) * SIZE + dim, result.to(tl.float16))
    if slot != -1:
        for head in range(kv_heads):
            place = (slot * kv_heads + head) * SIZE + dim
            key_at = at + (heads + head) * SIZE
            result = turned(normed(qkv, key_norm, key_at, EPS, SIZE), angles, rotary, SIZE)
            tl.store(key_cache + place, result.to(tl.float16))
            value = tl.load(qkv + at + (heads + kv_heads + head) * SIZE + dim)
            tl.store(value_cache + place, value)


def deep_launch(
    tokens: int, heads: int, kv_heads: int, size: int, rotary: int, eps: float
) -> list[dict]:  # fmt: skip
    made = {"kernel": "deep", "grid": (tokens,), "constants": {"EPS": eps, "SIZE": size}}
    return [{**made, "num_warps": 1, "num_stages": 1}]


### END VARIANT

# %% task="step"
# task: step


def ledger(launches: list[dict], processors: int, bandwidth: float, overhead: float) -> dict:
    moved = [(sum(one["read"].values()), sum(one["written"].values())) for one in launches]
    names = list(dict.fromkeys(one["kernel"] for one in launches))
    by_kernel = dict.fromkeys(names, 0)
    for one, pair in zip(launches, moved, strict=True):
        by_kernel[one["kernel"]] += sum(pair)
    times = [sum(pair) / bandwidth for pair in moved]
    seconds = float(sum(max(overhead, taken) for taken in times))
    by_bytes = sum(taken for taken in times if taken > overhead)
    few = [one["kernel"] for one in launches if one["programs"] < processors]
    return {
        "read": sum(pair[0] for pair in moved),
        "written": sum(pair[1] for pair in moved),
        "by_kernel": by_kernel,
        "idle": list(dict.fromkeys(few)),
        "seconds": seconds,
        "bound": "bytes" if 2 * by_bytes > seconds else "launches",
    }
