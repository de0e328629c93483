"""`BlockPool`: the suite, that it tells right from wrong, and the reference's own `check`.

pytest tests/engine/protocols/test_block_pool.py --impl package.module:Class
"""

from __future__ import annotations

from collections.abc import Callable

import mutants.pools
import pool_suite
import pytest
from implementations import Check, checks_of, classes_of, killed_by
from naive_pool import NaiveBlockPool

from quire.errors import QuireError
from quire.kv.block_pool import LRUBlockPool

IMPLEMENTATIONS = (LRUBlockPool, NaiveBlockPool)


@pytest.mark.parametrize("check", checks_of(pool_suite))
def test_protocol(implementation: type, check: Check) -> None:
    check(implementation)


@pytest.mark.parametrize("mutant", classes_of(mutants.pools))
def test_the_suite_kills(mutant: type) -> None:
    assert killed_by(checks_of(pool_suite), mutant) is not None


@pytest.mark.parametrize(
    "damage",
    [
        lambda pool: pool._references.__setitem__(1, 0),
        lambda pool: pool._references.__setitem__(3, 1),
        lambda pool: pool._references.__setitem__(0, 1),
        lambda pool: pool._next.__setitem__(0, 4),
        lambda pool: pool._hashes.clear(),
        lambda pool: setattr(pool, "_num_free", 1),
    ],
)
def test_check_finds_damage(damage: Callable[[LRUBlockPool], None]) -> None:
    pool = LRUBlockPool(5)
    pool.allocate(2)
    pool.publish(1, b"name")
    pool.check()
    damage(pool)
    with pytest.raises(AssertionError):
        pool.check()


def test_a_pool_needs_a_block_to_give() -> None:
    with pytest.raises(QuireError, match="num_blocks=1: a pool needs at least 2"):
        LRUBlockPool(1)
