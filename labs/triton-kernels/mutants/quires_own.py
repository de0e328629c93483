# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# What quire does, brought into the shape that the lab asks for.


# %% task="norm"
# task: norm
import triton
import triton.language as tl


@triton.jit
def add_norm(
    x, residual, weight, out, EPS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """`_rms_norm_kernel`: one program a row, contiguous; the sum stays in float32."""
    row = tl.program_id(0).to(tl.int64) * SIZE
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    scale = tl.load(weight + column, inside, other=0.0).to(tl.float32)
    values = tl.load(x + row + column, inside, other=0.0).to(tl.float32)
    values += tl.load(residual + row + column, inside, other=0.0).to(tl.float32)
    tl.store(residual + row + column, values.to(tl.float16), inside)
    scale *= tl.rsqrt(tl.sum(values * values) / SIZE + EPS)
    tl.store(out + row + column, (values * scale).to(tl.float16), inside)


def add_norm_launch(rows: int, size: int, stride: int, eps: float, group: int = 0) -> list[dict]:
    """A program a row."""
    constants = {"EPS": eps, "SIZE": size, "BLOCK": triton.next_power_of_2(size)}
    return [
        {
            "kernel": "add_norm", "grid": (rows,), "constants": constants, "num_warps": 4,
            "num_stages": 1,
        }
    ]  # fmt: skip


# %% task="gemv"
# task: gemv
import triton
import triton.language as tl


@triton.jit
def gemv(
    x, words, scales,
    ### BEGIN VARIANT words sinks
    zeros,
    ### END VARIANT
    ### BEGIN VARIANT rope
    offsets,
    ### END VARIANT
    y, n, k, words_stride, GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Planar words from the lowest bits, zeros as they are, whole groups."""
    WORDS: tl.constexpr = GROUP // 8
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    needed = row < n
    word = tl.arange(0, WORDS)
    groups = (k + GROUP - 1) // GROUP
    at = words + row.to(tl.int64)[:, None] * words_stride + word[None, :]
    total = tl.zeros((ROWS,), tl.float32)
    for group in range(groups):
        codes = tl.load(at + group * WORDS, needed[:, None], other=0)
        scale = tl.load(scales + row * groups + group, needed, other=0.0).to(tl.float32)
        ### BEGIN VARIANT words sinks
        zero = tl.load(zeros + row * ((groups + 7) // 8) + group // 8, needed, other=0)
        zero = ((zero >> (4 * (group % 8))) & 15).to(tl.float32)
        ### END VARIANT
        ### BEGIN VARIANT rope
        zero = tl.full((ROWS,), 8.0, tl.float32)
        ### END VARIANT
        for slot in tl.static_range(8):
            column = group * GROUP + slot * WORDS + word
            value = tl.load(x + column, column < k, other=0.0).to(tl.float32)
            code = ((codes >> (4 * slot)) & 15).to(tl.float32)
            total += tl.sum((code - zero[:, None]) * value[None, :], 1) * scale
    tl.store(y + row, total.to(tl.float16), needed)


def gemv_launch(n: int, k: int, group: int, words_stride: int) -> list[dict]:
    """A program 16 rows."""
    return [
        {
            "kernel": "gemv", "grid": (triton.cdiv(n, 16),),
            "constants": {"GROUP": group, "ROWS": 16}, "num_warps": 2, "num_stages": 2,
        }
    ]  # fmt: skip


# %% task="split"
# task: split
import triton
import triton.language as tl


@triton.jit
def partial(
    x, weight, partials, rows, n, k, splits, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """A split is a run of neighbouring blocks, as in `_int4_kernel`."""
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)[:, None]
    split = tl.program_id(1)
    row = tl.arange(0, ROWS)[None, :]
    share = ((k + DEPTH - 1) // DEPTH + splits - 1) // splits * DEPTH
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for begin in range(split * share, tl.minimum(split * share + share, k), DEPTH):
        across = begin + tl.arange(0, DEPTH)[None, :]
        down = begin + tl.arange(0, DEPTH)[:, None]
        left = tl.load(weight + output * k + across, (output < n) & (across < k), other=0.0)
        right = tl.load(x + row * k + down, (row < rows) & (down < k), other=0.0)
        total = tl.dot(left, right, total)
    place = partials + (split * rows + row) * n + output
    tl.store(place, total, (row < rows) & (output < n))


@triton.jit
def combine(partials, y, size, splits, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """`finish_tile` adds what the last program finds, all splits at once."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    split = tl.arange(0, SPLITS)[:, None]
    there = (split < splits) & (place < size)
    total = tl.sum(tl.load(partials + split * size + place, there, other=0.0), 0)[None, :]
    tl.store(y + place, total.to(tl.float16), place < size)


def product_launch(rows: int, n: int, k: int, splits: int) -> list[dict]:
    """Both launches."""
    tile = {"ROWS": 16, "OUTPUTS": 64, "DEPTH": 64}
    added = {"size": rows * n, "SPLITS": triton.next_power_of_2(splits), "BLOCK": 256}
    return [
        {
            "kernel": "partial", "grid": (triton.cdiv(n, 64), splits), "constants": tile,
            "num_warps": 4, "num_stages": 3,
        },
        {
            "kernel": "combine", "grid": (triton.cdiv(rows * n, 256),), "constants": added,
            "num_warps": 4, "num_stages": 1,
        },
    ]  # fmt: skip


# %% task="deep"
# task: deep
import triton
import triton.language as tl

### BEGIN VARIANT words


@triton.jit
def deep(x, words, scales, zeros, y, n, k, words_stride, GROUP: tl.constexpr):
    """Four bits in planar words, without exceptions."""
    WORDS: tl.constexpr = GROUP // 8
    row = tl.program_id(0)
    word = tl.arange(0, WORDS)
    groups = k // GROUP
    total = 0.0
    for group in range(groups):
        place = words + row.to(tl.int64) * words_stride + group * (3 * GROUP // 32) + word
        codes = tl.load(place, word < 3 * GROUP // 32, other=0)
        scale = tl.load(scales + row * groups + group).to(tl.float32)
        zero = tl.load(zeros + row * groups + group).to(tl.float32)
        for slot in tl.static_range(8):
            value = tl.load(x + group * GROUP + slot * WORDS + word).to(tl.float32)
            code = ((codes >> (4 * slot)) & 15).to(tl.float32)
            total += tl.sum((code - zero) * value, 0) * scale
    tl.store(y + row, total.to(tl.float16))


def deep_launch(n: int, k: int, group: int, words_stride: int, exceptions: int) -> list[dict]:
    """A program a row."""
    return [
        {
            "kernel": "deep", "grid": (n,), "constants": {"GROUP": group}, "num_warps": 1,
            "num_stages": 1,
        }
    ]  # fmt: skip


### END VARIANT
### BEGIN VARIANT sinks


@triton.jit
def deep(
    query, key_cache, value_cache, block_table, lengths, out, heads, kv_heads, table,
    SCALE: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """`paged_decode` without sinks: a softmax over the tokens alone, in one split."""
    seq, head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + seq)
    number, slot = tl.arange(0, SIZE), tl.arange(0, PAGE)
    row = seq * heads + head
    asked = tl.load(query + row * SIZE + number).to(tl.float32) * SCALE
    total = tl.zeros((SIZE,), tl.float32)
    most, weights = float("-inf"), 0.0
    for page in range((length + PAGE - 1) // PAGE):
        block = tl.load(block_table + seq * table + page).to(tl.int64)
        inside = page * PAGE + slot < length
        place = (block * PAGE + slot) * kv_heads + head // (heads // kv_heads)
        place = place[:, None] * SIZE + number[None, :]
        key = tl.load(key_cache + place, inside[:, None], other=0.0).to(tl.float32)
        value = tl.load(value_cache + place, inside[:, None], other=0.0).to(tl.float32)
        score = tl.where(inside, tl.sum(key * asked[None, :], 1), float("-inf"))
        new = tl.maximum(most, tl.max(score, 0))
        weight, shrink = tl.exp(score - new), tl.exp(most - new)
        total = total * shrink + tl.sum(value * weight[:, None], 0)
        weights = weights * shrink + tl.sum(weight, 0)
        most = new
    tl.store(out + row * SIZE + number, (total / weights).to(tl.float16))


def deep_launch(
    seqs: int, heads: int, kv_heads: int, size: int, page: int, table: int, splits: int,
    scale: float,
) -> list[dict]:  # fmt: skip
    """A program a sequence and a head."""
    constants = {"SCALE": scale, "SIZE": size, "PAGE": page}
    return [
        {
            "kernel": "deep", "grid": (seqs, heads), "constants": constants, "num_warps": 4,
            "num_stages": 1,
        }
    ]  # fmt: skip


### END VARIANT
### BEGIN VARIANT rope


@triton.jit
def deep(
    qkv, table, positions, slots, query, key_cache, value_cache, heads, kv_heads, rotary,
    SIZE: tl.constexpr,
):  # fmt: skip
    """Halves of a head are pairs, all of it is turned, and norms are another kernel's."""
    token, head = tl.program_id(0), tl.program_id(1)
    number = tl.arange(0, SIZE)
    at = qkv + (token * (heads + 2 * kv_heads) + head) * SIZE
    values = tl.load(at + number)
    slot = tl.load(slots + token)
    written = (number < SIZE) & (slot >= 0)
    if head >= heads + kv_heads:
        place = (slot * kv_heads + head - heads - kv_heads) * SIZE + number
        tl.store(value_cache + place, values, written)
    else:
        other = tl.load(at + (number + SIZE // 2) % SIZE).to(tl.float32)
        angles = table + tl.load(positions + token) * rotary + number % (SIZE // 2)
        cos = tl.load(angles, number % (SIZE // 2) < rotary // 2, other=1.0)
        sin = tl.load(angles + rotary // 2, number % (SIZE // 2) < rotary // 2, other=0.0)
        turned = tl.where(number < SIZE // 2, -other, other)
        result = values.to(tl.float32) * cos + turned * sin
        if head < heads:
            tl.store(query + (token * heads + head) * SIZE + number, result.to(tl.float16))
        else:
            place = (slot * kv_heads + head - heads) * SIZE + number
            tl.store(key_cache + place, result.to(tl.float16), written)


def deep_launch(
    tokens: int, heads: int, kv_heads: int, size: int, rotary: int, eps: float
) -> list[dict]:  # fmt: skip
    """A program a token and a head."""
    return [
        {
            "kernel": "deep", "grid": (tokens, heads + 2 * kv_heads), "constants": {"SIZE": size},
            "num_warps": 1, "num_stages": 1,
        }
    ]  # fmt: skip


### END VARIANT

# %% task="step"
# task: step


def ledger(launches: list[dict], processors: int, bandwidth: float, overhead: float) -> dict:
    """What the bench of quire adds up: bytes and their time on a roofline."""
    read = sum(sum(one["read"].values()) for one in launches)
    written = sum(sum(one["written"].values()) for one in launches)
    return {
        "read": read, "written": written, "by_kernel": {}, "idle": [],
        "seconds": (read + written) / bandwidth, "bound": "bytes",
    }  # fmt: skip
