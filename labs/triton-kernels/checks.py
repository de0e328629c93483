"""Public checks: small launches with answers that fit in a line."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.gpu.interpreted import Buffer, Ran, compare, output, run
from labkit.reader.subject import Subject

FAR = 1 << 29  # elements between rows, so that the offset of row 4 passes 2³¹
TOLERANCE = 2e-3  # of a rounding to float16
NAN = float("nan")


def _row(*numbers: float) -> np.ndarray:
    return np.array(numbers, float)


def _words(text: str) -> np.ndarray:
    """Rows of words, in hexadecimal, as int32."""
    rows = [[int(word, 16) for word in row.split()] for row in text.split("|")]
    words = np.array(rows, np.int64)
    return np.where(words >= 1 << 31, words - (1 << 32), words)


# ---- norm


def _norm(
    student: Subject, variant: str, x: np.ndarray, residual: np.ndarray, weight: np.ndarray,
    eps: float, group: int, stride: int | None = None,
) -> Ran:  # fmt: skip
    x, residual = np.atleast_2d(x), np.atleast_2d(residual)
    rows, size = x.shape
    scalars = {"rows": rows, "size": size, "stride": stride or size}
    sizes: dict[str, Any] = {**scalars, "eps": eps}
    if variant == "rope":
        sizes["group"] = scalars["group"] = group
    buffers = {
        "x": Buffer("fp16", x, stride=stride),
        "residual": Buffer("fp16", residual, stride=stride, writable=True),
        "weight": Buffer("fp16", weight),
        "out": output("fp16", rows, size, stride=stride),
    }
    return run(student, "add_norm_launch", sizes, buffers, scalars)


def sum_of_two(student: Subject, variant: str) -> None:
    """The residual becomes the sum, rounded to float16."""
    x, residual = _row(0.5, 1, 1.5, 2), _row(2048, 2048, 1, -2)
    ran = _norm(student, variant, x, residual, _row(1, 1, 1, 1), 1e-5, 2)
    why = "x is 0.5 1 1.5 2, the residual 2048 2048 1 -2; 2048.5 and 2049 round to 2048"
    compare(student, ran, "residual", _row(2048, 2048, 2.5, 0), 0.0, why)


def norm_of_the_text(student: Subject, variant: str) -> None:
    """The example of the text."""
    if variant == "rope":
        x, weight, eps = _row(3, 4, 0, 5), _row(1, 2, 1, 1), 0.0
        want = _row(0.8485, 2.2627, 0, 1.4142)
    else:
        x, eps = _row(3, 4), 0.0 if variant == "words" else 0.5
        weight = _row(0, 1) if variant == "words" else _row(1, 2)
        want = _row(0.8485, 2.2627) if variant == "words" else _row(0.7434, 1.9824)
    ran = _norm(student, variant, x, x * 0, weight, eps, 2)
    why = f"x is {x.tolist()}, the weight {weight.tolist()}, eps {eps}"
    compare(student, ran, "out", want, TOLERANCE, why)


def which_sum(student: Subject, variant: str) -> None:
    """Whether the norm is that of the sum before or after its rounding, and where eps stands."""
    x, residual = _row(1, 3), _row(2048, 2048)
    rounded = variant == "words"
    sums = _row(2048, 2052) if rounded else _row(2049, 2051)
    plain = sums / np.sqrt((sums**2).mean())
    # Weights for which the right norm is nearly a float16, and that of the other sum the next one.
    weights = np.arange(1.8, 1.99, 2.0**-10).astype(np.float16).astype(float)
    made = plain[:, None] * weights
    weight = weights[np.abs(made - made.astype(np.float16)).argmin(1)]
    ran = _norm(student, variant, x, residual, weight - (1 if rounded else 0), 0.0, 2)
    why = "the sum is 2049 2051, in float16 2048 2052"
    compare(student, ran, "out", plain * weight, 3e-4, why)
    weight = _row(0, 0) if variant == "words" else _row(1, 1)
    x, residual = _row(0.25, 0.75), _row(0, 0)
    ran = _norm(student, variant, x, residual, weight, 0.25, 2)
    mean = (0.25**2 + 0.75**2) / 2
    root = np.sqrt(mean) + 0.25 if variant == "sinks" else np.sqrt(mean + 0.25)
    compare(student, ran, "out", x / root, TOLERANCE, "x is 0.25 0.75, eps 0.25")


def rounded_once(student: Subject, variant: str) -> None:
    """Norm, weight and their product in float32: a second rounding to float16 shows."""
    # The norm 1.13137 of the 4 rounds to 1.13086, and the weight 1.59619 of the 3 to 1.59570 or
    # 1.59668; times the other factor either is off by a whole step of float16.
    x, added = _row(4, 3), variant == "words"
    weight = _row(0.5234375, 0.59619140625) if added else _row(1.5234375, 1.5)
    ran = _norm(student, variant, x, x * 0, weight, 0.0, 2)
    plain = x / np.sqrt(12.5)
    want = (plain * (weight + added)).astype(np.float16).astype(float)
    why = f"x is 4 3, eps 0, the weight {weight.tolist()}; only the product is rounded to float16"
    compare(student, ran, "out", want, 1e-4, why)


def odd_sizes(student: Subject, variant: str) -> None:
    """Rows of 3 and of 6 numbers, in which no lane behind the end may count."""
    weight = _row(0, 0, 0) if variant == "words" else _row(1, 1, 1)
    ran = _norm(student, variant, _row(1, 2, 2), _row(0, 0, 0), weight, 0.0, 3)
    behind = "; a lane that the mask leaves out reads poison where it has no `other`"
    compare(student, ran, "out", _row(1, 2, 2) / np.sqrt(3), TOLERANCE, "x is 1 2 2" + behind)
    weight = np.concatenate([weight, weight])
    x = np.array([[1, 2, 2, 2, 4, 4], [0, 3, 0, 4, 0, 0.0]])
    ran = _norm(student, variant, x, x * 0, weight, 0.25, 3)
    parts = x.reshape(-1, 3) if variant == "rope" else x
    mean = (parts**2).mean(1, keepdims=True)
    root = np.sqrt(mean) + 0.25 if variant == "sinks" else np.sqrt(mean + 0.25)
    compare(student, ran, "out", (parts / root).reshape(x.shape), TOLERANCE, f"x is {x.tolist()}")


def rows_apart(student: Subject, variant: str) -> None:
    """Rows with a gap between them, and rows 2²⁹ elements apart."""
    weight = _row(0, 0) if variant == "words" else _row(1, 1)
    x = np.array([[1, 1], [2, 2], [3, 3], [4, 4], [-5, -5.0]])
    for stride in (5, FAR):
        ran = _norm(student, variant, x, x * 0, weight, 0.0, 2, stride)
        compare(student, ran, "residual", x, 0.0, "x is 1 1, 2 2, 3 3, 4 4, -5 -5")
        compare(student, ran, "out", np.sign(x), TOLERANCE, "each row is as long as its root")


# ---- gemv


def _gemv(
    student: Subject, variant: str, x: np.ndarray, words: np.ndarray, scales: np.ndarray,
    grids: np.ndarray, group: int = 32, stride: int | None = None,
) -> Ran:  # fmt: skip
    stride = stride or words.shape[1]
    scalars = {"n": len(words), "k": len(x), "words_stride": stride}
    buffers = {
        "x": Buffer("fp16", x),
        "words": Buffer("i32", words, stride=stride),
        "scales": Buffer("fp16", np.reshape(scales, (len(words), -1))),
        "y": output("fp16", len(words)),
    }
    if variant == "rope":
        buffers["offsets"] = Buffer("fp16", np.reshape(grids, (len(words), -1)))
    else:
        buffers["zeros"] = Buffer("i32", np.reshape(grids, (len(words), -1)))
    return run(student, "gemv_launch", {**scalars, "group": group}, buffers, scalars)


def _zero(variant: str, zero: int) -> int:
    """A word of zeros that are all the same, or an offset of 0."""
    if variant == "rope":
        return 0
    stored = (zero - 1) % 16 if variant == "words" else 15 - zero
    word = stored * 0x11111111
    return word - (1 << 32) if word >= 1 << 31 else word


def places(student: Subject, variant: str) -> None:
    """One column of `x` at a time, of the words 12345678, 00000000, 0000000A, F0000000."""
    words = _words("12345678 00000000 0000000A F0000000")
    found = {
        "words": {0: 1, 4: 2, 28: 8, 30: 10, 3: 15},
        "sinks": {0: 8, 2: 7, 1: 4, 16: 10, 31: 15},
        "rope": {0: 1, 1: 2, 7: -8, 23: -2, 24: -7},
    }[variant]
    for column, code in found.items():
        x = np.zeros(32)
        x[column] = 1
        ran = _gemv(student, variant, x, words, _row(1), np.array([_zero(variant, 0)]))
        why = f"x is 1 in column {column} alone, whose code stands for {code}"
        compare(student, ran, "y", _row(code), TOLERANCE, why)


def grids(student: Subject, variant: str) -> None:
    """Each group of each row has its own scale and zero."""
    words = _words("11111111 " * 12 + "|" + "22222222 " * 12)
    scales = np.array([[1, 0.5, 2], [0.25, 4, 1]])
    x = np.ones(96)
    if variant == "rope":
        offsets = np.array([[1, 0, -0.5], [0.5, -1, 0]])
        ran = _gemv(student, variant, x, words, scales, offsets)
        want = 32 * (np.array([[1], [2]]) * scales + offsets).sum(1)
        why = f"all codes are 1 and 2, scales {scales.tolist()}, offsets {offsets.tolist()}"
    else:
        zeros = np.array([[1, 8, 0], [0, 15, 3]])
        stored = (zeros - 1) % 16 if variant == "words" else 15 - zeros
        grids = (stored << np.array([0, 4, 8])).sum(1)
        ran = _gemv(student, variant, x, words, scales, grids)
        want = 32 * ((np.array([[1], [2]]) - zeros) * scales).sum(1)
        why = f"all codes are 1 and 2, scales {scales.tolist()}, zeros {zeros.tolist()}"
    compare(student, ran, "y", want, TOLERANCE, why)
    words = _words("33333333 " * 36)
    scales = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 0.5]])
    x = np.concatenate([np.zeros(256), np.ones(32)])
    if variant == "rope":
        grids, want = scales * 0 + 2, 32 * (3 * 0.5 + 2)
    else:
        other, ninth = _zero(variant, 0), _zero(variant, 5)
        grids, want = np.array([[other, ninth]]), 32 * (3 - 5) * 0.5
    ran = _gemv(student, variant, x, words, scales, grids)
    why = "nine groups, of which x meets the last; its zero is the first of a second word"
    compare(student, ran, "y", _row(want), TOLERANCE, why)


def tails(student: Subject, variant: str) -> None:
    """34 columns in groups of 32, 17 rows: `x` has no numbers for the last 30 codes of a row."""
    words = np.tile(_words("11111111 " * 4 + "22222222 " * 4), (17, 1))
    scales = np.ones((17, 2)) * 0.5
    x = np.concatenate([np.ones(32), [2, 4.0]])
    grids = np.full((17, 2 if variant == "rope" else 1), _zero(variant, 0))
    ran = _gemv(student, variant, x, words, scales, grids)
    why = "the codes are 1, and 2 in the second group; x is 1, and 2 4 in the second group; a lane "
    why += "that a mask leaves out reads poison where it has no `other`"
    compare(student, ran, "y", np.full(17, 22.0), TOLERANCE, why)


def sums_of_float32(student: Subject, variant: str) -> None:
    """Weights and their sum in float32, in groups of 32, 64 and 128."""
    for group in (32, 64, 128):
        words = _words("33333333 " * (group // 4))
        scales = _row(1025 / 1024, 1)
        x = np.zeros(2 * group)
        x[[0, -1]] = 64, -64  # in lanes of their own, whatever the tile
        grids = np.zeros(2) if variant == "rope" else np.array([_zero(variant, 0)])
        ran = _gemv(student, variant, x, words, scales, grids, group)
        why = f"groups of {group}, all codes stand for 3, the scales are 1025/1024 and 1; x is 64 "
        why += "in the first column, -64 in the last: 192.1875 - 192"
        compare(student, ran, "y", _row(0.1875), 1e-4, why)


def words_apart(student: Subject, variant: str) -> None:
    """Rows of words with a gap between them, and 2²⁹ words apart; each word is read once."""
    words = _words("|".join(f"{i:X}" * 8 + f" {i:X}{i:X}000000 0 0" for i in range(1, 7)))
    x = np.concatenate([np.ones(32)])
    codes = np.arange(1, 7)
    grids = np.full(6, _zero(variant, 0))
    for stride in (7, FAR):
        ran = _gemv(student, variant, x, words, np.ones(6), grids, stride=stride)
        compare(student, ran, "y", codes * 10.0, TOLERANCE, "row i has ten codes of i + 1")
        if ran.read("words") != 96:
            student.fail(f"called {ran.said}\nexpected 96 bytes read of `words`, each word once\n"
                         f"got {ran.read('words')}")  # fmt: skip


# ---- split


def _product(
    student: Subject, x: np.ndarray, weight: np.ndarray, splits: int,
    left: np.ndarray | None = None,
) -> Ran:  # fmt: skip
    (rows, k), n = x.shape, len(weight)
    scalars = {"rows": rows, "n": n, "k": k, "splits": splits}
    buffers = {
        "x": Buffer("fp16", x.reshape(1, -1)),
        "weight": Buffer("fp16", weight.reshape(1, -1)),
        "partials": Buffer("fp32", left, (1, splits * rows * n), writable=True),
        "y": output("fp16", rows * n),
    }
    return run(student, "product_launch", scalars, buffers, scalars)


def blocks_of_splits(student: Subject, variant: str) -> None:
    """The blocks of the table: 200 columns and 3 splits."""
    weight = np.array([[1.0] * 200, [2.0] * 200])
    ran = _product(student, np.ones((1, 200)), weight, 3)
    why = "x is 1, the rows of weight are 1 and 2; the splits have 72, 64 and 64 columns"
    compare(student, ran, "partials", _row(72, 144, 64, 128, 64, 128), 1e-6, why)
    compare(student, ran, "y", _row(200, 400), TOLERANCE, why)


def rows_and_tails(student: Subject, variant: str) -> None:
    """Three rows of `x`, 66 of the weight, 65 columns."""
    x = np.array([[1.0], [2.0], [-1.0]]) * np.ones((3, 65))
    weight = np.ones((66, 65)) * np.where(np.arange(66) % 2 == 0, 1.0, 0.5)[:, None]
    ran = _product(student, x, weight, 1)
    why = "the rows of x are 1, 2 and -1; those of weight 1 and 0.5 in turn"
    compare(student, ran, "y", (x @ weight.T).reshape(1, -1), TOLERANCE, why)


def order_of_sums(student: Subject, variant: str) -> None:
    """The sums of the text, whose order shows; and each number of the weight is read once."""
    x, weight = np.zeros((1, 256)), np.zeros((1, 256))
    x[0, ::64], weight[0, ::64] = (4096, 1, 1, 4096), (4096, 1, 1, -4096)
    ran = _product(student, x, weight, 4)
    why = "the sums of the splits are 16777216, 1, 1, -16777216"
    compare(student, ran, "partials", _row(16777216, 1, 1, -16777216), 0.0, why)
    compare(student, ran, "y", _row(0), 0.0, why)
    if ran.launches[-1]["loads"] < 4:
        student.fail(f"called {ran.said}\nexpected `combine` to load the sums of one split at a "
                     f"time, 4 times\ngot {ran.launches[-1]['loads']} loads")  # fmt: skip
    if ran.read("weight") != 512:
        student.fail(f"called {ran.said}\nexpected 512 bytes read of `weight`\n"
                     f"got {ran.read('weight')}")  # fmt: skip
    most = int(ran.launches[0]["most_read"])
    if most > 256 + 512:
        student.fail(f"called {ran.said}\nexpected a program of `partial` to read one split, 128 "
                     f"bytes of the weight\ngot one that reads {most} in all")  # fmt: skip


def empty_and_dirty(student: Subject, variant: str) -> None:
    """A split without a block leaves zeros, whatever the workspace held before."""
    x, weight = np.ones((1, 65)), np.ones((2, 65))
    for left in (None, np.full((1, 8), 7.0)):
        ran = _product(student, x, weight, 4, left)
        held = "poison" if left is None else "7 everywhere"
        why = f"65 columns are two blocks, and there are 4 splits; the workspace held {held}"
        compare(student, ran, "partials", _row(64, 64, 1, 1, 0, 0, 0, 0), 0.0, why)
        compare(student, ran, "y", _row(65, 65), TOLERANCE, why)


# ---- deep


def _three(
    student: Subject, x: np.ndarray, words: str, scale: float | np.ndarray, zero: float,
    columns: list[int], values: list[float], want: float, because: str, stride: int | None = None,
    rows: int = 1, group: int = 32,
) -> None:  # fmt: skip
    packed = np.repeat(_words(words), rows, 0)
    groups, stride = packed.shape[1] * 32 // (3 * group), stride or packed.shape[1]
    scalars = {"n": rows, "k": len(x), "words_stride": stride, "exceptions": len(columns)}
    buffers = {
        "x": Buffer("fp16", x),
        "words": Buffer("i32", packed, stride=stride),
        "scales": Buffer("fp16", np.broadcast_to(scale, (rows, groups))),
        "zeros": Buffer("fp16", np.full((rows, groups), zero)),
        "columns": Buffer("i32", np.tile(columns, (rows, 1))),
        "values": Buffer("fp16", np.tile(values, (rows, 1))),
        "y": output("fp16", rows),
    }
    ran = run(student, "deep_launch", {**scalars, "group": group}, buffers, scalars)
    compare(student, ran, "y", np.full(rows, want), TOLERANCE, because)


TEXT = "C0000001 00000001 00000000"  # column 0 has the code 1, column 10 the code 7


def _attention(
    student: Subject, lengths: list[int], table: list[list[int]], places: list[int], splits: int,
    sink: float, want: list[float], because: str, query: float = 0.0, scale: float = 1.0,
    heads: int = 1, kv_heads: int = 1, keys: tuple[float, float] = (0.0, 1.0),
    other: tuple[float, float] = (0.0, 0.0), values: list[list[float]] | None = None,
    left: float | None = None,
) -> Ran:  # fmt: skip
    """Launch, compare, and return what ran.

    The key of token t of a block begins with `keys[0]` + t times `keys[1]` and t times `other[1]`,
    the query with `query` and `other[0]`. Values are 3 (t + 1) for KV head 0, ten times that for
    head 1, or `values` of each block.
    """
    seqs, blocks = len(lengths), len(places)
    value = np.zeros((blocks, 4, kv_heads, 16))
    key = np.zeros_like(value)
    for kv in range(kv_heads):
        value[:, :, kv] = (3.0 * 10**kv * np.arange(1, 5))[:, None]
        key[:, :, kv, 0] = keys[0] + np.arange(4) * keys[1]
        key[:, :, kv, 1] = np.arange(4) * other[1]
    if values is not None:
        value[:] = np.array(values)[:, :, None, None]
    for s, length in enumerate(lengths):
        if length % 4:
            last = places.index(table[s][length // 4])
            key[last, length % 4 :], value[last, length % 4 :] = NAN, NAN
    asked = np.zeros((seqs, heads, 16))
    asked[:, :, 0], asked[:, :, 1] = query, other[0]
    scalars = {
        "seqs": seqs, "heads": heads, "kv_heads": kv_heads, "size": 16, "page": 4,
        "table": len(table[0]), "splits": splits,
    }  # fmt: skip
    cached = {
        name: Buffer("fp16", part.reshape(blocks, -1), places=np.array(places))
        for name, part in (("key_cache", key), ("value_cache", value))
    }
    shape = (1, splits * seqs * heads * 18)
    before = None if left is None else np.full(shape, left)
    buffers = {
        "query": Buffer("fp16", asked.reshape(1, -1)), **cached,
        "block_table": Buffer("i32", np.array(table).reshape(1, -1)),
        "lengths": Buffer("i32", np.array(lengths)),
        "sinks": Buffer("fp32", np.full(heads, sink)),
        "workspace": Buffer("fp32", before, shape, writable=True),
        "out": output("fp16", seqs * heads * 16),
    }  # fmt: skip
    ran = run(student, "deep_launch", {**scalars, "scale": scale}, buffers, scalars)
    compare(student, ran, "out", np.repeat(np.array(want, float), 16), TOLERANCE, because)
    return ran


def _rotate(
    student: Subject, slots: list[int], rotary: int, places: list[int], because: str,
    heads: int = 1, kv_heads: int = 1, angle: tuple[float, float] = (0.0, 1.0),
    weights: tuple[float, float] | None = None, eps: float = 0.0,
) -> None:  # fmt: skip
    """Every head begins 3 4; pair 0 has the cosine and sine `angle`, the others 1 and 0.

    `weights` are those of the norms for the 3 and the 4; elsewhere a query's is 2, a key's 1.
    """
    tokens, count = len(slots), heads + 2 * kv_heads
    qkv = np.zeros((tokens, count, 16))
    qkv[:, :, 0], qkv[:, :, 1] = 3, 4
    qkv[:, :, 15] = np.arange(count)
    half = rotary // 2
    cos, sin = np.array(angle, np.float32).astype(float)
    table = np.concatenate([[cos], np.ones(half - 1), [sin], np.zeros(half - 1)])
    norms = np.array([np.full(16, 2.0), np.ones(16)])
    if weights is not None:
        norms[:, :2] = np.array(weights, np.float16)
    root = np.sqrt((qkv**2).mean(2, keepdims=True) + eps)
    turned = qkv / root * np.repeat(norms[[0, 1, 1]], [heads, kv_heads, kv_heads], 0)
    a, b = turned[:, :, 0].copy(), turned[:, :, 1].copy()
    turned[:, :, 0], turned[:, :, 1] = a * cos - b * sin, b * cos + a * sin
    key = np.full((len(places), kv_heads * 16), NAN)
    value = key.copy()
    for t, slot in enumerate(slots):
        if slot >= 0:
            key[places.index(slot)] = turned[t, heads : heads + kv_heads].reshape(-1)
            value[places.index(slot)] = qkv[t, heads + kv_heads :].reshape(-1)
    scalars = {
        "tokens": tokens, "heads": heads, "kv_heads": kv_heads, "size": 16, "rotary": rotary,
    }  # fmt: skip
    held = np.full(key.shape, 7.0)
    buffers = {
        "qkv": Buffer("fp16", qkv.reshape(1, -1)),
        "query_norm": Buffer("fp16", norms[0]),
        "key_norm": Buffer("fp16", norms[1]),
        "table": Buffer("fp32", np.stack([table * 0, table]).reshape(1, -1)),
        "positions": Buffer("i64", np.ones(tokens)),
        "slots": Buffer("i64", np.array(slots)),
        "query": output("fp16", tokens * heads * 16),
        "key_cache": Buffer("fp16", held, places=np.array(places), writable=True),
        "value_cache": Buffer("fp16", held, places=np.array(places), writable=True),
    }
    ran = run(student, "deep_launch", {**scalars, "eps": eps}, buffers, scalars)
    compare(student, ran, "query", turned[:, :heads].reshape(1, -1), TOLERANCE, because)
    compare(student, ran, "key_cache", key, TOLERANCE, because)
    compare(student, ran, "value_cache", value, 0.0, because)


def deep_numbers(student: Subject, variant: str) -> None:
    """The numbers of the text, and others like them."""
    if variant == "words":
        for column, code in ((0, 1), (10, 7), (11, 0), (9, 0)):
            x = np.zeros(32)
            x[column] = 1
            why = f"x is 1 in column {column} alone, whose code is {code}; scale 2, zero 0.5"
            _three(student, x, TEXT, 2.0, 0.5, [-1], [0], 2 * (code - 0.5), why)
    elif variant == "sinks":
        why = "two tokens of score 0 and a sink of 0; the values are 3 and 6"
        _attention(student, [2], [[0]], [0], 1, 0.0, [3.0], why)
        why = "scores 0 and 50,000; all weight is on the second token"
        _attention(student, [2], [[0]], [0], 1, 0.0, [6.0], why, query=50.0, scale=1000.0)
        why = "scores of -50,000 and -100,000, no sink: all weight is on the first token"
        below: dict[str, Any] = {"query": -50.0, "scale": 1000.0, "keys": (1.0, 1.0)}
        _attention(student, [2], [[0]], [0], 1, -np.inf, [3.0], why, **below)
        why = "four query heads on two KV heads; three tokens of score 0 and a sink of 0"
        want = [4.5, 4.5, 45.0, 45.0]
        _attention(student, [3], [[0]], [0], 1, 0.0, want, why, heads=4, kv_heads=2)
    else:
        why = "3 4 is turned into -4 3, after the norm; the query's weight is 2, the key's 1"
        _rotate(student, [1], 16, [0, 1], why)
        _rotate(student, [1, 0], 16, [0, 1], why, heads=3, kv_heads=2)
        why = "the norm's weight is 2 for the 3 and 0.5 for the 4, and eps 1.4375: a root of √3"
        _rotate(student, [1], 16, [0, 1], why, weights=(2.0, 0.5), eps=1.4375)


def deep_float32(student: Subject, variant: str) -> None:
    """What is to be float32: a rounding to float16 on the way shows."""
    if variant == "words":
        for group in (32, 64, 128):
            x = np.zeros(2 * group)
            x[[0, group]] = 64, -64
            blank = " 0" * (3 * group // 32 - 1)
            why = f"groups of {group}, the first code of each is 3, zero 0, the scales are "
            why += "1025/1024 and 1; x is 64 in the first column, -64 in the first of group 1"
            scale, words = _row(1025 / 1024, 1), f"3{blank} 3{blank}"
            _three(student, x, words, scale, 0.0, [-1], [NAN], 0.1875, why, group=group)
    elif variant == "sinks":
        _attention_in_float32(student)
    else:
        why = "cosine 0.6 and sine 0.8: 4 · 0.6 - 3 · 0.8 of numbers times 1000 is nearly 0"
        _rotate(student, [0], 16, [0], why, angle=(0.6, 0.8), weights=(1333.0, 750.0))
        why = "cosine and sine √½; the weights 1333 and 1000 make 3 and 4 nearly the same"
        _rotate(student, [0], 16, [0], why, angle=(0.5**0.5, 0.5**0.5), weights=(1333.0, 1000.0))


def _attention_in_float32(student: Subject) -> None:
    high = 1 / (1 + np.exp(-1 - 2.0**-11))
    why = "scores of about 2048 and 2049, no sink"
    _attention(
        student, [2], [[0]], [0], 1, -np.inf, [3 + 3 * high], why, query=1.0, scale=1 + 2.0**-11,
        keys=(2047.0, 1.0),
    )  # fmt: skip
    why = "query 3 1 times 1025/1024, keys 0 0 and 1 -3 times 1000: two scores of 0, a sink of 0"
    _attention(
        student, [2], [[0]], [0], 1, 0.0, [3.0], why, query=3.0, scale=1025 / 1024,
        keys=(0.0, 1000.0), other=(1.0, -3000.0),
    )  # fmt: skip
    values = [[512.0, 512.0, 512.0, 513.0], [-512.0] * 4]
    why = "8 tokens of score 0 and a sink of 0; the values of the pages add up to 2049 and -2048"
    _attention(student, [8], [[0, 1]], [0, 1], 2, 0.0, [1 / 9], why, values=values)
    weight = np.exp(-0.3)
    why = "scores of 0 and -0.3, no sink; the values are 741 and -1000"
    want = (741 - 1000 * weight) / (1 + weight)
    _attention(
        student, [2], [[0]], [0], 1, -np.inf, [want], why, query=-1.0, scale=0.3,
        values=[[741.0, -1000.0, 0.0, 0.0]],
    )  # fmt: skip


def deep_special(student: Subject, variant: str) -> None:
    """What is left out."""
    if variant == "words":
        x = np.concatenate([np.ones(12)])
        why = "12 columns of ones; column 10 has the weight 5 in place of its code's 7"
        _three(student, x, TEXT, 1.0, 0.0, [-1, 10, -1], [NAN, 5, NAN], 6.0, why)
        words = "C0000001 FFFFFFF9 FFFFFFFF"
        why = "12 columns of ones; the codes behind them are 7 and count for nothing"
        _three(student, np.ones(11), words, 1.0, 0.0, [-1], [NAN], 8.0, why)
    elif variant == "sinks":
        why = "5 tokens of score 0, a sink of 0, NaN behind the last; the table has one entry more"
        _attention(student, [5], [[2, 0, -99]], [0, 2], 2, 0.0, [5.5], why)
        why = "9 tokens of score 0 on three pages, 2 splits, a sink of 0; the workspace held 7"
        ran = _attention(student, [9], [[2, 0, 1]], [0, 1, 2], 2, 0.0, [6.3], why, left=7.0)
        most, two_pages = int(ran.launches[0]["most_read"]), 2 * 2 * 2 * 4 * 16
        if most > two_pages + 128:
            student.fail(f"called {ran.said}\nexpected a program of `deep` to read the keys and "
                         f"values of two pages at most, {two_pages} bytes\ngot one that reads "
                         f"{most} in all")  # fmt: skip
        why = "4 tokens of score 0 on one page, 3 splits, a sink of 0; the workspace held 7"
        _attention(student, [4], [[0]], [0], 3, 0.0, [6.0], why, left=7.0)
    else:
        why = "the tokens 0 and 2 have the slot -1"
        _rotate(student, [-1, 3, -1], 16, [1, 3], why)
        why = "only the first 6 numbers of a head are turned"
        _rotate(student, [0], 6, [0], why)


def deep_edges(student: Subject, variant: str) -> None:
    """At the edges."""
    if variant == "words":
        why = "all three columns are exceptions"
        _three(student, np.ones(3), TEXT, 1.0, 2.0, [2, 0, 1], [1, 2, 4], 7.0, why)
        x = np.zeros(32)
        x[10] = 1
        why = "column 10 alone, whose bits 30 to 32 are 1, 1 and 0"
        _three(student, x, "C0000000 0 0", 1.0, 0.0, [-1], [NAN], 3.0, why)
        x = np.zeros(64)
        x[31] = x[42] = 1
        words = "0 0 E0000000 C0000000 00000001 0"
        why = "column 31 has the code 7, and column 42, the tenth of the second group, too"
        _three(student, x, words, 1.0, 0.0, [-1], [NAN], 14.0, why)
    elif variant == "sinks":
        why = "lengths of 0 and 1, four splits"
        _attention(student, [0, 1], [[-9], [0]], [0], 4, 0.0, [0.0, 1.5], why)
        why = "lengths of 0 and 2, sinks of minus infinity"
        _attention(student, [0, 2], [[-9], [0]], [0], 2, -np.inf, [0.0, 4.5], why)
    else:
        _rotate(student, [1], 2, [1], "rotary is 2")


def deep_far(student: Subject, variant: str) -> None:
    """Offsets beyond 2³¹."""
    if variant == "words":
        why = "six rows 2²⁹ words apart, all with the codes of the text"
        x = np.ones(32)
        _three(student, x, TEXT, 1.0, 0.0, [-1], [NAN], 8.0, why, stride=FAR, rows=6)
    elif variant == "sinks":
        far = (1 << 26) + 1
        why = f"its block is number {far}"
        _attention(student, [2], [[far]], [0, far], 1, 0.0, [3.0], why)
    else:
        far = (1 << 28) + 1
        _rotate(student, [far, 2], 16, [2, far], f"the slot of token 0 is {far}")


# ---- step

STEP = [
    {"kernel": "gemv", "programs": 200, "read": {"x": 100, "words": 3900}, "written": {"y": 1000}},
    {"kernel": "combine", "programs": 3, "read": {"partials": 900}, "written": {"y": 100}},
    {"kernel": "gemv", "programs": 16, "read": {"x": 100, "words": 1300}, "written": {"y": 100}},
]


def _ledger(
    student: Subject, launches: list[dict[str, Any]], want: dict[str, Any], because: str,
    *numbers: float,
) -> None:  # fmt: skip
    student.expect("ledger", launches, *numbers, want=want, tolerance=1e-9, because=because)


def bytes_and_idle(student: Subject, variant: str) -> None:
    """Bytes, kernels with too few programs, seconds."""
    want = {
        "read": 6300, "written": 1200, "by_kernel": {"gemv": 6500, "combine": 1000},
        "idle": ["combine", "gemv"], "seconds": 9.0, "bound": "bytes",
    }  # fmt: skip
    why = "the launches take 5, 2 and 2 s; the first has more programs than the 132 processors"
    _ledger(student, STEP, want, why, 132, 1000.0, 2.0)
    why = "the launches take 5, 3.5 and 3.5 s, and all have fewer programs than 400"
    want |= {"idle": ["gemv", "combine"], "bound": "launches", "seconds": 12.0}
    _ledger(student, STEP, want, why, 400, 1000.0, 3.5)


def what_bounds(student: Subject, variant: str) -> None:
    """The example of the text, half of the time, no launches."""
    one = {"kernel": "gemv", "programs": 9, "read": {"x": 1000}, "written": {}}
    two = {"kernel": "gemv", "programs": 9, "read": {"x": 4000}, "written": {"y": 1000}}
    want = {
        "read": 5000, "written": 1000, "by_kernel": {"gemv": 6000}, "idle": [], "seconds": 7.0,
        "bound": "bytes",
    }  # fmt: skip
    why = "5 s of 7; 9 programs are not fewer than 9 processors"
    _ledger(student, [one, two], want, why, 9, 1000.0, 2.0)
    want = {**want, "seconds": 10.0, "bound": "launches"}
    why = "the bytes of the second launch take exactly the overhead, which is not longer"
    _ledger(student, [one, two], want, why, 9, 1000.0, 5.0)
    want |= {"seconds": 5.0, "by_kernel": {"gemv": 5000}, "read": 4000}
    why = "its bytes take exactly the overhead, which is not longer"
    _ledger(student, [two], want, why, 9, 1000.0, 5.0)
    want |= {"seconds": 10.0, "by_kernel": {"gemv": 7000}, "read": 6000}
    why = "5 s of 10 are of bytes, and half is not more than half"
    _ledger(student, [two, one, one], want, why, 9, 1000.0, 2.5)
    nothing = {
        "read": 0, "written": 0, "by_kernel": {}, "idle": [], "seconds": 0.0, "bound": "launches",
    }  # fmt: skip
    _ledger(student, [], nothing, "no launches", 9, 1000.0, 5.0)


def own_kernels(student: Subject, variant: str) -> None:
    """Small launches of your kernels of tasks 1 to 3, and what `ledger` says of their records."""
    x = _row(3, 4)
    weight = _row(0, 0) if variant == "words" else _row(1, 1)
    norm = _norm(student, variant, x, x * 0, weight, 0.0, 2)
    compare(student, norm, "out", x / np.sqrt(12.5), TOLERANCE, "x is 3 4, eps 0")
    words, grids = _words("33333333 " * 4), np.array([_zero(variant, 0)])
    gemv = _gemv(student, variant, np.ones(32), words, _row(1), grids)
    compare(student, gemv, "y", _row(96), TOLERANCE, "x is 1, all 32 weights are 3")
    product = _product(student, np.ones((1, 65)), np.ones((2, 65)), 2)
    compare(student, product, "y", _row(65, 65), TOLERANCE, "x and weight are 1, 65 columns")
    kept = ("kernel", "programs", "read", "written")
    ran = [*norm.launches, *gemv.launches, *product.launches]
    records = [{key: one[key] for key in kept} for one in ran]
    moved = [(sum(one["read"].values()), sum(one["written"].values())) for one in records]
    names = [one["kernel"] for one in records]
    want = {
        "read": sum(read for read, _ in moved),
        "written": sum(written for _, written in moved),
        "by_kernel": {
            name: sum(sum(pair) for pair, other in zip(moved, names, strict=True) if other == name)
            for name in names
        },
        "idle": list(dict.fromkeys(names)), "seconds": 2.0 * len(ran), "bound": "launches",
    }  # fmt: skip
    why = "each launch takes 2 s, and all have fewer programs than 4,097"
    _ledger(student, records, want, why, 4097, 1e9, 2.0)


CHECKS = {
    "norm": [sum_of_two, norm_of_the_text, which_sum, rounded_once, odd_sizes, rows_apart],
    "gemv": [places, grids, sums_of_float32, tails, words_apart],
    "split": [blocks_of_splits, rows_and_tails, order_of_sums, empty_and_dirty],
    "deep": [deep_numbers, deep_float32, deep_special, deep_edges, deep_far],
    "step": [bytes_and_idle, what_bounds, own_kernels],
}
