"""`KVCacheManager`: the suite, that it tells right from wrong, and the reference's own parts.

pytest tests/engine/protocols/test_kv_cache_manager.py --impl package.module:Class
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import manager_suite
import mutants.managers
import pytest
from desk import BLOCK, Desk
from implementations import Check, checks_of, classes_of, killed_by
from manager_suite import tokens
from naive_manager import NaiveKVCacheManager

from quire.errors import QuireError
from quire.kv import block_hash
from quire.kv.kv_cache_manager import NOTHING_NEW, PagedKVCacheManager

IMPLEMENTATIONS = (PagedKVCacheManager, NaiveKVCacheManager)


@pytest.mark.parametrize("check", checks_of(manager_suite))
def test_protocol(implementation: type, check: Check) -> None:
    check(implementation)


@pytest.mark.parametrize("mutant", classes_of(mutants.managers))
def test_the_suite_kills(mutant: type) -> None:
    assert killed_by(checks_of(manager_suite), mutant) is not None


@pytest.mark.parametrize(
    "damage",
    [
        lambda desk, table: desk.pools[0].allocate(1),
        lambda desk, table: table.blocks[0].append(table.blocks[0][0]),
        lambda desk, table: table.blocks[1].pop(),
        lambda desk, table: table.blocks[0].__setitem__(2, table.blocks[0][1]),
        lambda desk, table: setattr(table, "num_shared", 4),
        lambda desk, table: desk.pools[1].release([table.blocks[1][0]]),
    ],
)
def test_check_finds_damage(damage: Callable[[Desk, Any], None]) -> None:
    desk = Desk(PagedKVCacheManager, 8)
    request = desk.run(tokens(1, 2, rest=1))
    desk.kv.check()
    assert isinstance(desk.kv, PagedKVCacheManager)
    damage(desk, desk.kv._tables[request.request_id])
    with pytest.raises(AssertionError):
        desk.kv.check()


def test_each_block_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through waiting, growth, preemption and return; a finished request's hashes are gone."""
    hashed = []
    real = block_hash._tokens

    def spy(request: Any, begin: int, end: int) -> list[int]:
        hashed.append(begin)
        return real(request, begin, end)

    monkeypatch.setattr(block_hash, "_tokens", spy)
    desk = Desk(PagedKVCacheManager, 8)
    request = desk.request(tokens(1, 2, rest=1))
    for _ in range(3):
        desk.start(request)
        desk.kv.free(request)
        request.num_computed_tokens = 0
    desk.start(request)
    for _ in range(2 * BLOCK):
        assert desk.compute(request)
        desk.kv.commit(request)
        request.output_token_ids.append(4)
    assert hashed == [0, BLOCK, 2 * BLOCK, 3 * BLOCK]
    desk.end(request)
    assert isinstance(desk.kv, PagedKVCacheManager)
    assert not desk.kv._chains
    assert not desk.kv._tables


def test_rollback_into_published_blocks() -> None:
    """Others may read them, so the request goes on in a copy."""
    desk = Desk(PagedKVCacheManager, 8)
    request = desk.run(tokens(1, 2, 3))
    published = desk.kv.block_ids(request)
    request.num_computed_tokens = BLOCK + 3
    desk.kv.rollback(request, BLOCK + 3)
    desk.kv.check()
    assert desk.compute(request)
    desk.kv.commit(request)
    desk.kv.check()
    for before, after in zip(published, desk.kv.block_ids(request), strict=True):
        assert before[0] == after[0]
        assert before[1] != after[1]
    assert desk.hits(tokens(1, 2, 3, 4)) == 3 * BLOCK


def test_a_step_that_needs_no_block_changes_nothing() -> None:
    """Nearly all of them, so the answer is one object, and the runner copies nothing."""
    desk = Desk(PagedKVCacheManager, 8)
    request = desk.run(tokens(1, rest=1))
    request.output_token_ids.append(2)
    assert desk.kv.reserve(request, 1) is NOTHING_NEW


def test_counters() -> None:
    desk = Desk(PagedKVCacheManager, 8)
    kv = desk.kv
    assert isinstance(kv, PagedKVCacheManager)
    desk.run(tokens(1, 2))
    assert (kv.num_queried_tokens, kv.num_hit_tokens, kv.usage) == (2 * BLOCK, 0, 0.25)
    desk.run(tokens(1, 3))
    assert (kv.num_queried_tokens, kv.num_hit_tokens, kv.usage) == (4 * BLOCK, BLOCK, 0.375)


def test_misuse_is_named() -> None:
    desk = Desk(PagedKVCacheManager, 8)
    parent, child = desk.run(tokens(1)), desk.request(tokens(1))
    with pytest.raises(QuireError, match="'r1' has a block table"):
        desk.kv.match_prefix(parent)
    with pytest.raises(QuireError, match="fork of 9 tokens of request 'r1', which has 8"):
        desk.kv.fork(parent, child, BLOCK + 1)
