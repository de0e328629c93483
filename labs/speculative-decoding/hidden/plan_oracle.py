"""Planning by trying everything: each way to give drafts, with its whole expectation."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

Request = dict[str, Any]


def _chance(history: list[list[Any]], place: int, rank: int | None) -> Fraction:
    """Of a place, or of a rank at a place."""
    right = judged = 0
    for drafted, result in history:
        kept = result if rank is None else len(result)
        if drafted > place and kept >= place:
            judged += 1
            if kept > place and (rank is None or result[place] == rank):
                right += 1
    return Fraction(right + 1, judged + (2 if rank is None else 3))


def _last(history: list[list[Any]], recent: int) -> list[list[Any]]:
    return [record for i, record in enumerate(history) if i >= len(history) - recent]


def plan(variant: str, costs: list[int], requests: list[Request], recent: int) -> list[Any]:
    """What `plan` must return."""
    if not requests:
        return []
    if variant == "pair":
        return _trees(costs, requests, recent)
    chances = []
    for request in requests:
        history = _last(request["history"], recent)
        line = [_chance(history, place, None) for place in range(request["most"])]
        if variant == "grammar":
            line = [Fraction(1) if i in request["forced"] else c for i, c in enumerate(line)]
        chances.append(line)
    best: tuple[Any, ...] | None = None
    answer: list[int] = []
    for counts in itertools.product(*(range(request["most"] + 1) for request in requests)):
        rows = len(requests) + sum(counts)
        if rows >= len(costs) or (variant == "quota" and not _within(requests, counts)):
            continue
        expected = Fraction(len(requests))
        for line, count in zip(chances, counts, strict=True):
            value = Fraction(1)
            for chance in line[:count]:
                value *= chance
                expected += value
        # The best rate, then the fewest drafts, then the most for those listed first.
        key = (expected / costs[rows], -sum(counts), counts)
        if best is None or key > best:
            best, answer = key, list(counts)
    return answer


def _within(requests: list[Request], counts: tuple[int, ...]) -> bool:
    for request in requests:
        used = sum(
            n for r, n in zip(requests, counts, strict=True) if r["client"] == request["client"]
        )
        if used > request["quota"]:
            return False
    return True


def _trees(costs: list[int], requests: list[Request], recent: int) -> list[list[list[int]]]:
    nodes = []
    for number, request in enumerate(requests):
        history = _last(request["history"], recent)
        for length in range(1, request["most"] + 1):
            for name in itertools.product((0, 1), repeat=length):
                value = Fraction(1)
                for place, rank in enumerate(name):
                    value *= _chance(history, place, rank)
                nodes.append((value, number, list(name)))
    nodes.sort(key=lambda node: (-node[0], node[1], len(node[2]), node[2]))
    measured = costs[len(requests) :]
    rates = [
        (len(requests) + sum(value for value, _, _ in nodes[:n])) / Fraction(time)
        for n, time in zip(range(len(nodes) + 1), measured, strict=False)
    ]
    taken = nodes[: rates.index(max(rates))]
    return [[name for _, number, name in taken if number == i] for i in range(len(requests))]
