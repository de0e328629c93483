"""What every `BlockPool` must do. Each check is called with a class or a factory."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from quire.errors import NoFreeBlocks, QuireError
from quire.kv.block_pool import BlockPool

MakePool = Callable[[int], BlockPool]


def check_gives_out_every_block_but_the_null_block(make: MakePool) -> None:
    pool = make(6)
    assert pool.num_free == 5
    assert sorted(pool.allocate(2) + pool.allocate(3)) == [1, 2, 3, 4, 5]
    assert pool.num_free == 0
    pool.check()


def check_takes_nothing_when_there_are_too_few(make: MakePool) -> None:
    pool = make(4)
    (held,) = pool.allocate(1)
    pool.publish(held, b"held")
    with pytest.raises(NoFreeBlocks, match=r"3 .* 2 "):
        pool.allocate(3)
    assert pool.num_free == 2
    assert pool.allocate(0) == []
    assert len(pool.allocate(2)) == 2
    assert pool.lookup(b"held") == held
    with pytest.raises(NoFreeBlocks):
        pool.allocate(1)
    pool.check()


def check_the_last_reference_frees(make: MakePool) -> None:
    pool = make(3)
    (block,) = pool.allocate(1)
    pool.acquire([block, block])
    for still_free in (1, 1, 2):
        pool.release([block])
        assert pool.num_free == still_free
        pool.check()


def check_a_block_is_released_once_per_reference(make: MakePool) -> None:
    """A double free would let two requests write to one block."""
    pool = make(4)
    (block,) = pool.allocate(1)
    pool.release([block])
    for wrong in (block, 0, 4):
        with pytest.raises(QuireError, match=str(wrong)):
            pool.release([wrong])
    assert pool.num_free == 3
    assert sorted(pool.allocate(3)) == [1, 2, 3]


def check_only_a_held_block_is_published(make: MakePool) -> None:
    pool = make(4)
    (block,) = pool.allocate(1)
    pool.release([block])
    for wrong in (block, 0):
        with pytest.raises(QuireError, match=str(wrong)):
            pool.publish(wrong, b"nobody's")
    assert pool.lookup(b"nobody's") is None


def check_gives_out_the_least_recently_freed(make: MakePool) -> None:
    pool = make(6)
    blocks = pool.allocate(5)
    order = [blocks[i] for i in (3, 0, 4, 1, 2)]
    pool.release(order[:2])
    pool.release(order[2:])
    assert pool.allocate(3) == order[:3]
    pool.release([order[1]])
    assert pool.allocate(3) == [order[3], order[4], order[1]]


def check_a_block_taken_from_the_middle_leaves_the_order(make: MakePool) -> None:
    pool = make(5)
    first, second, third, fourth = blocks = pool.allocate(4)
    pool.release(blocks)
    pool.acquire([second, fourth])
    assert pool.num_free == 2
    pool.release([second])
    pool.check()
    assert pool.allocate(3) == [first, third, second]
    pool.release([fourth])
    assert pool.allocate(1) == [fourth]


def check_a_freed_block_is_found_until_it_is_given_out(make: MakePool) -> None:
    pool = make(3)
    cached, other = pool.allocate(2)
    assert pool.lookup(b"name") is None
    pool.publish(cached, b"name")
    assert pool.lookup(b"name") == cached
    pool.release([other, cached])
    assert pool.lookup(b"name") == cached
    assert pool.allocate(1) == [other]
    assert pool.lookup(b"name") == cached
    assert pool.allocate(1) == [cached]
    assert pool.lookup(b"name") is None
    pool.publish(cached, b"new")
    assert (pool.lookup(b"name"), pool.lookup(b"new")) == (None, cached)
    pool.check()


def check_a_cached_block_in_use_is_not_evicted(make: MakePool) -> None:
    pool = make(4)
    cached, *others = pool.allocate(3)
    pool.publish(cached, b"name")
    pool.release([cached, *others])
    pool.acquire([cached])
    assert pool.allocate(2) == others
    with pytest.raises(NoFreeBlocks):
        pool.allocate(1)
    assert pool.lookup(b"name") == cached


def check_the_first_of_two_alike_is_found(make: MakePool) -> None:
    pool = make(4)
    first, second, _ = pool.allocate(3)
    pool.publish(first, b"name")
    pool.publish(second, b"name")
    assert pool.lookup(b"name") == first
    pool.release([second])
    assert pool.allocate(1) == [second]  # its own eviction is not the first one's
    assert pool.lookup(b"name") == first
    pool.release([first])
    assert pool.allocate(1) == [first]
    assert pool.lookup(b"name") != first
    pool.check()


class PoolMachine(RuleBasedStateMachine):
    """A pool beside a model of it: who holds what, the order of freeing, the names."""

    def __init__(self, make: MakePool) -> None:
        super().__init__()
        self.make = make
        self.references: dict[int, int] = {}
        self.free: list[int] = []  # from the least to the most recently freed
        self.names: dict[bytes, int] = {}

    @initialize(num_blocks=st.integers(2, 9))
    def start(self, num_blocks: int) -> None:
        self.pool = self.make(num_blocks)
        self.num_blocks = num_blocks
        # The order of blocks that were never freed is the pool's own.
        self.free = self.pool.allocate(num_blocks - 1)
        self.pool.release(self.free)

    def choose(self, blocks: list[int], choice: int) -> int:
        return sorted(blocks)[choice % len(blocks)]

    @rule(count=st.integers(0, 9))
    def allocate(self, count: int) -> None:
        if count > len(self.free):
            with pytest.raises(NoFreeBlocks):
                self.pool.allocate(count)
            return
        taken, self.free = self.free[:count], self.free[count:]
        assert self.pool.allocate(count) == taken
        self.references |= dict.fromkeys(taken, 1)
        self.names = {name: block for name, block in self.names.items() if block not in taken}

    @rule(choices=st.lists(st.integers(0, 99), min_size=1, max_size=3))
    def acquire(self, choices: list[int]) -> None:
        blocks = [1 + choice % (self.num_blocks - 1) for choice in choices]
        self.pool.acquire(blocks)
        for block in blocks:
            if block in self.free:
                self.free.remove(block)
            self.references[block] = self.references.get(block, 0) + 1

    @rule(choices=st.lists(st.integers(0, 99), min_size=1, max_size=4))
    @precondition(lambda self: self.references)
    def release(self, choices: list[int]) -> None:
        for choice in choices:
            if not self.references:
                return
            block = self.choose(list(self.references), choice)
            self.pool.release([block])
            self.references[block] -= 1
            if self.references[block] == 0:
                del self.references[block]
                self.free.append(block)

    @rule(choice=st.integers(0, 99), name=st.sampled_from([b"a", b"b", b"c"]))
    @precondition(lambda self: self.references)
    def publish(self, choice: int, name: bytes) -> None:
        unnamed = [block for block in self.references if block not in self.names.values()]
        if unnamed:
            block = self.choose(unnamed, choice)
            self.pool.publish(block, name)
            self.names.setdefault(name, block)

    @rule(choice=st.integers(0, 99))
    @precondition(lambda self: self.free)
    def release_too_often(self, choice: int) -> None:
        with pytest.raises(QuireError):
            self.pool.release([self.choose(self.free, choice)])

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        assert self.pool.num_free == len(self.free)
        for name in (b"a", b"b", b"c"):
            found = self.pool.lookup(name)
            # A second block of the same name may be found once the first is gone.
            assert found is None or found not in self.free or found in self.names.values()
            if name in self.names:
                assert found == self.names[name]


def check_state_machine(make: MakePool) -> None:
    run_state_machine_as_test(
        lambda: PoolMachine(make),
        settings=settings(
            max_examples=80, stateful_step_count=40, deadline=None, derandomize=True, database=None
        ),
    )
