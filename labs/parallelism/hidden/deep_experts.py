"""Task 4 with replicas of experts: tables by plain loops, tokens by counting."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from .driving import asked, expect, pure, refuses, words_of

Table = list[list[int]]


def table_of(total: list[int], slots: list[int]) -> Table:
    """What `share` must return."""
    copies = dict.fromkeys(range(len(total)), 1)
    most = sum(1 for count in slots if count)
    while sum(copies.values()) < sum(slots) and min(copies.values()) < most:
        best = None
        for expert, number in copies.items():
            share = Fraction(total[expert], number)
            if number < most and (best is None or share > best[0]):
                best = share, expert
        assert best is not None
        copies[best[1]] += 1
    waiting = [expert for expert, number in copies.items() for _ in range(number)]
    table: Table = [[] for _ in slots]

    def share(expert: int) -> Fraction:
        return Fraction(total[expert], copies[expert])

    def load(rank: int) -> Fraction:
        return sum(map(share, table[rank]), Fraction(0)) / slots[rank]

    while waiting:
        expert = min(e for e in waiting if share(e) == max(map(share, waiting)))
        waiting.remove(expert)
        free = [rank for rank, own in enumerate(table) if len(own) < slots[rank]]
        new = [rank for rank in free if expert not in table[rank]]
        chosen = (new or free)[0]
        for rank in new or free:
            if load(rank) < load(chosen):
                chosen = rank
        table[chosen].append(expert)
    return table


def served(table: Table, tokens: list[list[int]]) -> list[list[list[list[int]]]]:
    """What `work` must return."""
    answer: list[list[list[list[int]]]] = [[[] for _ in own] for own in table]
    for expert in {one for own in table for one in own}:
        places = [(r, s) for r, own in enumerate(table) for s, e in enumerate(own) if e == expert]
        mine = sorted((request, position) for request, position, e in tokens if e == expert)
        for number, token in enumerate(mine):
            rank, slot = places[number % len(places)]
            answer[rank][slot].append(list(token))
    return answer


def _parts(rng: Any, total: list[int], ranks: int) -> list[np.ndarray]:
    """Loads of ranks that add up to these."""
    found = np.zeros((ranks, len(total)), np.int64)
    for expert, load in enumerate(total):
        for _ in range(3):
            found[rng.randrange(ranks), expert] += load // 3
        found[rng.randrange(ranks), expert] += load - load // 3 * 3
    return list(found)


def _share(student: Any, rng: Any, total: list[int], slots: list[int], because: str = "") -> None:
    calls = [(part, slots) for part in _parts(rng, total, len(slots))]
    want = [table_of(total, slots)] * len(slots)
    events = expect(student, "share", calls, want, because)
    asked(student, events, ["AllReduce"], words_of(student, "share", calls))


def _slots(rng: Any, experts: int) -> list[int]:
    """Slots of one to four ranks, as many as experts or more."""
    slots = [rng.randint(1, 4) for _ in range(rng.randint(1, 4))]
    while sum(slots) < experts:
        slots[rng.randrange(len(slots))] += 1
    return slots


def shares(student: Any, rng: Any) -> None:
    """Skewed loads, equal loads, loads whose shares are equal."""
    experts = rng.randint(1, 7)
    slots = _slots(rng, experts)
    _share(student, rng, [rng.randint(0, 40) for _ in range(experts)], slots)
    _share(student, rng, [rng.choice((6, 12, 3)) for _ in range(experts)], slots, "equal ones")
    skewed = [60 // (i + 1) for i in range(experts)]
    rng.shuffle(skewed)
    _share(student, rng, skewed, _slots(rng, experts), "skewed loads")
    close = [
        ([3, 8, 1], [4, 5, 1]), ([6, 5, 11, 8], [2, 6, 5]), ([8, 3, 1], [4, 1, 5]),
        ([10, 6, 11, 8, 4, 6], [4, 2, 2, 6]), ([11, 12, 3, 4, 9, 4], [6, 1, 3, 4]),
    ]  # fmt: skip
    _share(student, rng, *rng.choice(close), "loads that are equal, though not as floats")
    big = 10**17  # a float does not know it from the next number
    some = (
        ([big, big + 1], [2, 1], "expert 1 has one token more, and gets the replica"),
        ([big, big + 1], [1, 1], "expert 1 has one token more, and is placed first"),
        ([big + 1, big, 1, 1], [2, 2], "rank 1 has one token less, and gets expert 2"),
    )
    _share(student, rng, *rng.choice(some))


def exchange(student: Any, rng: Any) -> None:
    """Ranks that have counted nothing, or something else than all together."""
    experts = rng.randint(2, 6)
    slots = _slots(rng, experts)
    total = [rng.randint(0, 30) for _ in range(experts)]
    loads = [np.zeros(experts, np.int64) for _ in slots]
    loads[rng.randrange(len(slots))] += np.array(total)
    calls = [(one, slots) for one in loads]
    events = expect(student, "share", calls, [table_of(total, slots)] * len(slots), "one counted")
    said = words_of(student, "share", calls)
    asked(student, events, ["AllReduce"], said)
    student.compare(f"{said}, what the ranks give", events[0][1], loads)
    opposite = [[20, 10, 1], [0, 9, 30]]
    calls = [(np.array(one), [2, 3]) for one in opposite]
    want = [table_of([20, 19, 31], [2, 3])] * 2
    expect(student, "share", calls, want, "by its own loads each rank would choose another expert")


def result(student: Any, rng: Any) -> None:
    """Tokens in any order, of any expert, some requests with several positions."""
    experts = rng.randint(1, 5)
    slots = _slots(rng, experts)
    table = table_of([rng.randint(0, 30) for _ in range(experts)], slots)
    names = rng.sample([(r, p) for r in (1, 2, 10, 30) for p in (0, 1, 2, 10, 11)], 14)
    tokens = [[r, p, e] for r, p in names for e in rng.sample(range(experts), min(experts, 2))]
    pure(student, "work", table, tokens, want=served(table, tokens))
    rng.shuffle(tokens)
    pure(student, "work", table, tokens, want=served(table, tokens), because="in another order")
    table = [[0, 1, 0], [], [1, 0]]
    tokens = [[r, p, 0] for r, p in names] + [[5, 5, 1], [5, 4, 1], [4, 9, 1]]
    why = "three replicas of 0, two of them on one rank"
    pure(student, "work", table, tokens, want=served(table, tokens), because=why)


def edges(student: Any, rng: Any) -> None:
    """No loads, ranks without slots, more slots than replicas, twins, too few slots."""
    experts = rng.randint(1, 4)
    some = (
        ([0] * experts, [experts, experts + 1], "all loads are 0"),
        ([9] * experts, [0, 2 * experts, 0], "one rank with slots"),
        ([9, 4], [3, 0, 2, 0], "ranks without slots, one slot stays empty"),
        ([8, 5, 5], [5, 1], "twins, since rank 1 is full"),
        ([10, 9, 8], [1, 5], "twins, since rank 0 is full"),
        ([3, 2, 2], [1, 6, 2], "more slots than replicas"),
    )
    for total, slots, why in rng.sample(some, 3):
        _share(student, rng, total, slots, why)
    why = f"{experts} slots for {experts + 1} experts"
    loads = np.ones(experts + 1, np.int64)
    refuses(student, "share", loads, [experts, 0], because=why)
    refuses(student, "share", loads, [0], because="no slots")
