"""Packing, one token or one turn at a time: slow, and close to the words of the specification."""

from __future__ import annotations

from typing import Any

Wish = dict[str, Any]


def pairs_of(wish: Wish, given: int) -> int:
    """Every position of the first `given` that a wish may get sees itself and all before it."""
    return sum(wish["start"] + i + 1 for i in range(given))


def pack(
    variant: str, budget: int, pairs: int, block: int, wishes: list[Wish], now: int
) -> list[int]:
    """What `pack` must return."""
    given = {wish["request"]: 0 for wish in wishes}
    left = budget
    decodes = [wish for wish in wishes if wish["decode"]]
    while decodes and left > 0:
        longest = max(now - wish["since"] for wish in decodes)
        wish = next(wish for wish in decodes if now - wish["since"] == longest)
        decodes.remove(wish)
        given[wish["request"]], left = 1, left - 1
    prompts = [wish for wish in wishes if not wish["decode"]]
    if variant == "fair":
        _deal(left, pairs, block, wishes, prompts, given)
    else:
        order = _by_deadline if variant == "deadline" else _by_length
        for wish in order(budget, prompts, now):
            begun = any(given[w["request"]] for w in prompts)
            spent = sum(pairs_of(w, given[w["request"]]) for w in wishes)
            sizes = [n for n in range(left + 1) if n % block == 0 or n == wish["count"]]
            sizes = [n for n in sizes if n <= wish["count"]]
            fit = [n for n in sizes if n == 0 or spent + pairs_of(wish, n) <= pairs]
            size = max(fit if begun else [*fit, *(n for n in sizes if n <= block)])
            given[wish["request"]], left = size, left - size
    return [given[wish["request"]] for wish in wishes]


def _by_length(budget: int, prompts: list[Wish], now: int) -> list[Wish]:
    late = [wish for wish in prompts if now >= wish["since"] + 8]
    early = [wish for wish in prompts if now < wish["since"] + 8]
    return [
        *sorted(late, key=lambda wish: wish["since"]),
        *sorted(early, key=lambda wish: wish["count"]),
    ]


def _by_deadline(budget: int, prompts: list[Wish], now: int) -> list[Wish]:
    possible = [w for w in prompts if w["count"] <= budget * (w["deadline"] - now + 1)]
    hopeless = [wish for wish in prompts if wish not in possible]
    return [*sorted(possible, key=lambda wish: wish["deadline"]), *hopeless]


def _deal(
    left: int, pairs: int, block: int, wishes: list[Wish], prompts: list[Wish],
    given: dict[str, int],
) -> None:  # fmt: skip
    clients = {wish["client"]: int(wish["served"]) for wish in wishes}

    def tokens(client: str) -> int:
        return clients[client] + sum(given[w["request"]] for w in wishes if w["client"] == client)

    out: set[str] = set()
    while True:
        open_ = [w for w in prompts if given[w["request"]] < w["count"] and w["client"] not in out]
        if not open_:
            return
        fewest = min(tokens(wish["client"]) for wish in open_)
        wish = next(wish for wish in open_ if tokens(wish["client"]) == fewest)
        turn = min(block, wish["count"] - given[wish["request"]])
        before = given[wish["request"]]
        begun = any(given[w["request"]] for w in prompts)
        spent = sum(pairs_of(w, given[w["request"]]) for w in wishes)
        more = pairs_of(wish, before + turn) - pairs_of(wish, before)
        if turn <= left and (not begun or spent + more <= pairs):
            given[wish["request"]] += turn
            left -= turn
        else:
            out.add(wish["client"])
