"""`ExpertPlacement`: which rank holds which experts of a layer, and how many copies of each.

A step ends when the rank with the most tokens has ended, so a rank that holds the experts which
everybody wants sets the pace of all. Two remedies need nothing but counts of tokens: put busy and
idle experts together (`packed`), and hold the busiest more than once (`replicated`), as DeepSeek-V3
is served (arXiv 2412.19437, section 3.4, "redundant experts"; the algorithm is that of
github.com/deepseek-ai/EPLB, which may put two copies of an expert onto one rank, its issue 22; this
one never does). See the chapter "Parallelism".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quire.errors import QuireError


# docs: placement begin
@dataclass(frozen=True)
class ExpertPlacement:
    """One table for all ranks: `slots[r][s]` is the expert whose weights lie in slot s of rank r.

    Invariants (checked on construction): there is a rank; all ranks have equally many slots; the
    experts are 0 to E - 1, each in one slot at least; no rank holds an expert twice, as two copies
    on one rank share its time.
    """

    slots: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len({len(held) for held in self.slots}) != 1:
            raise QuireError(
                f"a placement with {[len(held) for held in self.slots]} slots on its ranks: there "
                "must be a rank, and all must have equally many"
            )
        found = {expert for held in self.slots for expert in held}
        if found != set(range(len(found))):
            raise QuireError(
                f"a placement of the experts {sorted(found)}: they must be 0 to E - 1, each in one "
                "slot at least"
            )
        for rank, held in enumerate(self.slots):
            twins = sorted({expert for expert in held if held.count(expert) > 1})
            if twins:
                raise QuireError(
                    f"rank {rank} holds {list(held)}: expert {twins[0]} twice, which a rank gains "
                    "nothing by; put the copy onto another rank"
                )

    @property
    def num_ranks(self) -> int:
        """R, the ranks of the table."""
        return len(self.slots)

    @property
    def num_experts(self) -> int:
        """E, the different experts."""
        return 1 + max((expert for held in self.slots for expert in held), default=-1)

    @property
    def num_slots(self) -> int:
        """S, the slots of all ranks together; S - E of them hold copies."""
        return self.num_ranks * len(self.slots[0])

    @property
    def replicas(self) -> tuple[tuple[int, ...], ...]:
        """The ranks that hold each expert, rising."""
        return tuple(
            tuple(rank for rank, held in enumerate(self.slots) if expert in held)
            for expert in range(self.num_experts)
        )

    def rank_loads(self, loads: Sequence[float]) -> list[float]:
        """Return the load of each rank, if the copies of an expert share its load evenly.

        Args:
            loads: of each expert, [E]: tokens, or anything that adds up.

        Raises:
            QuireError: not one load an expert, or one that is negative or no number.
        """
        check_loads(loads, self.num_experts)
        copies = [len(ranks) for ranks in self.replicas]
        return [math.fsum(loads[e] / copies[e] for e in held) for held in self.slots]

    def imbalance(self, loads: Sequence[float]) -> float:
        """Return the greatest load of a rank over the mean of all, 1.0 where there is none.

        It is 1 if all ranks end together, and R if one does all the work.

        Raises:
            QuireError: as `rank_loads` does.
        """
        each = self.rank_loads(loads)
        mean = math.fsum(each) / len(each)
        return max(each) / mean if mean > 0 else 1.0


# docs: placement end


def contiguous(num_experts: int, num_ranks: int) -> ExpertPlacement:
    """Return the placement that knows no loads: rank r holds E / R experts from r · E / R on.

    Raises:
        QuireError: the ranks cannot hold equally many.
    """
    _check_slots(num_experts, num_ranks, num_experts)
    each = num_experts // num_ranks
    return ExpertPlacement(
        tuple(tuple(range(rank * each, (rank + 1) * each)) for rank in range(num_ranks))
    )


def packed(loads: Sequence[float], num_ranks: int) -> ExpertPlacement:
    """Return a placement of equally many experts a rank, and of loads that are nearly even.

    Longest processing time first: the experts in the order of falling load, each to
    the rank that has the least so far and room for one more.

    Args:
        loads: of each expert, [E].
        num_ranks: R, a divisor of E.

    Raises:
        QuireError: the ranks cannot hold equally many; a load is negative or no number.
    """
    return replicated(loads, num_ranks, len(loads))


# docs: replicated begin
def replicated(loads: Sequence[float], num_ranks: int, num_slots: int) -> ExpertPlacement:
    """Return a placement in which the busiest experts have copies on several ranks.

    Each slot beyond one an expert goes to the expert with the greatest load a copy; then the copies
    are packed as in `packed`. Of equal loads the expert with fewer copies comes first, then the
    lower number, so that every rank comes to the same table by itself.

    Args:
        loads: of each expert, [E].
        num_ranks: R.
        num_slots: S, of all ranks together: a multiple of R, from E to E · R.

    Raises:
        QuireError: the slots cannot be filled; a load is negative or no number.
    """
    num_experts = len(loads)
    check_loads(loads, num_experts)
    _check_slots(num_experts, num_ranks, num_slots)
    copies = [1] * num_experts
    for _ in range(num_slots - num_experts):
        fewer = [e for e in range(num_experts) if copies[e] < num_ranks]  # no twins on a rank
        copies[min(fewer, key=lambda e: (-loads[e] / copies[e], copies[e], e))] += 1

    order = sorted(range(num_experts), key=lambda e: (-loads[e] / copies[e], e))
    held: list[list[int]] = [[] for _ in range(num_ranks)]
    free = [num_slots // num_ranks] * num_ranks
    total = [0.0] * num_ranks
    for place, expert in enumerate(order):
        later = [copies[e] for e in order[place + 1 :]]
        for rank in _choose_ranks(copies[expert], total, free, later):
            held[rank].append(expert)
            free[rank] -= 1
            total[rank] += loads[expert] / copies[expert]
    return ExpertPlacement(tuple(tuple(sorted(experts)) for experts in held))


# docs: replicated end


def _choose_ranks(
    count: int, total: Sequence[float], free: Sequence[int], later: Sequence[int]
) -> list[int]:
    """Choose different ranks for the copies of an expert: the least loaded that have room.

    Where that would leave too few ranks with room for the copies of a later expert, as few as
    need be are taken by their room instead. If all are, what was possible stays possible: the
    construction behind the theorem of Gale and Ryser.

    Args:
        count: copies to place.
        total: load of each rank so far.
        free: free slots of each rank.
        later: copies of each expert that comes later.
    """
    with_room = [rank for rank, slots in enumerate(free) if slots > 0]
    by_load = sorted(with_room, key=lambda rank: (total[rank], rank))
    by_room = sorted(with_room, key=lambda rank: (-free[rank], total[rank], rank))
    for num_by_room in range(count + 1):
        chosen = by_room[:num_by_room]
        chosen += [rank for rank in by_load if rank not in chosen][: count - num_by_room]
        if _can_hold([slots - (rank in chosen) for rank, slots in enumerate(free)], later):
            return chosen
    raise AssertionError(f"no {count} ranks for an expert with {free} free slots")


def _can_hold(free: Sequence[int], copies: Sequence[int]) -> bool:
    """Whether free slots can hold experts of so many copies without twins (Gale and Ryser).

    That is if the k ranks with the most room have no more of it, for every k, than the experts
    can fill: min(k, copies) slots each.
    """
    room = filled = 0
    for k, slots in enumerate(sorted(free, reverse=True), 1):
        room += slots
        filled += sum(number >= k for number in copies)
        if room > filled:
            return False
    return room == filled


def check_loads(loads: Sequence[float], num_experts: int) -> None:
    """Raise QuireError unless there is a load for each expert, finite and not negative."""
    if len(loads) != num_experts:
        raise QuireError(f"{len(loads)} loads for {num_experts} experts: give one an expert")
    for expert, load in enumerate(loads):
        if not (math.isfinite(load) and load >= 0):
            raise QuireError(
                f"load {load!r} of expert {expert}: must be a number of tokens, 0 or more"
            )


def _check_slots(num_experts: int, num_ranks: int, num_slots: int) -> None:
    if num_ranks < 1 or num_experts < 1:
        raise QuireError(
            f"{num_experts} experts on {num_ranks} ranks: there must be one of each at least"
        )
    if not num_experts <= num_slots <= num_experts * num_ranks:
        raise QuireError(
            f"{num_slots} slots for {num_experts} experts on {num_ranks} ranks: there must be "
            f"{num_experts} at least, and at most {num_experts * num_ranks}, where every rank has "
            "every expert"
        )
    if num_slots % num_ranks:
        raise QuireError(
            f"{num_slots} slots for {num_experts} experts on {num_ranks} ranks: all ranks have "
            f"equally many; choose a multiple of {num_ranks}"
        )
