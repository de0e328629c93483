"""`SchedulingPolicy`: who runs next, and who gives way when the cache is full.

One number decides both: the waiting request of the lowest rank is admitted first, the
running one of the highest rank is preempted first. See the chapter "Batching".
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from quire.errors import QuireError
from quire.messages import ScheduledEntry
from quire.request import Request


class SchedulingPolicy(Protocol):
    """Swap point: ranks requests, and is told of what becomes of them.

    Equal ranks go in order of arrival, so a preempted request returns ahead of all that
    came after it. The rank of a waiting request may grow with time but never falls.
    """

    def rank(self, request: Request) -> float:
        """Return the rank; lower runs first."""
        ...

    def arrived(self, request: Request) -> None:
        """Hear of a new request, before it is ranked."""
        ...

    def scheduled(self, entries: Iterable[ScheduledEntry]) -> None:
        """Hear of what a step computes."""
        ...

    def ended(self, request: Request) -> None:
        """Hear that a request finished or was aborted."""
        ...


class FirstComeFirstServed:
    """All ranks are equal: the order of arrival decides."""

    def rank(self, request: Request) -> float:
        """Rank everybody alike."""
        return 0

    def arrived(self, request: Request) -> None:
        """Nothing to note."""

    def scheduled(self, entries: Iterable[ScheduledEntry]) -> None:
        """Nothing to note."""

    def ended(self, request: Request) -> None:
        """Nothing to note."""


class PriorityFirst(FirstComeFirstServed):
    """The lowest `request.priority` first; a steady flow of those keeps the others waiting."""

    def rank(self, request: Request) -> float:
        """Rank by the number the caller gave."""
        return request.priority


# docs: fair-share begin
class FairShare:
    """The client that has had the fewest tokens computed goes first.

    A client with a thousand requests gets no more than one with ten. Whoever comes, for the
    first time or after a pause, starts at the least of the counts of those present, or it would
    be owed all it had not asked for meanwhile; where nobody is present, at the count of whoever
    left last. After the virtual token counter of Sheng et al. 2024 (arXiv:2401.00588); here
    every token, prompt or output, costs the same.
    """

    def __init__(self) -> None:
        self._num_tokens: dict[str, int] = {}  # by client, raised at a return
        self._num_requests: dict[str, int] = {}  # by client, of those present
        self._clients: dict[str, str] = {}  # by request id
        self._last_left = 0  # tokens of the client that left last

    def rank(self, request: Request) -> float:
        """Rank by what the request's client has had."""
        return self._num_tokens[request.client_id]

    def arrived(self, request: Request) -> None:
        """Lift a client who was away to the level of the others."""
        client = request.client_id
        if client not in self._num_requests:
            present = [self._num_tokens[other] for other in self._num_requests]
            level = min(present, default=self._last_left)
            self._num_tokens[client] = max(self._num_tokens.get(client, 0), level)
        self._num_requests[client] = self._num_requests.get(client, 0) + 1
        self._clients[request.request_id] = client

    def scheduled(self, entries: Iterable[ScheduledEntry]) -> None:
        """Charge the clients."""
        for entry in entries:
            self._num_tokens[self._clients[entry.request_id]] += entry.num_tokens

    def ended(self, request: Request) -> None:
        """Note when a client has no request left."""
        del self._clients[request.request_id]
        self._num_requests[request.client_id] -= 1
        if self._num_requests[request.client_id] == 0:
            del self._num_requests[request.client_id]
            self._last_left = self._num_tokens[request.client_id]


# docs: fair-share end

POLICIES: dict[str, Callable[[], SchedulingPolicy]] = {
    "fcfs": FirstComeFirstServed,
    "priority": PriorityFirst,
    "fair": FairShare,
}


def require_policy(name: object) -> None:
    """Raise QuireError unless there is a policy of that name."""
    if not isinstance(name, str) or name not in POLICIES:
        raise QuireError(f"policy={name!r}: must be one of {', '.join(POLICIES)}")


def make_policy(name: str) -> SchedulingPolicy:
    """Return a new policy by its name.

    Raises:
        QuireError: there is none of that name.
    """
    require_policy(name)
    return POLICIES[name]()


T = TypeVar("T")


class WaitingQueue(Generic[T]):
    """Items in order of (rank, arrival), where ranks may grow while an item waits.

    A heap of the ranks at the time of pushing. The front item's rank is looked up again
    when it is asked for: as ranks never fall, one that is still what it was is the lowest.
    """

    def __init__(self, rank: Callable[[T], float]) -> None:
        """Order items by `rank(item)` first."""
        self._rank = rank
        self._heap: list[tuple[float, int]] = []  # (rank, arrival)
        self._items: dict[int, T] = {}  # by arrival

    def __len__(self) -> int:
        return len(self._items)

    def push(self, item: T, arrival: int) -> None:
        """Add an item; no two in the queue have the same arrival number."""
        self._items[arrival] = item
        heapq.heappush(self._heap, (self._rank(item), arrival))

    def pop(self) -> T:
        """Take the item of the lowest rank, among equals the first to arrive."""
        while True:
            rank, arrival = self._heap[0]
            item = self._items.get(arrival)
            if item is None:  # removed
                heapq.heappop(self._heap)
                continue
            now = self._rank(item)
            if now <= rank:
                heapq.heappop(self._heap)
                return self._items.pop(arrival)
            heapq.heapreplace(self._heap, (now, arrival))

    def remove(self, arrival: int) -> None:
        """Take an item out; its place in the heap is dropped when it comes to the front."""
        del self._items[arrival]
