"""`SlotManager`: the contiguous cache, one block of full length a request.

It is the simplest `KVCacheManager` there can be, and its waste is what the chapter "The
paged KV cache" measures: a request of 20 tokens holds room for `max_model_len`.
"""

from __future__ import annotations

from typing import Protocol

from quire.request import Request


class KVCacheManager(Protocol):
    """Swap point: decides which blocks a request's keys and values go to.

    `match_prefix`, `rollback` and `fork` join it with the features that need them.
    """

    def reserve(self, request: Request, num_tokens: int) -> tuple[tuple[int, ...], ...] | None:
        """Make room for `num_tokens` more positions of a request.

        Returns the new block ids per KV group (empty tuples when there was room), or None
        when the cache is full and the caller must wait or preempt.
        """
        ...

    def free(self, request: Request) -> None:
        """Give back all blocks of a request."""
        ...


class SlotManager:
    """One block a request, from the first token to the last.

    Invariant: `len(free) + len(held) == num_slots`; ids are 1…num_slots, 0 being null.
    """

    def __init__(self, num_slots: int, num_groups: int = 1) -> None:
        """Manage `num_slots` blocks, the same ids in each of `num_groups` KV groups."""
        self._num_slots = num_slots
        self._num_groups = num_groups
        self._free = list(range(num_slots, 0, -1))
        self._held: dict[str, int] = {}

    def reserve(self, request: Request, num_tokens: int) -> tuple[tuple[int, ...], ...] | None:
        """Give a request its block at its first call; later calls need nothing more."""
        if request.request_id in self._held:
            return ((),) * self._num_groups
        if not self._free:
            return None
        self._held[request.request_id] = self._free.pop()
        return ((self._held[request.request_id],),) * self._num_groups

    def free(self, request: Request) -> None:
        """Take a request's block back; a request without one is left alone."""
        slot = self._held.pop(request.request_id, None)
        if slot is not None:
            self._free.append(slot)

    def check(self) -> None:
        """Raise AssertionError if the invariant is broken."""
        ids = sorted([*self._free, *self._held.values()])
        assert ids == list(range(1, self._num_slots + 1)), ids
