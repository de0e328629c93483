"""Hidden tests of `pack`, `unpack` and `fuse`, beside an oracle that sets single bits."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from .driving import pure
from .pack_oracle import litter, pack, random_shard, shard, together

NUMBERS = st.integers(0, 10_000)
ALL_BITS = st.integers(1, 8)


def _fuse(student, shards, fused, because=""):
    pure(student, "fuse", shards, want=together(fused), because=because)


def _codes(rng, rows, columns, bits):
    return np.array([[rng.randrange(2**bits) for _ in range(columns)] for _ in range(rows)])


def _both_ways(student, variant, codes, bits, group, because=""):
    words = pack(variant, codes, bits, group)
    pure(student, "pack", codes, bits, group, want=words, because=because)
    pure(student, "unpack", words, bits, codes.shape[1], group, want=codes, because=because)


@given(number=NUMBERS, bits=ALL_BITS, words=st.integers(1, 4))
@example(number=1, bits=4, words=3)
@example(number=2, bits=8, words=2)
@example(number=3, bits=3, words=2)
@example(number=4, bits=1, words=3)
def test_places(student, variant, number, bits, words):
    """A group that fills its words, alone in its row; any bits."""
    rng = random.Random(number)
    columns = words * (32 // bits)
    _both_ways(student, variant, _codes(rng, 2, columns, bits), bits, columns)
    one = np.zeros((1, columns), np.int64)
    one[0, rng.randrange(columns)] = 1
    _both_ways(student, variant, one, bits, columns, "a single code is not 0")


@given(number=NUMBERS, bits=ALL_BITS)
@example(number=5, bits=4)
@example(number=6, bits=5)
def test_last_group(student, variant, number, bits):
    """Groups that do not fill their words, and a last group that is shorter, in any row."""
    rng = random.Random(number)
    slots = 32 // bits
    group = rng.randint(1, 3 * slots)
    for columns in {group, group + 1, 2 * group + rng.randrange(group), 3 * group, 3 * group - 1}:
        codes = _codes(rng, rng.randint(1, 3), columns or 1, bits)
        _both_ways(student, variant, codes, bits, group)
    short = _codes(rng, 1, rng.randint(1, group), bits)
    _both_ways(student, variant, short, bits, group, "the row is shorter than one group")


@given(number=NUMBERS, bits=ALL_BITS)
def test_words_are_int32(student, variant, number, bits):
    """The largest codes, whose words would be above 2³¹."""
    rng = random.Random(number)
    slots = 32 // bits
    columns = rng.randint(1, 3 * slots)
    most = np.full((2, columns), 2**bits - 1)
    _both_ways(student, variant, most, bits, columns)
    _both_ways(student, variant, most, bits, rng.randint(1, columns))
    codes = _codes(rng, 4, 3 * slots, bits)
    _both_ways(student, variant, np.maximum(codes, 2**bits - 2), bits, rng.randint(1, 3 * slots))


@given(number=NUMBERS, bits=ALL_BITS)
@example(number=7, bits=3)
@example(number=8, bits=5)
def test_other_bits(student, variant, number, bits):
    """What other producers leave between and behind the codes is not read."""
    rng = random.Random(number)
    group = rng.randint(1, 2 * (32 // bits))
    columns = rng.randint(1, 3 * group)
    codes = _codes(rng, 3, columns, bits)
    words = pack(variant, codes, bits, group)
    student.expect("pack", codes, bits, group, want=words)
    other = litter(variant, words, bits, columns, group, rng)
    student.expect("unpack", other, bits, columns, group, want=codes)
    made, _ = random_shard(variant, rng, bits=bits)
    clean = student.call("fuse", [made])  # zeros that are read wrongly are test_zeros' to find
    groups = made["scales"].shape[1]
    made["zeros"] = litter(variant, made["zeros"], bits, groups, groups, rng)
    why = "what fuse gave for 0 in the bits of the zeros' words that hold no zero"
    student.expect("fuse", [made], want=clean, because=why)


@given(number=NUMBERS, bits=ALL_BITS)
@example(number=9, bits=4)
@example(number=10, bits=2)
@example(number=11, bits=8)
def test_zeros(student, variant, number, bits):
    """Every zero, and none; one row a block."""
    rng = random.Random(number)
    columns = min(2**bits, 40)
    zeros = [list(range(columns)), [(2**bits - 1 - c) % 2**bits for c in range(columns)]]
    codes = _codes(rng, 2, columns, bits).tolist()
    scales = [[1.0] * columns] * 2
    made = shard(variant, codes, scales, zeros, bits, 1, 1)
    fused = {"codes": codes, "scales": scales, "zeros": zeros}
    _fuse(student, [made], [fused])
    made, fused = random_shard(variant, rng, bits=bits, block=1)
    _fuse(student, [made], [fused])
    made, fused = random_shard(variant, rng, bits=bits, block=1, has_zeros=False)
    _fuse(student, [made], [fused], "`zeros` is None")


@given(number=NUMBERS)
@example(number=12)
@example(number=13)
def test_own_scales(student, variant, number):
    """Two to four shards of unlike rows and blocks, with zeros and without."""
    rng = random.Random(number)
    bits, columns = rng.choice((2, 3, 4, 8)), rng.randint(1, 20)
    same = {"bits": bits, "columns": columns, "group": rng.randint(1, columns + 2)}
    pairs = [
        random_shard(variant, rng, **same, has_zeros=rng.random() < 0.7)
        for _ in range(rng.randint(2, 4))
    ]
    _fuse(student, [made for made, _ in pairs], [fused for _, fused in pairs])
    short = random_shard(variant, rng, **same, rows=5, block=2)
    other = random_shard(variant, rng, **same, rows=3, block=2, has_zeros=False)
    why = "the first shard's last block has one row, and blocks are counted anew in the next"
    _fuse(student, [short[0], other[0]], [short[1], other[1]], why)
    one = random_shard(variant, rng, **same, rows=4, block=4)
    two = random_shard(variant, rng, **same, rows=4, block=1)
    _fuse(student, [one[0], two[0], one[0]], [one[1], two[1], one[1]], "their blocks differ")


@given(number=NUMBERS)
def test_refuses(student, variant, number):
    """Codes that do not fit, shapes that contradict, shards that differ."""
    rng = random.Random(number)
    bits, rows = rng.choice((2, 3, 4)), rng.randint(2, 4)
    codes = _codes(rng, rows, 9, bits)
    for wrong in (-1, 2**bits, 2**bits + 1):
        spoilt = codes.copy()
        spoilt[rng.randrange(rows), rng.randrange(9)] = wrong
        student.refuses("pack", spoilt, bits, 4, because=f"the code {wrong} and {bits} bits")
    words = pack(variant, codes, bits, 4)
    more = np.concatenate([words, words[:, :1]], 1)
    for other in (words[:, :-1], more):
        student.refuses("unpack", other, bits, 9, 4, because="the row needs 3 words")
    same = {"bits": bits, "columns": 9, "group": 4, "rows": rows}
    made, _ = random_shard(variant, rng, **same, block=2)
    unlike = {"bits": (bits + 1,), "columns": (8, 10), "group": (3, 12)}
    for key, value in [(key, value) for key, values in unlike.items() for value in values]:
        other, _ = random_shard(variant, rng, **(same | {key: value}))
        student.refuses("fuse", [made, other], because=f"they differ in {key}")
        student.refuses("fuse", [made, made, other], because=f"they differ in {key}")
    alike = [{"bits": bits, "columns": 4, "group": size} for size in (4, 6)]
    pair = [random_shard(variant, rng, **one)[0] for one in alike]
    student.refuses("fuse", pair, because="they differ in group, which here changes no place")
    bare, unstored = random_shard(variant, rng, **same, block=2, has_zeros=False)
    for one, keys in ((made, ("words", "scales", "zeros")), (bare, ("words", "scales"))):
        for key in keys:
            why = f"a row of {key} is missing"
            student.refuses("fuse", [one | {key: one[key][:-1]}], because=why)
            longer = np.concatenate([one[key], one[key][:1]])
            student.refuses("fuse", [one | {key: longer}], because=f"a row of {key} too many")
            wider = np.concatenate([one[key], one[key][:, :1]], 1)
            student.refuses("fuse", [one | {key: wider}], because=f"a column of {key} too many")
    turned = {"scales": bare["scales"].T, "words": bare["words"].reshape(1, -1)}
    for key, value in turned.items():
        why = f"{key} of the shape {list(value.shape)}, not {list(bare[key].shape)}"
        student.refuses("fuse", [bare | {key: value}], because=why)
    _fuse(student, [bare], [unstored], "its shapes are those of its numbers, so it is not refused")
