"""What every `KVCacheManager` must do. Each check is called with a class or a factory.

The checks write what keys and values depend on into a fake cache and read it back, so
that they see what a wrong table does rather than how it came about.
"""

from __future__ import annotations

from desk import BLOCK, Desk, MakeManager, content
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from manager_machine import ManagerMachine


def tokens(*blocks: int, rest: int = 0) -> list[int]:
    """Return whole blocks, each of one repeated number, and `rest` tokens more."""
    return [number for number in blocks for _ in range(BLOCK)] + [99] * rest


# --- room -----------------------------------------------------------------------


def check_counts_blocks(make: MakeManager) -> None:
    desk = Desk(make, 5)
    assert (desk.kv.block_size, desk.kv.num_blocks, desk.kv.num_free_blocks) == (BLOCK, 5, 5)
    request = desk.run(tokens(1, 2, rest=1))
    assert (desk.kv.num_blocks, desk.kv.num_free_blocks) == (5, 2)
    desk.end(request)
    assert desk.kv.num_free_blocks == 5
    desk.kv.check()


def check_a_new_block_exactly_when_the_last_is_full(make: MakeManager) -> None:
    """The classic slip is off by one: a block too late is written by two, too early wasted."""
    desk = Desk(make, 4, prefix_caching=False)
    request = desk.request(tokens(1, 2, 3))
    for num_tokens, num_blocks in [(7, 1), (1, 1), (1, 2), (6, 2), (2, 3), (7, 3)]:
        assert desk.compute(request, num_tokens)
        assert desk.kv.num_free_blocks == 4 - num_blocks
        desk.kv.check()


def check_all_or_nothing_over_groups(make: MakeManager) -> None:
    desk = Desk(make, 4)
    request = desk.run(tokens(1, rest=1))
    taken = desk.pools[1].allocate(1)  # the second group is fuller than the first
    before = desk.kv.block_ids(request)
    request.output_token_ids += tokens(4, 5)
    assert desk.kv.num_free_blocks == 1
    assert not desk.compute(request)
    assert desk.kv.block_ids(request) == before
    assert [pool.num_free for pool in desk.pools] == [2, 1]
    desk.pools[1].release(taken)
    assert desk.compute(request)


def check_blocks_are_given_to_one_request(make: MakeManager) -> None:
    desk = Desk(make, 6, prefix_caching=False)
    one, two = desk.run(tokens(1, rest=2)), desk.run(tokens(1, rest=2))
    for number in (3, 4):
        for request in (one, two):
            request.output_token_ids += [number] * 5
            assert desk.compute(request)
    for request in (one, two):
        desk.verify(request)
    desk.end(one)
    three = desk.run(tokens(7, 8, rest=3))
    desk.verify(two)
    desk.end(two)
    desk.end(three)
    assert desk.kv.num_free_blocks == 6


def check_a_second_free_does_nothing(make: MakeManager) -> None:
    desk = Desk(make, 4)
    one = desk.run(tokens(1, rest=1))
    desk.end(one)
    desk.kv.free(one)
    desk.kv.free(desk.request([1]))
    two, three = desk.run(tokens(2, rest=1)), desk.run(tokens(3, rest=1))
    desk.kv.free(one)
    desk.verify(two)
    desk.verify(three)
    assert desk.kv.num_free_blocks == 0


# --- prefix hits ------------------------------------------------------------------


def check_the_longest_prefix_is_found(make: MakeManager) -> None:
    desk = Desk(make, 20)
    running = desk.run(tokens(1, 2, 3, rest=5))
    assert desk.hits(tokens(1, 2, 3, 4)) == 3 * BLOCK  # of one that runs
    desk.end(running)
    assert desk.hits(tokens(1, 2, 3, 4)) == 3 * BLOCK  # of one that is gone
    assert desk.hits(tokens(1, 2, 7, 4)) == 2 * BLOCK
    assert desk.hits(tokens(1, 2, rest=4)) == 2 * BLOCK
    assert desk.hits(tokens(7, 2, 3)) == 0
    assert desk.kv.num_free_blocks == 20
    desk.kv.check()


def check_one_token_is_left_of_a_cached_prompt(make: MakeManager) -> None:
    """Without a query there is nothing to sample from."""
    desk = Desk(make, 8)
    desk.end(desk.run(tokens(1, 2)))
    assert desk.hits(tokens(1, 2)) == BLOCK
    assert desk.hits(tokens(1)) == 0
    assert desk.hits(tokens(1, 2, rest=1)) == 2 * BLOCK


def check_a_name_covers_all_tokens_before(make: MakeManager) -> None:
    """Keys and values of equal tokens differ behind different ones."""
    desk = Desk(make, 20)
    desk.run(tokens(1, 2, 3))
    desk.run(tokens(4, 5, 3))
    assert desk.hits(tokens(4, 2, 3)) == BLOCK
    assert desk.hits(tokens(2, 3, 3)) == 0
    assert desk.hits(tokens(1, 5, 3)) == BLOCK


def check_extra_keys_part_the_cache(make: MakeManager) -> None:
    desk = Desk(make, 20)
    desk.run(tokens(1, 2, rest=1), ("tenant",))
    assert desk.hits(tokens(1, 2, rest=1)) == 0
    assert desk.hits(tokens(1, 2, rest=1), ("other",)) == 0
    assert desk.hits(tokens(1, 2, rest=1), ("tenant", "")) == 0
    assert desk.hits(tokens(1, 2, rest=1), ("tenant",)) == 2 * BLOCK


def check_a_partial_block_is_not_shared(make: MakeManager) -> None:
    desk = Desk(make, 20)
    one = desk.run(tokens(1, rest=7))
    assert desk.hits(tokens(1, rest=8)) == BLOCK
    one.output_token_ids.append(5)
    assert desk.compute(one)
    desk.kv.commit(one)
    assert desk.hits(tokens(1, rest=8)) == BLOCK
    assert desk.hits([*tokens(1, rest=7), 5, 5]) == 2 * BLOCK


def check_only_what_is_computed_is_found(make: MakeManager) -> None:
    desk = Desk(make, 20)
    one = desk.request(tokens(1, 2, 3))
    desk.start(one)
    reservation = desk.kv.reserve(one, 3 * BLOCK)  # room for all, computed in chunks
    assert reservation is not None
    desk.kv.commit(one)
    assert desk.hits(tokens(1, 2, 3, 4)) == 0
    for position in range(2 * BLOCK - 1):
        desk.cache.write(desk.kv.block_ids(one), position, content(one, position))
    one.num_computed_tokens = 2 * BLOCK - 1
    desk.kv.commit(one)
    assert desk.hits(tokens(1, 2, 3, 4)) == BLOCK


def check_only_known_tokens_are_found(make: MakeManager) -> None:
    """A sampled token is computed a step before the host learns which it is."""
    desk = Desk(make, 20)
    one = desk.request(tokens(1, rest=7))
    desk.start(one)
    one.num_placeholders = 1
    assert desk.kv.reserve(one, 16) is not None
    one.num_computed_tokens = 16
    desk.kv.commit(one)
    one.output_token_ids.append(5)
    one.num_placeholders = 0
    for position in range(16):
        desk.cache.write(desk.kv.block_ids(one), position, content(one, position))
    desk.kv.commit(one)
    assert desk.hits([*tokens(1, rest=7), 5, 6]) == 2 * BLOCK


def check_without_prefix_caching_nothing_is_found(make: MakeManager) -> None:
    desk = Desk(make, 8, prefix_caching=False)
    desk.end(desk.run(tokens(1, 2, rest=1)))
    assert desk.hits(tokens(1, 2, rest=1)) == 0


def check_a_cached_block_in_use_is_not_evicted(make: MakeManager) -> None:
    desk = Desk(make, 5)
    desk.end(desk.run(tokens(1, 2, rest=1)))
    two = desk.request(tokens(1, 2, rest=3))
    assert desk.start(two) == 2 * BLOCK
    assert desk.kv.num_free_blocks == 3
    other = desk.run(tokens(6, 7, 8))
    desk.verify(two)
    assert not desk.compute(two)
    desk.end(other)
    assert desk.compute(two)


def check_the_end_of_a_prefix_is_evicted_first(make: MakeManager) -> None:
    """A block without those before it is of no use, so a request is freed from its end."""
    for num_evicted in range(5):
        desk = Desk(make, 4)
        desk.end(desk.run(tokens(1, 2, 3, 4)))
        for number in range(num_evicted):
            desk.run([10 + number])
        found = 0 if num_evicted == 4 else desk.hits(tokens(1, 2, 3, 4, 9))
        assert found == (4 - num_evicted) * BLOCK


def check_a_preempted_request_finds_its_own_blocks(make: MakeManager) -> None:
    desk = Desk(make, 8)
    one = desk.run(tokens(1, rest=7))
    one.output_token_ids += [5, 6, 7]
    assert desk.compute(one)
    desk.kv.commit(one)
    desk.kv.free(one)
    assert desk.kv.num_free_blocks == 8
    one.num_computed_tokens = 0
    assert desk.start(one) == 2 * BLOCK
    assert desk.compute(one)
    one.output_token_ids += [8] * 8
    assert desk.compute(one)
    desk.kv.commit(one)
    desk.end(one)
    assert desk.hits([*tokens(1, rest=7), 5, 6, 7, *[8] * 8]) == 3 * BLOCK


# --- fork and rollback --------------------------------------------------------------


def check_a_fork_shares_and_copies(make: MakeManager) -> None:
    for num_shared, num_new in [(2 * BLOCK, 1), (2 * BLOCK - 1, 2), (BLOCK + 3, 2), (0, 3)]:
        for prefix_caching in (True, False):
            desk = Desk(make, 12, prefix_caching)
            parent = desk.run(tokens(1, 2, rest=1))
            child = desk.request(tokens(1, 2, rest=1))
            desk.kv.fork(parent, child, num_shared)
            child.num_computed_tokens = num_shared
            desk.kv.check()
            parent.output_token_ids += [50, 51]
            assert desk.compute(parent)  # goes on behind what is shared
            free = desk.kv.num_free_blocks
            assert desk.compute(child)
            assert free - desk.kv.num_free_blocks == num_new
            for number, request in ((60, parent), (70, child)):
                request.output_token_ids += [number] * 9
                assert desk.compute(request)
                desk.kv.commit(request)
            desk.verify(parent)
            desk.end(parent)
            other = desk.run(tokens(8, 9))
            desk.verify(child)
            desk.end(child)
            desk.end(other)
            assert desk.kv.num_free_blocks == 12
            desk.kv.check()


def check_a_fork_outlives_its_parent(make: MakeManager) -> None:
    desk = Desk(make, 6)
    parent = desk.run(tokens(1, rest=5))
    children = [desk.request(tokens(1, rest=5)) for _ in range(2)]
    for child in children:
        desk.kv.fork(parent, child, BLOCK + 4)
        child.num_computed_tokens = BLOCK + 4
    desk.end(parent)
    assert desk.kv.num_free_blocks == 4
    for number, child in enumerate(children):
        child.output_token_ids += [number] * 4
        assert desk.compute(child)
    for child in children:
        desk.verify(child)
        desk.end(child)
    assert desk.kv.num_free_blocks == 6


def check_a_copy_needs_room(make: MakeManager) -> None:
    desk = Desk(make, 3)
    parent = desk.run(tokens(1, rest=5))
    child = desk.request(tokens(1, rest=5))
    desk.kv.fork(parent, child, BLOCK + 4)
    child.num_computed_tokens = BLOCK + 4
    other = desk.run([7])
    assert not desk.compute(child)
    desk.verify(child)
    desk.end(other)
    assert desk.compute(child)
    desk.verify(parent)


def check_rollback_gives_back_the_end(make: MakeManager) -> None:
    desk = Desk(make, 8)
    request = desk.run(tokens(1, rest=3))
    for num_kept, num_blocks in [
        (BLOCK + 3, 2),
        (BLOCK + 4, 2),
        (BLOCK * 2, 2),
        (BLOCK * 2 + 1, 3),
    ]:
        assert desk.kv.reserve(request, 3 * BLOCK) is not None  # drafts, not all accepted
        desk.kv.rollback(request, num_kept)
        assert [len(table) for table in desk.kv.block_ids(request)] == [num_blocks] * 2
        assert desk.kv.num_free_blocks == 8 - num_blocks
        desk.kv.check()
    desk.verify(request)
    request.output_token_ids += [4] * 20
    assert desk.compute(request)
    desk.end(request)
    assert desk.kv.num_free_blocks == 8


def check_state_machine(make: MakeManager) -> None:
    run_state_machine_as_test(
        lambda: ManagerMachine(make),
        settings=settings(
            max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, database=None
        ),
    )
