"""`Desk`: a cache manager at work, with the scheduler's and the device's parts by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fake_cache import FakeCache

from quire import SamplingParams
from quire.kv.block_pool import BlockPool, LRUBlockPool
from quire.kv.kv_cache_manager import KVCacheManager
from quire.request import FinishReason, Request

MakeManager = Callable[[list[BlockPool], int, bool], KVCacheManager]
BLOCK = 8


class Desk:
    """A manager of two KV groups, the cache it speaks of, and a scheduler's part by hand."""

    def __init__(self, make: MakeManager, num_blocks: int, prefix_caching: bool = True) -> None:
        """`num_blocks` can be held in each group; the null block comes on top."""
        self.pools: list[BlockPool] = [LRUBlockPool(num_blocks + 1) for _ in range(2)]
        self.kv = make(self.pools, BLOCK, prefix_caching)
        self.cache = FakeCache(num_groups=2, block_size=BLOCK)
        self.num_requests = 0

    def request(self, tokens: Sequence[int], extra_keys: tuple[str, ...] = ()) -> Request:
        self.num_requests += 1
        return Request(
            f"r{self.num_requests}", list(tokens), SamplingParams(), extra_keys=extra_keys
        )

    def start(self, request: Request) -> int:
        """Admit a request; what the manager says is cached must be what it would compute."""
        request.num_computed_tokens = self.kv.match_prefix(request)
        assert request.num_computed_tokens % BLOCK == 0
        assert request.num_computed_tokens < request.num_tokens
        self.verify(request)
        return request.num_computed_tokens

    def compute(self, request: Request, num_tokens: int | None = None) -> bool:
        """Reserve, copy and write, as one step does; False if there is no room."""
        if num_tokens is None:
            num_tokens = request.num_tokens - request.num_computed_tokens
        reservation = self.kv.reserve(request, num_tokens)
        if reservation is None:
            return False
        self.cache.copy(reservation.copies)
        tables = self.kv.block_ids(request)
        for group, new_ids in enumerate(reservation.new_block_ids):
            assert not new_ids or tables[group][-len(new_ids) :] == new_ids
        end = request.num_computed_tokens + num_tokens
        assert {len(table) for table in tables} == {-(-end // BLOCK)}, "as many as are needed"
        for position in range(request.num_computed_tokens, end):
            self.cache.write(tables, position, content(request, position))
        request.num_computed_tokens = end
        self.verify(request)
        return True

    def run(self, tokens: Sequence[int], extra_keys: tuple[str, ...] = ()) -> Request:
        """Admit a request, compute all of it and let others find it."""
        request = self.request(tokens, extra_keys)
        self.start(request)
        assert self.compute(request)
        self.kv.commit(request)
        return request

    def end(self, request: Request) -> None:
        request.finish_reason = FinishReason.STOP
        self.kv.free(request)

    def verify(self, request: Request) -> None:
        """Everything that counts as computed is there to be read."""
        if request.num_computed_tokens:
            length = request.num_computed_tokens
            found = self.cache.read(self.kv.block_ids(request), length)
            assert found == [content(request, position) for position in range(length)]

    def hits(self, tokens: Sequence[int], extra_keys: tuple[str, ...] = ()) -> int:
        """Return how many tokens a new request would find, and forget it again."""
        request = self.request(tokens, extra_keys)
        found = self.start(request)
        self.end(request)
        return found


def content(request: Request, position: int) -> tuple[object, ...]:
    """What keys and values of a position depend on."""
    tokens = request.prompt_token_ids + request.output_token_ids
    return (request.extra_keys, *tokens[: position + 1])
