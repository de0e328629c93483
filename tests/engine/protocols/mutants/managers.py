"""Wrong cache managers."""

from __future__ import annotations

import hashlib
from array import array

from quire.kv.kv_cache_manager import PagedKVCacheManager, Reservation, _Table
from quire.request import FinishReason, Request


class MatchesTheWholePrompt(PagedKVCacheManager):
    """A fully cached prompt leaves a query of length zero."""

    def match_prefix(self, request: Request) -> int:
        request.prompt_token_ids.append(0)
        try:
            return super().match_prefix(request)
        finally:
            request.prompt_token_ids.pop()
            self._chains[request.request_id] = []


class _OwnNames(PagedKVCacheManager):
    """Blocks are named by `name` instead of the chain."""

    def _chain(self, request: Request, num_blocks: int) -> list[bytes]:
        return [self.name(request, index) for index in range(num_blocks)]

    def block(self, request: Request, index: int) -> list[int]:
        tokens = request.prompt_token_ids + request.output_token_ids
        return tokens[index * self._block_size : (index + 1) * self._block_size]

    def name(self, request: Request, index: int) -> bytes:
        raise NotImplementedError


class HashWithoutParent(_OwnNames):
    """Equal blocks behind different ones are taken for each other."""

    def name(self, request: Request, index: int) -> bytes:
        return repr((request.extra_keys, self.block(request, index))).encode()


class HashWithPosition(_OwnNames):
    """A block's number is not what comes before it."""

    def name(self, request: Request, index: int) -> bytes:
        return repr((request.extra_keys, index, self.block(request, index))).encode()


class HashWithoutExtraKeys(PagedKVCacheManager):
    """One tenant's cache answers another's prompt."""

    def _chain(self, request: Request, num_blocks: int) -> list[bytes]:
        tokens = array("q", request.prompt_token_ids + request.output_token_ids).tobytes()
        size = 8 * self._block_size
        return [hashlib.sha256(tokens[: (i + 1) * size]).digest() for i in range(num_blocks)]


class JoinsExtraKeys(_OwnNames):
    """("a", "") and ("a",) read the same when they are glued together."""

    def name(self, request: Request, index: int) -> bytes:
        tokens = request.prompt_token_ids + request.output_token_ids
        return (
            "".join(request.extra_keys) + repr(tokens[: (index + 1) * self._block_size])
        ).encode()


class SharesPartialBlocks(PagedKVCacheManager):
    """The last block is published half full, and reused with what came behind."""

    def commit(self, request: Request) -> None:
        super().commit(request)
        table = self._tables[request.request_id]
        num_known = min(request.num_computed_tokens, request.num_tokens)
        if self._enable_prefix_caching and num_known % self._block_size == self._block_size - 1:
            guessed = [*request.output_token_ids, 99]
            twin = Request("", request.prompt_token_ids, request.sampling_params)
            twin.extra_keys, twin.output_token_ids = request.extra_keys, guessed
            index = num_known // self._block_size
            name = self._chain(twin, index + 1)[index]
            self._chains.pop("")
            for pool, blocks in zip(self._pools, table.blocks, strict=True):
                pool.publish(blocks[index], name)


class PublishesBeforeComputing(PagedKVCacheManager):
    """Blocks are found as soon as they are reserved, while they still hold something else."""

    def commit(self, request: Request) -> None:
        computed = request.num_computed_tokens
        room = len(self._tables[request.request_id].blocks[0]) * self._block_size
        request.num_computed_tokens = min(room, request.num_tokens)
        super().commit(request)
        request.num_computed_tokens = computed


class PublishesUnknownTokens(PagedKVCacheManager):
    """A placeholder is hashed as if it were the last known token."""

    def commit(self, request: Request) -> None:
        known = len(request.output_token_ids)
        request.output_token_ids += [99] * request.num_placeholders
        super().commit(request)
        del request.output_token_ids[known:]


class NeverPublishes(PagedKVCacheManager):
    """Prefix caching is on and finds nothing."""

    def commit(self, request: Request) -> None:
        """Nothing."""


class IgnoresTheSwitch(PagedKVCacheManager):
    """Prefix caching cannot be turned off."""

    def __init__(self, pools: list, block_size: int, enable_prefix_caching: bool) -> None:
        super().__init__(pools, block_size, True)


class LosesAHitInOneGroup(PagedKVCacheManager):
    """The second KV group's hits are not held, so they are evicted while they are read."""

    def match_prefix(self, request: Request) -> int:
        found = super().match_prefix(request)
        if found:
            self._pools[1].release(self._tables[request.request_id].blocks[1])
        return found


class FreesHeadFirst(PagedKVCacheManager):
    """The beginning of a prefix is evicted before its end."""

    def free(self, request: Request) -> None:
        table = self._tables.get(request.request_id)
        if table is not None:
            table.blocks = [blocks[::-1] for blocks in table.blocks]
        super().free(request)


class FreesOneGroup(PagedKVCacheManager):
    """The blocks of the other KV groups leak."""

    def free(self, request: Request) -> None:
        for blocks in self._tables.get(request.request_id, _Table([])).blocks[1:]:
            blocks.clear()
        super().free(request)


class FreesTwice(PagedKVCacheManager):
    """The table is kept, so that a second `free` releases other requests' blocks."""

    def free(self, request: Request) -> None:
        table = self._tables.get(request.request_id)
        super().free(request)
        if table is not None and request.finish_reason is not None:
            self._tables[request.request_id] = table


class RoomOffByOne(PagedKVCacheManager):
    """A block is added one token too late: position 8 goes to nobody's block."""

    def reserve(self, request: Request, num_tokens: int) -> Reservation | None:
        return super().reserve(request, max(num_tokens - 1, 1))


class OneBlockTooMany(PagedKVCacheManager):
    """A full last block gets a successor before a token needs one."""

    def reserve(self, request: Request, num_tokens: int) -> Reservation | None:
        return super().reserve(request, num_tokens + 1)


class TakesFromOneGroupAndFails(PagedKVCacheManager):
    """Not all or nothing over KV groups: their tables no longer are of one length."""

    def reserve(self, request: Request, num_tokens: int) -> Reservation | None:
        reservation = super().reserve(request, num_tokens)
        table = self._tables[request.request_id]
        if reservation is None and self._pools[0].num_free:
            table.blocks[0] += self._pools[0].allocate(1)
        return reservation


class ForkWithoutCopy(PagedKVCacheManager):
    """Parent and child write to the same last block."""

    def fork(self, parent: Request, child: Request, num_tokens: int) -> None:
        super().fork(parent, child, num_tokens)
        self._tables[child.request_id].num_shared = num_tokens // self._block_size


class ForkWithoutReferences(PagedKVCacheManager):
    """The parent's end frees the blocks that its child reads."""

    def fork(self, parent: Request, child: Request, num_tokens: int) -> None:
        super().fork(parent, child, num_tokens)
        for pool, blocks in zip(self._pools, self._tables[child.request_id].blocks, strict=True):
            pool.release(blocks)


class CopiesBackwards(PagedKVCacheManager):
    """The new block's old content is copied over the shared one."""

    def reserve(self, request: Request, num_tokens: int) -> Reservation | None:
        reservation = super().reserve(request, num_tokens)
        if reservation is None:
            return None
        swapped = tuple(tuple((b, a) for a, b in pairs) for pairs in reservation.copies)
        return Reservation(reservation.new_block_ids, swapped)


class ForgetsTheCopy(PagedKVCacheManager):
    """The block is replaced, and what it held is lost."""

    def reserve(self, request: Request, num_tokens: int) -> Reservation | None:
        reservation = super().reserve(request, num_tokens)
        return None if reservation is None else Reservation(reservation.new_block_ids)


class CopyNeedsNoRoom(PagedKVCacheManager):
    """The shortage test forgets the block that the copy takes."""

    def reserve(self, request: Request, num_tokens: int) -> Reservation | None:
        table = self._tables.get(request.request_id)
        if table is not None and self.num_free_blocks == 0:
            table.num_shared = min(
                table.num_shared, request.num_computed_tokens // self._block_size
            )
        return super().reserve(request, num_tokens)


class RollsBackTooFar(PagedKVCacheManager):
    """The block of the last accepted token is given back as well."""

    def rollback(self, request: Request, num_tokens: int) -> None:
        super().rollback(request, max(num_tokens - 1, 0))


class KeepsRejectedBlocks(PagedKVCacheManager):
    """Blocks of rejected drafts stay with the request."""

    def rollback(self, request: Request, num_tokens: int) -> None:
        """Nothing."""


class KeepsTablesOfFreedBlocks(PagedKVCacheManager):
    """A request that comes back goes on with the blocks it had given back."""

    def __init__(self, pools: list, block_size: int, enable_prefix_caching: bool) -> None:
        super().__init__(pools, block_size, enable_prefix_caching)
        self._old: dict[str, _Table] = {}

    def free(self, request: Request) -> None:
        table = self._tables.get(request.request_id)
        super().free(request)
        if table is not None and request.finish_reason is not FinishReason.STOP:
            self._old[request.request_id] = table

    def match_prefix(self, request: Request) -> int:
        if request.request_id in self._old:
            self._tables[request.request_id] = self._old.pop(request.request_id)
            return 0
        return super().match_prefix(request)
