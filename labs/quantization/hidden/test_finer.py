"""Hidden tests of `write` and `read`, each variant beside its own oracle."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from . import finer_oracle as oracle
from .driving import pure
from .grid_oracle import cost_of, search, search_row, settled
from .test_gptq import hessian_of, killed, weights_of

NUMBERS = st.integers(0, 10_000)
LADDER = [1.0, 0.875, 0.75]
LADDERS = (LADDER, [0.75, 0.875])


def _write(student, make, writes, number, because=""):
    """Judge `make(rng)`, the arguments of `write`, against `writes` of them."""

    def case(number):
        args = make(random.Random(number))
        return args, writes(*args)

    args, want = settled(case, number)
    want = want[0] if isinstance(want, tuple) else want
    student.expect("write", *args, want=want, because=because)
    return args, want


def _importance(rng, columns):
    return np.array([rng.choice((0.0, 0.5, 1.0, 8.0)) for _ in range(columns)])


# ---- dense: the arguments of `write`


def _dense(rng, columns=None, group=None, rows=None):
    columns = columns or rng.randint(2, 14)
    group = group or rng.randint(1, columns)
    weights = weights_of(rng, rows or rng.randint(1, 4), columns)
    importance = _importance(rng, columns)
    part = [Fraction(w) for w in weights[0, :group]]
    h = [Fraction(value) for value in importance[:group]]
    ladder, small = rng.choice(LADDERS), rng.choice((1.0, 2.0**-40))
    cost = cost_of("dense", part, h, search_row("dense", part, h, 3, ladder), 3)
    limit = rng.choice((float(cost) * rng.choice((0.5, 0.9, 1.2)), 0.05, 0.2))
    return weights, importance * small, group, ladder, limit * small


def _dense_file(rng, rows, columns, group, more=0, filler="0"):
    """A file of anything, and the weights that it stands for."""
    streams, scales, weights = [], [], []
    for _ in range(rows):
        bits = [rng.choice((3, 4)) for _ in range(0, columns, group)]
        counts = [min(group, columns - begin) for begin in range(0, columns, group)]
        zeros = [rng.randrange(2**width) for width in bits]
        codes = [
            [rng.randrange(2**width) for _ in range(count)]
            for width, count in zip(bits, counts, strict=True)
        ]
        scale = [rng.randint(1, 99) / 32 for _ in bits]
        streams.append(oracle.stream_of(bits, zeros, codes))
        scales.append(scale)
        weights.append(
            [(c - z) * s for z, s, of in zip(zeros, scale, codes, strict=True) for c in of]
        )
    stored = {**oracle.words_of(streams, more, filler), "scales": np.array(scales)}
    return stored, np.array(weights), streams


# ---- doubled


def _doubled(rng, columns=None, group=None, block=None, steep=1.0):
    columns = columns or rng.randint(2, 14)
    group = group or rng.randint(1, columns)
    groups, rows, bits = -(-columns // group), rng.randint(1, 3), rng.choice((2, 3, 4))
    weights = weights_of(rng, rows, columns)
    zeros = np.array([[rng.randrange(2**bits) for _ in range(groups)] for _ in range(rows)])
    scales = np.array(
        [[rng.uniform(0.05, 0.9) * steep ** -rng.randrange(3) for _ in range(groups)]
         for _ in range(rows)]
    )  # fmt: skip
    block = block or rng.randint(1, groups)
    importance = _importance(rng, columns) * rng.choice((1.0, 2.0**-40))
    return weights, importance, scales, zeros, bits, group, block


def _doubled_file(rng, rows, columns, group, block):
    groups = -(-columns // group)
    blocks = -(-groups // block)
    made = {
        "codes": [[rng.randrange(16) for _ in range(columns)] for _ in range(rows)],
        "zeros": [[rng.randrange(16) for _ in range(groups)] for _ in range(rows)],
        "exponents": [[rng.randint(-12, 3) for _ in range(blocks)] for _ in range(rows)],
        "steps": [[rng.choice((1, 2, 100, 128, 255)) for _ in range(groups)] for _ in range(rows)],
    }
    weights = [
        [
            (made["codes"][n][k] - made["zeros"][n][k // group])
            * made["steps"][n][k // group]
            * 2.0 ** made["exponents"][n][k // group // block]
            for k in range(columns)
        ]
        for n in range(rows)
    ]
    return {name: np.array(value) for name, value in made.items()}, np.array(weights)


# ---- sorted


def _sorted(rng, static, columns=None, group=None, dead=0, diagonal=None):
    columns = columns or rng.randint(2, 6)
    hessian = hessian_of(rng, columns) if diagonal is None else np.diag(diagonal)
    if dead:
        hessian = killed(hessian, rng.sample(range(columns), min(dead, columns - 1)))
    weights = weights_of(rng, 2, columns)
    group, ladder = group or rng.randint(1, columns), rng.choice(LADDERS)
    return weights, hessian, rng.choice((2, 3)), group, ladder, rng.choice((0.0625, 0.25)), static


def _sorted_file(rng, rows, columns, group, own_groups, gaps=False):
    """A file of anything, and its weights; with `gaps` a group may have no column."""
    groups = -(-columns // group)
    made = {
        "codes": np.array([[rng.randrange(16) for _ in range(columns)] for _ in range(rows)]),
        "scales": np.array([[rng.randint(1, 99) / 32 for _ in range(groups)] for _ in range(rows)]),
        "zeros": np.array([[rng.randrange(16) for _ in range(groups)] for _ in range(rows)]),
    }
    group_of = [k // group for k in range(columns)]
    if own_groups:
        rng.shuffle(group_of)
        if gaps:
            group_of = [rng.randrange(groups) for _ in group_of]
        made["g_idx"] = np.array(group_of)
    weights = [
        [(made["codes"][n][k] - made["zeros"][n][g]) * made["scales"][n][g]
         for k, g in enumerate(group_of)]
        for n in range(rows)
    ]  # fmt: skip
    return made, np.array(weights)


# ---- the tests


@given(number=NUMBERS)
@example(number=1)
@example(number=2)
@example(number=3)
def test_choice(student, variant, number):
    """What `write` chooses, beside the same rules in fractions."""
    if variant == "dense":
        _write(student, _dense, oracle.write_dense, number)
        _write(student, lambda rng: _dense(rng, 8, 4, 3), oracle.write_dense, number)
    elif variant == "doubled":
        _write(student, _doubled, oracle.write_doubled, number)
        few = lambda rng: _doubled(rng, 6, 2, 1)  # noqa: E731
        _write(student, few, oracle.write_doubled, number)
    else:
        for static in (True, False):
            make = lambda rng, static=static: _sorted(rng, static)  # noqa: E731
            _write(student, make, oracle.write_sorted, number)


@given(number=NUMBERS)
@example(number=1)
@example(number=2)
def test_storage(student, variant, number):
    """What `write` stores, number by number, in files with more groups."""
    if variant == "dense":
        make = lambda rng: _dense(rng, rng.randint(9, 24), rng.randint(2, 6), 3)  # noqa: E731
        _write(student, make, oracle.write_dense, number)
    elif variant == "doubled":
        make = lambda rng: _doubled(rng, 12, 3, rng.choice((2, 3)), steep=40.0)  # noqa: E731
        _write(student, make, oracle.write_doubled, number)
    else:
        for static in (True, False):
            make = lambda rng, static=static: _sorted(rng, static, 6, 2)  # noqa: E731
            _write(student, make, oracle.write_sorted, number)


@given(number=NUMBERS)
@example(number=1)
@example(number=2)
def test_reading(student, variant, number):
    """What is read, of files that others wrote."""
    rng = random.Random(number)
    rows, columns = rng.randint(1, 3), rng.randint(1, 30)
    group = rng.randint(1, columns + 2)
    if variant == "dense":
        made, weights, _ = _dense_file(rng, rows, columns, group)
        student.expect("read", made, columns, group, want=weights)
        made, weights, _ = _dense_file(rng, rows, columns, group, rng.randrange(3), "101101")
        why = "what lies behind a row's last code is not read"
        student.expect("read", made, columns, group, want=weights, because=why)
        before = np.array([rng.getrandbits(31) for _ in range(rng.randint(1, 3))])
        made["words"] = np.concatenate([before, made["words"]])
        made["starts"] = made["starts"] + len(before)
        why = f"row 0 starts at {len(before)}"
        student.expect("read", made, columns, group, want=weights, because=why)
    elif variant == "doubled":
        block = rng.randint(1, -(-columns // group) + 1)
        made, weights = _doubled_file(rng, rows, columns, group, block)
        student.expect("read", made, group, block, want=weights)
    else:
        for own_groups, gaps in ((False, False), (True, False), (True, True)):
            made, weights = _sorted_file(rng, rows, columns, group, own_groups, gaps)
            student.expect("read", made, group, want=weights)


def _edges_dense(student, rng, number):
    group = rng.choice((2, 3))
    _write(student, lambda r: _dense(r, 3 * group + 1, group, 2), oracle.write_dense, number)
    weights = np.array([[rng.randint(-16, 16) / 8 for _ in range(3)]])
    weights[0, :2] = -1.0, 0.75  # a span of 7/4 has a scale of 1/4
    row = [Fraction(value) for value in weights[0]]
    weights[0, 2] = row[2] = Fraction(rng.choice((-5, -3, -1, 1, 3, 5)), 8)
    ones = [Fraction(1)] * 3
    grid = search_row("dense", row, ones, 3, [1.0])
    cost = float(cost_of("dense", row, ones, grid, 3))
    weights = np.array([[float(value) for value in row]])
    for limit, why in ((cost, "the cost equals the limit"), (cost - 2**-10, "it is above it")):
        want = oracle.write_dense(weights, np.ones(3), 3, [1.0], limit)[0]
        student.expect("write", weights, np.ones(3), 3, [1.0], limit, want=want, because=why)
    columns = rng.randint(20, 30)
    made, weights, _ = _dense_file(rng, 3, columns, 4)
    why = "row 1 ends where row 2 starts, so a word is missing"
    moved = made["starts"].copy()
    moved[2] -= 1
    student.refuses("read", {**made, "starts": moved}, columns, 4, because=why)
    cut = {**made, "words": made["words"][:-1]}
    student.refuses("read", cut, columns, 4, because="the last word is missing")
    spread = {**made, "words": np.append(made["words"], 5)}
    student.expect("read", spread, columns, 4, want=weights, because="one word more at the end")
    stream = oracle.stream_of([3], [5], [[rng.randrange(8) for _ in range(10)]])
    assert len(stream) == 34  # bits 31 to 33 are the last code's
    made = {**oracle.words_of([stream]), "scales": np.array([[0.5]])}
    cut = {**made, "words": made["words"][:1]}
    why = "the last code begins in the row's word and would end in the next"
    student.refuses("read", cut, 10, 10, because=why)
    exact = [[7] * 6, [1, 2]]  # 1 + 3 * 7 + 1 + 3 * 3 bits are 32
    stream = oracle.stream_of([3, 3], [5, 6], exact)
    assert len(stream) == 32
    made = {**oracle.words_of([stream]), "scales": np.array([[0.5, 2.0]])}
    want = np.array([[1.0] * 6 + [-10.0, -8.0]])
    student.expect("read", made, 8, 6, want=want, because="its stream has 32 bits, one word")


def _edges_doubled(student, rng, number):
    group, block = rng.choice((2, 3)), rng.choice((2, 3))
    odd = lambda r: _doubled(r, group * block + group + 1, group, block)  # noqa: E731
    _write(student, odd, oracle.write_doubled, number, "the last block and the last group")
    tiny = lambda r: _doubled(r, 6, 2, 3, steep=900.0)  # noqa: E731
    _write(student, tiny, oracle.write_doubled, number, "steps of 1")
    for large, e in ((255.0, 0), (510.0, 1), (255 / 256, -8), (1.0, -7), (255.5, 1)):
        scales = np.array([[large, large / 2, large / 4]])
        weights, zeros = weights_of(rng, 1, 3) * large, np.array([[1, 2, 0]])
        args = weights, np.ones(3), scales, zeros, 3, 1, 3
        want = oracle.write_doubled(*args)
        assert want["exponents"][0, 0] == e
        student.expect("write", *args, want=want, because=f"the largest scale is {large}")
    flat = np.zeros(3)
    args = weights_of(rng, 1, 3), flat, np.array([[0.3, 0.2, 0.7]]), np.array([[1, 2, 0]]), 3, 1, 3
    why = "both steps cost the same"
    student.expect("write", *args, want=oracle.write_doubled(*args), because=why)
    made, _ = _doubled_file(rng, 2, 9, 3, 2)
    for step in (0, 256, -1):
        spoilt = {**made, "steps": made["steps"].copy()}
        spoilt["steps"][rng.randrange(2), rng.randrange(3)] = step
        student.refuses("read", spoilt, 3, 2, because=f"the step {step}")
    for other in (made["exponents"][:, :1], np.repeat(made["exponents"], 2, 1)[:, :3]):
        spoilt = {**made, "exponents": other}
        student.refuses("read", spoilt, 3, 2, because="3 groups are 2 blocks")


def _edges_sorted(student, rng, number):
    for static in (True, False):
        dead = lambda r, s=static: _sorted(r, s, 5, 2, dead=2)  # noqa: E731
        _write(student, dead, oracle.write_sorted, number, "two columns are dead")
        flat = [float(rng.choice((2, 3))) for _ in range(5)]
        equal = lambda r, s=static, f=flat: _sorted(r, s, 5, 2, diagonal=f)  # noqa: E731
        _write(student, equal, oracle.write_sorted, number, "equal ones from left to right")
        if number == 1:  # once: NumPy sorts 16 columns and fewer in an order that long rows lack
            long = [float(rng.choice((2, 3))) for _ in range(24)]
            many = lambda r, s=static, d=long: _sorted(r, s, 24, 5, diagonal=d)  # noqa: E731
            _write(student, many, oracle.write_sorted, number, "24 columns, two importances")
        none = lambda r, s=static: _sorted(r, s, 3, 2, diagonal=[0.0] * 3)  # noqa: E731
        _write(student, none, oracle.write_sorted, number, "all columns are dead")
    made, _ = _sorted_file(rng, 2, 7, 3, True)
    whole = made["g_idx"]
    for g_idx in (whole[:-1], np.append(whole, 0), np.where(whole == 2, 3, whole), whole - 1):
        student.refuses("read", {**made, "g_idx": g_idx}, 3, because=f"g_idx is {g_idx}")
    del made["g_idx"]
    for group in (2, 4):
        student.refuses("read", made, group, because=f"7 columns, 3 groups, groups of {group}")


@given(number=NUMBERS)
@example(number=1)
@example(number=2)
@example(number=9)
def test_edges(student, variant, number):
    """At the edges: the last group, equal costs, what cannot be read."""
    edges = {"dense": _edges_dense, "doubled": _edges_doubled, "sorted": _edges_sorted}
    edges[variant](student, random.Random(number), number)


@given(number=NUMBERS)
def test_any_layer(student, variant, number):
    """What was written is read again, by your own `read`; the arguments stay as they are."""
    if variant == "dense":
        args, want = settled(
            lambda n: (lambda a: (a, oracle.write_dense(*a)))(_dense(random.Random(n))), number
        )
        weights, importance, group, ladder, _ = args
        written, reads = want[0], (weights.shape[1], group)
        expected = np.zeros(weights.shape)
        for begin in range(0, weights.shape[1], group):
            here = slice(begin, begin + group)
            for n, row in enumerate(want[1]):
                bits = row[begin // group]
                (scale,), (zero,) = search("dense", weights[n : n + 1, here], importance[here],
                                           bits, ladder)  # fmt: skip
                codes = np.clip(np.floor(weights[n, here] / scale + 0.5) + zero, 0, 2**bits - 1)
                expected[n, here] = (codes - zero) * scale
    elif variant == "doubled":
        args, want = settled(
            lambda n: (lambda a: (a, oracle.write_doubled(*a)))(_doubled(random.Random(n))), number
        )
        written, reads = want, args[-2:]
        group, block = reads
        groups = np.arange(args[0].shape[1]) // group
        scales = want["steps"] * 2.0 ** want["exponents"][:, np.arange(groups[-1] + 1) // block]
        expected = (want["codes"] - want["zeros"][:, groups]) * scales[:, groups]
    else:
        static = number % 2 == 0
        args, want = settled(
            lambda n: (lambda a: (a, oracle.write_sorted(*a)))(_sorted(random.Random(n), static)),
            number,
        )
        group = args[3]
        written, reads = want, (group,)
        groups = want.get("g_idx", np.arange(args[0].shape[1]) // group)
        expected = (want["codes"] - want["zeros"][:, groups]) * want["scales"][:, groups]
    kept = pure(student, "write", *args, want=written)
    pure(student, "read", kept, *reads, want=expected, because="what your write returned")
