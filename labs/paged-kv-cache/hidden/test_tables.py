"""Hidden tests of `BlockTables`: the same calls to an oracle, the same answers."""

from __future__ import annotations

import functools

from hypothesis import example, given
from hypothesis import strategies as st

from .driving import Pair
from .in_quire import HEADER, WithTables, run
from .tables_oracle import TablesOracle

FAR = 1 << 20  # a window that hides nothing


def _tables(student, variant, num_blocks, block_size, special=None):
    if special is None:
        special = {"window": FAR, "swap": 0, "beam": 0}[variant]
    args = (num_blocks, block_size) if variant == "beam" else (num_blocks, block_size, special)
    oracle = TablesOracle(variant, num_blocks, block_size, special)
    return Pair(student, oracle, "BlockTables", *args)


def _compare_all(tables):
    for request in sorted(tables.oracle.tables):
        tables.call("table", request)
    tables.call("num_free")


def _begun(tables, request, length):
    tables.call("start", request)
    tables.call("append", request, length)


@given(block_size=st.integers(1, 4), counts=st.lists(st.integers(0, 5), max_size=8))
def test_append_and_free(student, variant, block_size, counts):
    """As few blocks as needed, and all of them back."""
    tables = _tables(student, variant, 50, block_size)
    for request in ("a", "b"):
        tables.call("start", request)
        for count in counts:
            tables.call("append", request, count)
        _compare_all(tables)
    tables.call("free", "a")
    tables.call("num_free")
    tables.call("append", "b", 9)
    tables.call("free", "b")
    tables.call("num_free")


@given(
    length=st.integers(0, 9), shared=st.integers(0, 9),
    counts=st.lists(st.integers(0, 5), max_size=4), order=st.permutations(["a", "b", "c"]),
)  # fmt: skip
@example(length=6, shared=6, counts=[1, 1], order=["a", "b", "c"])
@example(length=8, shared=8, counts=[1], order=["a", "b", "c"])
@example(length=6, shared=5, counts=[0, 1], order=["b", "a", "c"])
def test_whoever_writes_first_copies(student, variant, length, shared, counts, order):
    """The writer of a shared block copies it, the last holder writes in place."""
    tables = _tables(student, variant, 30, 4)
    _begun(tables, "a", length)
    for child in ("b", "c"):
        tables.call("fork", "a", child, min(shared, length))
    _compare_all(tables)
    for count in counts:
        for request in order:
            tables.call("append", request, count)
        _compare_all(tables)


def test_the_last_holder(student, variant):
    """Whoever is left alone with a block writes in place, parent or child."""
    for gone, left in (("a", "b"), ("b", "a")):
        tables = _tables(student, variant, 9, 4)
        _begun(tables, "a", 6)
        tables.call("fork", "a", "b", 6)
        tables.call("free", gone)
        tables.call("append", left, 1, because=f"{gone} is gone: one table holds the block")
        _compare_all(tables)


@given(
    length=st.integers(4, 11), named=st.integers(0, 2), at=st.integers(0, 11), keep=st.booleans()
)
@example(length=8, named=2, at=6, keep=False)
def test_named_blocks_are_never_written(student, variant, length, named, at, keep):
    """A block that can be found by name is copied, even by its last holder."""
    tables = _tables(student, variant, 12, 4)
    _begun(tables, "a", length)
    tables.call("commit", "a", [b"x", b"y"][: min(named, length // 4)])
    tables.call("fork", "a", "b", min(at, length))
    if not keep:
        tables.call("free", "a")
    tables.call("append", "b", 2, because=f"{min(named, length // 4)} blocks have names")
    _compare_all(tables)
    tables.call("append", "b", 1, because="the copy has no name")


def test_a_taken_name(student, variant):
    """A block whose name is another's has none, and is written in place."""
    tables = _tables(student, variant, 12, 4)
    for request in ("a", "b"):
        _begun(tables, request, 8)
        tables.call("commit", request, [b"x", b"y"])
        tables.call("truncate", request, 7)
    tables.call("append", "b", 1, because="the name y belongs to a's block")
    tables.call("append", "a", 1, because="the name y belongs to a's block")
    _compare_all(tables)


@given(num_blocks=st.integers(3, 7), length=st.integers(1, 12), count=st.integers(1, 9))
@example(num_blocks=4, length=6, count=1)
@example(num_blocks=4, length=6, count=3)
@example(num_blocks=3, length=6, count=1)  # a copy and no block for it
def test_too_full(student, variant, num_blocks, length, count):
    """None, and table, length and free blocks are as before."""
    tables = _tables(student, variant, num_blocks, 4)
    tables.call("start", "a")
    if tables.call("append", "a", length) is None:
        _compare_all(tables)
        return
    tables.call("fork", "a", "b", length)
    for request in ("b", "a", "b"):
        tables.call("append", request, count)
        _compare_all(tables)
    tables.call("free", "a")
    tables.call("append", "b", 1)
    _compare_all(tables)


@given(length=st.integers(0, 13), to=st.integers(0, 13), more=st.integers(0, 6), fork=st.booleans())
@example(length=9, to=8, more=1, fork=False)
@example(length=9, to=5, more=1, fork=True)
def test_truncate(student, variant, length, to, more, fork):
    """Blocks behind the rest go, a block that holds some of it stays."""
    tables = _tables(student, variant, 20, 4)
    _begun(tables, "a", length)
    if fork:
        tables.call("fork", "a", "b", length)
    tables.call("truncate", "a", min(to, length))
    _compare_all(tables)
    tables.call("append", "a", more)
    _compare_all(tables)


def test_refuses(student, variant):
    """More tokens than there are, or a child that exists: ValueError, and nothing has changed."""
    tables = _tables(student, variant, 12, 4)
    _begun(tables, "a", 6)
    _begun(tables, "b", 3)
    tables.call("fork", "a", "c", 7, because="a has 6 tokens")
    tables.call("fork", "a", "b", 4, because="b exists")
    tables.call("truncate", "a", 7, because="a has 6 tokens")
    _compare_all(tables)
    tables.call("fork", "a", "c", 6, because="c does not exist yet")
    for request in ("a", "b", "c"):
        tables.call("append", request, 1)
    _compare_all(tables)


def test_rule_of_the_variant(student, variant):
    """The variant's own rule, step by step."""
    {"window": _window, "swap": _swap, "beam": _beam}[variant](student, variant)


def _window(student, variant):
    tables = _tables(student, variant, 6, 2, special=3)
    _begun(tables, "a", 5)
    tables.call("table", "a", because="the 5 tokens are computed only now: all blocks are read")
    tables.call("append", "a", 1, because="the token at 5 sees 3, 4, 5: block 0 goes first")
    tables.call("table", "a")
    tables.call(
        "append", "a", 6, because="the token at 6 sees 4, 5, 6: one block goes, five are free"
    )
    tables.call("fork", "a", "b", 6, because="the next token would see 4, 5, 6: they are there")
    tables.call("fork", "a", "c", 5, because="the next token would see 3, which was let go of")
    tables.call("truncate", "a", 4, because="the next token would see 2 and 3")
    tables.call("truncate", "a", 7, because="the next token sees 5, 6, 7")
    _compare_all(tables)
    tables.call("append", "b", 9, because="too full: None, but what b sees no longer is gone")
    _compare_all(tables)
    full = _tables(student, variant, 4, 2, special=3)
    _begun(full, "a", 6)
    full.call("append", "a", 9, because="too full: None, but the token at 6 sees 4, 5, 6 alone")
    _compare_all(full)
    full.call("append", "a", 4, because="the blocks that were let go of serve it")
    very = _tables(student, variant, 4, 2, special=3)
    _begun(very, "a", 6)
    very.call("append", "a", 4, because="blocks 0 and 1 go and serve this very append")
    _compare_all(very)
    named = _tables(student, variant, 8, 2, special=3)
    _begun(named, "a", 7)
    named.call("append", "a", 0, because="the token at 7 sees 5, 6, 7: blocks 0 and 1 go")
    named.call("commit", "a", [b"x", b"y"], because="names of blocks that are gone")
    named.call("append", "a", 1, because="the last block has no name and one holder")
    named.call("commit", "a", [b"x", b"y", b"z"], because="block 2 of the table is z")
    named.call("truncate", "a", 7)
    named.call("append", "a", 1, because="block 3 has no name")
    _begun(named, "b", 6)
    named.call("commit", "b", [b"x", b"y", b"z"], because="x and y were no block's; z is a's")
    named.call("truncate", "b", 5)
    named.call("append", "b", 1, because="the name z was taken, so block 2 of b has none")
    _compare_all(named)
    narrow = _tables(student, variant, 6, 4, special=1)
    _begun(narrow, "a", 8)
    narrow.call("append", "a", 0, because="no token from 8 on sees anything before it")
    narrow.call("table", "a")
    narrow.call("truncate", "a", 8)
    narrow.call("truncate", "a", 6, because="the next token would lie in block 1, which is gone")
    narrow.call("fork", "a", "b", 4, because="the next token opens a block of its own")
    narrow.call("append", "b", 1)
    _compare_all(narrow)


def _swap(student, variant):
    tables = _tables(student, variant, 7, 2, special=3)
    _begun(tables, "a", 6)
    tables.call("fork", "a", "b", 2)
    tables.call("append", "b", 3)
    tables.call("swap_out", "a", because="b holds the first block too")
    _compare_all(tables)
    for name, args in (
        ("append", ("a", 1)), ("fork", ("a", "c", 1)), ("truncate", ("a", 1)),
        ("commit", ("a", [b"x"])), ("swap_out", ("a",)), ("swap_in", ("b",)),
        ("append", ("a", 0)), ("fork", ("a", "c", 0)), ("truncate", ("a", 6)),
        ("commit", ("a", [])),
    ):  # fmt: skip
        tables.call(name, *args, because="a is swapped out, b is not")
    tables.call("swap_out", "b", because="two blocks to move, one host block free")
    tables.call("append", "b", 2)
    tables.call("swap_in", "a", because="two blocks needed, two are free")
    _compare_all(tables)
    tables.call("append", "b", 3, because="no block is free")
    tables.call("swap_out", "a")
    tables.call("append", "b", 3)
    tables.call("swap_in", "a", because="too few blocks are free")
    _compare_all(tables)
    tables.call("free", "a")
    tables.call("truncate", "b", 5)
    tables.call("swap_out", "b", because="three blocks, and a's host blocks are free again")
    tables.call("swap_in", "b")
    _compare_all(tables)
    tables.call("commit", "b", [b"x"])
    tables.call("swap_out", "b", because="a block that moves loses its name")
    tables.call("swap_in", "b")
    tables.call("truncate", "b", 1)
    tables.call("append", "b", 1, because="it has no name, and one holder: it is written in place")
    tables.call("commit", "b", [b"x"], because="the name is free again")
    tables.call("truncate", "b", 1)
    tables.call("append", "b", 1, because="now block 0 of the table has a name")
    shared = _tables(student, variant, 7, 2, special=3)
    _begun(shared, "a", 2)
    shared.call("fork", "a", "b", 2)
    shared.call("swap_out", "a", because="b holds the one block: nothing moves")
    shared.call("append", "a", 1, because="a is swapped out all the same")
    shared.call("swap_out", "a")
    shared.call("swap_in", "a")
    shared.call("swap_out", "a")
    shared.call("free", "b", because="a's block stays where it is, though a alone holds it now")
    _compare_all(shared)
    shared.call("swap_in", "a", because="nothing had moved")
    shared.call("append", "a", 1)
    _compare_all(shared)
    for request in ("c", "d"):
        _begun(shared, request, 1)
        shared.call("swap_out", request)
    shared.call("free", "c")
    shared.call("swap_out", "a", because="the free host blocks of the smallest numbers")
    _compare_all(shared)


def _beam(student, variant):
    tables = _tables(student, variant, 8, 2)
    _begun(tables, "a", 3)
    for beam in ("b", "c"):
        tables.call("fork", "a", beam, 3)
    beams = ["a", "b", "c"]
    tables.call("append_all", beams, 1, because="two copy, the last writes in place")
    tables.call("reorder", beams, ["b", "a", "b"])
    _compare_all(tables)
    tables.call("append_all", beams, 1, because="three new blocks, no copy: all is full")
    tables.call("append_all", beams, 2, because="three more blocks needed, one free")
    _compare_all(tables)
    tables.call("reorder", beams, ["c", "c", "c"])
    _compare_all(tables)
    tables.call("append_all", beams, 1, because="two copies; the third writes in place")
    tables.call("reorder", ["c", "a"], ["a", "a"])
    _compare_all(tables)
    tight = _tables(student, variant, 5, 2)
    _begun(tight, "a", 3)
    for beam in ("b", "c"):
        tight.call("fork", "a", beam, 3)
    tight.call("append_all", beams, 1, because="two copies and two free; the third writes in place")
    _compare_all(tight)
    tighter = _tables(student, variant, 4, 2)
    _begun(tighter, "a", 3)
    for beam in ("b", "c"):
        tighter.call("fork", "a", beam, 3)
    tighter.call("append_all", beams, 1, because="two copies and one free")
    _compare_all(tighter)
    for beam in beams:
        tighter.call("append", beam, 1, because="nothing had changed")
    uneven = _tables(student, variant, 12, 4)
    _begun(uneven, "a", 3)
    _begun(uneven, "b", 9)
    uneven.call("reorder", ["a", "b"], ["b", "a"])
    _compare_all(uneven)
    uneven.call("append", "a", 2, because="a has the nine tokens of b")
    uneven.call("append", "b", 2, because="b has the three tokens of a")
    _compare_all(uneven)
    full = _tables(student, variant, 5, 2)
    _begun(full, "a", 2)
    full.call("commit", "a", [b"x"])
    full.call("truncate", "a", 1)
    for beam in ("b", "c"):
        full.call("fork", "a", beam, 1)
    full.call("append_all", beams, 1, because="three copies of a named block, three free")
    full.call("append_all", beams, 1, because="the named block is free again: too few all the same")
    _compare_all(full)
    full.call("free", "c")
    full.call("append_all", ["a", "b"], 1)
    _compare_all(full)
    left = _tables(student, variant, 5, 2)
    for beam in beams:
        _begun(left, beam, 2)
    left.call("commit", "a", [b"x"])
    left.call("truncate", "a", 1)
    left.call("append_all", ["b", "a"], 1, because="b takes the free block, none is left for a")
    left.call("append_all", beams, 1, because="a leaves block 1 to b, and c finds none")
    _compare_all(left)
    left.call("append_all", ["a", "b"], 1, because="a leaves block 1, which is free for b")
    _compare_all(left)


OPERATION = st.tuples(*(st.integers(0, n) for n in (8, 3, 3, 13)))


@given(
    day=st.lists(OPERATION, max_size=25), num_blocks=st.integers(4, 14),
    block_size=st.integers(1, 4), special=st.integers(1, 6),
)  # fmt: skip
def test_any_day(student, variant, day, num_blocks, block_size, special):
    """Any order of calls, those that are refused included."""
    tables = _tables(student, variant, num_blocks, block_size, special)
    for number, (operation, first, second, size) in enumerate(day):
        one, other = "abcd"[first], "abcd"[second]
        live = tables.oracle.tables
        if one not in live:
            tables.call("start", one)
        if operation <= 2:
            tables.call("append", one, size % 6)
        elif operation == 3:
            tables.call("fork", one, other, size)
        elif operation == 4:
            tables.call("truncate", one, size)
        elif operation == 5:
            count = min(size, live_length(tables, one) // block_size)
            tables.call("commit", one, [b"%d %d" % (number % 7, i) for i in range(count)])
        elif operation == 6:
            tables.call("free", one)
        else:
            _special(tables, variant, operation, one, other, size)
        _compare_all(tables)


def live_length(tables, request):
    """Tokens of a request, by the oracle."""
    return tables.oracle.lengths[request]


def _special(tables, variant, operation, one, other, size):
    if variant == "swap":
        tables.call("swap_out" if operation == 7 else "swap_in", one)
    elif variant == "beam":
        beams = sorted(tables.oracle.tables)
        if operation == 7:
            parents = [beams[(size // (i + 1)) % len(beams)] for i in range(len(beams))]
            tables.call("reorder", beams, parents)
        else:
            tables.call("append_all", beams, 1 + size % 3)
    else:
        tables.call("append", one, 1 + size % 2)


SAMPLES = [
    ("", HEADER + tail, {"n": n, "temperature": 0.9, "seed": 7 + n, "max_tokens": 14})
    for tail, n in (("", 3), ("if x < low", 2), ("return min(", 3))
]


@functools.cache
def _samples_by_quire():
    return run(SAMPLES, 40, None)


def test_samples_in_quire(student, variant):
    """Several samples of each prompt in quire: its own tokens, with your tables."""
    tables = _tables(student, variant, 40, 8)
    tokens = run(SAMPLES, 40, WithTables(tables))
    student.compare("quire with your BlockTables, then the tokens", tokens, _samples_by_quire())
    tables.call("num_free", because="all requests have ended")
