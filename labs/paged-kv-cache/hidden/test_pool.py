"""Hidden tests of `BlockPool`: the same calls to an oracle, the same answers."""

from __future__ import annotations

import random

from hypothesis import example, given
from hypothesis import strategies as st

from .driving import Pair
from .pool_oracle import PoolOracle

CLIENTS = ["ada", "bob"]
PERMUTATIONS = st.permutations(range(6))
USES = st.lists(st.integers(0, 3), min_size=6, max_size=6)


def _pool(student, num_blocks, quota=100):
    return Pair(student, PoolOracle(num_blocks, quota), "BlockPool", num_blocks, quota)


def _named(pool, count, clients=("ada",)):
    """Allocate and publish; return the blocks. Names are b"n0", b"n1", …"""
    blocks = pool.call("allocate", count)
    for i, block in enumerate(blocks):
        pool.call("publish", block, b"n%d" % i, clients[i % len(clients)])
    return blocks


def _compare_all(pool, names=12):
    pool.call("num_free")
    for block in range(1, len(pool.oracle.blocks) + 1):
        pool.call("references", block)
        pool.call("name", block)
    for i in range(names):
        pool.call("lookup", b"n%d" % i)


@given(num_blocks=st.integers(2, 9), first=st.integers(0, 8), more=st.integers(1, 4))
def test_all_or_nothing(student, variant, num_blocks, first, more):
    """Too few free blocks: NoFreeBlocks, and none was taken."""
    pool = _pool(student, num_blocks)
    first = min(first, num_blocks - 1)
    taken = pool.call("allocate", first)
    left = num_blocks - 1 - first
    pool.call("allocate", left + more, because=f"{left} are free")
    pool.call("num_free", because="the failed allocate took none")
    pool.call("allocate", left, because="all that is left")
    if taken:
        pool.call("release", taken[:1])
        pool.call("allocate", 1)


@given(order=PERMUTATIONS, extra=st.lists(st.integers(0, 5), max_size=8))
def test_references(student, variant, order, extra):
    """A block is free when its last reference is gone."""
    pool = _pool(student, 9)
    blocks = pool.call("allocate", 6)
    pool.call("acquire", [blocks[i] for i in extra])
    for i in order:
        for _ in range(1 + extra.count(i)):
            pool.call("release", [blocks[i]])
            pool.call("num_free")
        pool.call("references", blocks[i])


@given(order=PERMUTATIONS, uses=USES, nameless=st.sets(st.integers(0, 5)))
@example(order=[5, 4, 3, 2, 1, 0], uses=[0, 0, 1, 1, 2, 2], nameless={0, 3})
def test_order_of_eviction(student, variant, order, uses, nameless):
    """Nameless blocks by id, then the least used, then the longest free."""
    pool = _pool(student, 8)
    blocks = pool.call("allocate", 6)
    for i, block in enumerate(blocks):
        if i not in nameless:
            pool.call("publish", block, b"n%d" % i, CLIENTS[i % 2])
    for i in order:
        for _ in range(uses[i]):
            pool.call("acquire", [blocks[i]])
            pool.call("release", [blocks[i]])
        for _ in range(i % 4):
            pool.call("lookup", b"n%d" % i, because="which is no use")
    pool.call("release", [blocks[i] for i in order])
    for _ in range(7):
        pool.call("allocate", 1)


@given(order=PERMUTATIONS, again=PERMUTATIONS)
@example(order=[0, 1, 2, 3, 4, 5], again=[5, 4, 3, 2, 1, 0])
def test_free_since_the_last_time(student, variant, order, again):
    """A block that was found has been free since its last release, not since its first."""
    pool = _pool(student, 8)
    blocks = _named(pool, 6, CLIENTS)
    pool.call("release", [blocks[i] for i in order])
    for i in again:
        pool.call("acquire", [blocks[i]])
        pool.call("release", [blocks[i]], because="all have been used once by then")
    for _ in range(7):
        pool.call("allocate", 1)


@given(
    order=PERMUTATIONS, uses=USES, quota=st.integers(0, 3), one_client=st.booleans(),
    at_once=st.booleans(),
)  # fmt: skip
@example(order=[0, 1, 2, 3, 4, 5], uses=[3, 2, 2, 1, 0, 0], quota=1, one_client=True, at_once=True)
def test_quota(student, variant, order, uses, quota, one_client, at_once):
    """A client keeps at most its quota of free named blocks: those that would go last."""
    pool = _pool(student, 9, quota)
    blocks = _named(pool, 6, CLIENTS[:1] if one_client else CLIENTS)
    for i, block in enumerate(blocks):
        for _ in range(uses[i]):
            pool.call("acquire", [block])
            pool.call("release", [block])
    for released in [order] if at_once else [[i] for i in order]:
        pool.call("release", [blocks[i] for i in released])
        pool.call("num_free", because="a block without its name is free all the same")
        for j in range(6):
            pool.call("lookup", b"n%d" % j)
    for _ in range(2):
        pool.call("allocate", 1)


def test_quota_spares_held_blocks(student, variant):
    """Blocks with a reference take no part in the quota, whoever else uses them."""
    pool = _pool(student, 9, 2)
    blocks = _named(pool, 5)
    pool.call("acquire", blocks[:3])
    pool.call("release", blocks)
    for i in range(5):
        pool.call("lookup", b"n%d" % i, because="3 are held, 2 are free: within the quota")
    pool.call("release", blocks[2:3])
    for i in range(5):
        pool.call("lookup", b"n%d" % i, because="one more is free, and it has been used")


@given(order=PERMUTATIONS, found=st.sets(st.integers(0, 5)), again=st.sets(st.integers(0, 5)))
@example(order=[0, 1, 2, 3, 4, 5], found={0}, again={0})
def test_found_and_held(student, variant, order, found, again):
    """A free block that is acquired is free no longer, and not given out."""
    pool = _pool(student, 8)
    blocks = _named(pool, 6, CLIENTS)
    pool.call("release", [blocks[i] for i in order])
    pool.call("acquire", [blocks[i] for i in sorted(found)])
    pool.call("num_free", because=f"{len(found)} of 7 are held")
    pool.call("acquire", [blocks[i] for i in sorted(found & again)])
    pool.call("allocate", 7 - len(found), because="all but those that were found")
    for i in sorted(found):
        pool.call("lookup", b"n%d" % i)
        pool.call("references", blocks[i])


@given(count=st.integers(1, 5), seed_of_order=st.integers(0, 99))
def test_a_block_given_out_loses_its_name(student, variant, count, seed_of_order):
    """What is given out is found no longer, is not used, and may be named anew."""
    pool = _pool(student, 6)
    blocks = _named(pool, 5)
    for block in blocks[:2]:
        pool.call("acquire", [block])
    pool.call("release", [*blocks, *blocks[:2]])
    taken = pool.call("allocate", count)
    for i in range(5):
        pool.call("lookup", b"n%d" % i)
    for i, block in enumerate(taken):
        pool.call("name", block, because="it was given out")
        pool.call("publish", block, b"new %d" % i, "bob")
        pool.call("lookup", b"new %d" % i)
    random.Random(seed_of_order).shuffle(taken)
    pool.call("release", taken)
    pool.call("allocate", 5, because="uses are counted from the new name on")


def test_the_first_name_stays(student, variant):
    """A name that is taken, or a block that has one: nothing changes."""
    pool = _pool(student, 5)
    one, two, _ = pool.call("allocate", 3)
    pool.call("publish", one, b"a", "ada")
    pool.call("acquire", [one])
    pool.call("publish", two, b"a", "bob", because="the name is taken")
    pool.call("lookup", b"a")
    pool.call("name", two)
    pool.call("publish", one, b"b", "bob", because="the block has a name")
    pool.call("lookup", b"b")
    pool.call("name", one)
    pool.call("publish", two, b"c", "bob")
    pool.call("release", [one, one, two])
    pool.call("allocate", 4, because="block 1 was used once, and still is after the second name")
    pool = _pool(student, 5, 1)
    one, two, three = pool.call("allocate", 3)
    pool.call("publish", one, b"a", "ada")
    pool.call("publish", one, b"d", "bob", because="ada goes on paying for it")
    pool.call("publish", one, b"a", "bob")
    pool.call("publish", two, b"b", "bob")
    pool.call("publish", three, b"c", "ada")
    pool.call("release", [two, one, three], because="two of ada's, one of bob's; the quota is 1")
    for name in (b"a", b"b", b"c", b"d"):
        pool.call("lookup", name)


def test_refuses(student, variant):
    """ValueError, and nothing has changed."""
    pool = _pool(student, 6)
    one, two, three = pool.call("allocate", 3)
    pool.call("acquire", [two])
    pool.call("publish", three, b"n0", "ada")
    pool.call("release", [three])
    for blocks, why in (
        ([one, one], "one reference, named twice"),
        ([two, two, two], "two references, named three times"),
        ([two, three], "the last is free"),
        ([one, 5], "the last was never given out"),
        ([one, 0], "0 is no block of the pool"),
        ([one, 6], "6 is no block of the pool"),
    ):
        pool.call("release", blocks, because=why)
        _compare_all(pool, names=1)
    for blocks, why in (
        ([one, 5], "nobody knows what free block 5 holds"),
        ([three, 4], "nobody knows what free block 4 holds"),
        ([two, 0], "0 is no block of the pool"),
        ([two, 6], "6 is no block of the pool"),
    ):
        pool.call("acquire", blocks, because=why)
        _compare_all(pool, names=1)
    for block in (three, 5, 0, 6):
        pool.call("publish", block, b"n1", "ada", because="it has no reference")
        pool.call("lookup", b"n1")
        pool.call("publish", block, b"n0", "ada", because="no reference, and the name is taken")
    pool.call("allocate", 3, because="a refused acquire is no use")


REPEATS = st.lists(st.integers(0, 3), min_size=1, max_size=7)


@given(found=REPEATS, dropped=st.permutations([0, 1, 2, 3] * 2), quota=st.integers(1, 9))
@example(found=[0, 0, 1], dropped=[0, 1, 0, 2, 3, 1, 2, 3], quota=9)
@example(found=[1], dropped=[1, 0, 2, 0, 1, 3, 2, 3], quota=9)
def test_a_block_twice_in_a_list(student, variant, found, dropped, quota):
    """Twice in a list: two uses; and a block is free where its last reference is dropped."""
    pool = _pool(student, 7, quota)
    blocks = _named(pool, 4)
    pool.call("acquire", [blocks[i] for i in found])
    for i in range(4):
        pool.call("references", blocks[i])
    # The list drops one reference for each time it names a block; those left go first.
    left = [i for i in range(4) for _ in range(max(0, found.count(i) - 1))]
    pool.call("release", [blocks[i] for i in left])
    held = {i: 1 + min(1, found.count(i)) for i in range(4)}
    order = [i for place, i in enumerate(dropped) if dropped[:place].count(i) < held[i]]
    pool.call("release", [blocks[i] for i in order], because="in this order")
    _compare_all(pool, names=4)
    for _ in range(6):
        pool.call("allocate", 1)


@given(
    before=st.lists(st.integers(0, 3), max_size=6), after=st.lists(st.integers(0, 3), max_size=4)
)
@example(before=[0, 0], after=[1])
def test_uses(student, variant, before, after):
    """What acquired a block before it had a name is no use of it, and neither is its holder."""
    pool = _pool(student, 6)
    blocks = pool.call("allocate", 4)
    pool.call("acquire", [blocks[i] for i in before])
    for i, block in enumerate(blocks):
        pool.call("publish", block, b"n%d" % i, "ada")
    pool.call("acquire", [blocks[i] for i in after])
    pool.call("release", [blocks[i] for i in [*before, *after, *range(4)]])
    pool.call("allocate", 3, because="uses are counted from the name on")
    pool.call("allocate", 1)


DAY = st.lists(
    st.tuples(
        st.integers(0, 5), st.integers(0, 11), st.integers(0, 11),
        st.lists(st.integers(0, 11), max_size=3),
    ),
    max_size=30,
)  # fmt: skip


@given(num_blocks=st.integers(3, 9), quota=st.integers(0, 4), day=DAY)
def test_any_day(student, variant, num_blocks, quota, day):
    """Any order of calls, those that are refused included."""
    pool = _pool(student, num_blocks, quota)
    for operation, first, second, others in day:
        block = 1 + first % (num_blocks - 1)
        several = [block, *(1 + other % (num_blocks - 1) for other in others)]
        if operation == 0:
            pool.call("allocate", first % 4)
        elif operation == 1:
            pool.call("release", [block])
        elif operation == 2:
            pool.call("publish", block, b"n%d" % second, CLIENTS[second % 2])
        elif operation == 3:
            found = pool.call("lookup", b"n%d" % second)
            pool.call("acquire", [found or block])
        elif operation == 4:
            pool.call("acquire", several)
        else:
            pool.call("release", several)
        pool.call("num_free")
    _compare_all(pool)
