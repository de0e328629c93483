"""Verification by what stands behind what: a dict from the tokens said to the row behind them."""

from __future__ import annotations

import hashlib
import math
from typing import Any

Request = dict[str, Any]


def noise(seed: int, position: int, token: int) -> float:
    """The notebook's noise."""
    digest = hashlib.sha256(f"{seed}:{position}:{token}".encode()).digest()
    return -math.log((int.from_bytes(digest[:6], "big") + 1) / 2**48) + 1e-12


def race(weights: list[float], allowed: set[int], seed: int | None, position: int) -> int:
    """The token that a row chooses among `allowed`."""
    left = [t for t in sorted(allowed) if weights[t] > 0]
    if seed is None:
        return next(t for t in left if weights[t] == max(weights[t] for t in left))
    return max(left, key=lambda t: weights[t] / noise(seed, position, t))


def rows_behind(variant: str, drafts: list[Any]) -> dict[tuple[int, ...], int]:
    """For each way through the drafts, the row behind it."""
    rows: dict[tuple[int, ...], int] = {(): 0}
    way: tuple[int, ...] = ()
    for place, drafted in enumerate(drafts):
        candidates = drafted if variant == "pair" else [drafted]
        for rank, token in enumerate(candidates):
            rows.setdefault((*way, token), len(candidates) * place + rank + 1)
        way = (*way, candidates[0])
    return rows


def state_behind(request: Request, said: list[int]) -> int:
    """The grammar's state."""
    state = int(request["state"])
    for token in said:
        state = request["grammar"][state][token]
    return state


def choose(variant: str, request: Request, row: int, said: list[int]) -> int:
    """The token that a row says behind `said`."""
    weights = request["weights"][row]
    allowed = set(range(len(weights)))
    if len(said) < request["least"]:
        allowed -= set(request["stops"])
    if variant == "grammar":
        after = request["grammar"][state_behind(request, said)]
        allowed &= {t for t, state in enumerate(after) if state is not None}
    return race(weights, allowed, request["seed"], request["position"] + len(said))


def verify(variant: str, requests: list[Request]) -> list[dict[str, Any]]:
    """What `verify` must return."""
    used: dict[str, int] = {}
    answers = []
    for request in requests:
        ways = rows_behind(variant, request["drafts"])
        said: list[int] = []
        rows: list[int] = []
        end = None
        while end is None and tuple(said) in ways:
            if said and variant == "quota":
                client = request["client"]
                if used.get(client, 0) == request["quota"]:
                    break
                used[client] = used.get(client, 0) + 1
            rows.append(ways[tuple(said)])
            said.append(choose(variant, request, rows[-1], said))
            if len(said) == request["left"]:
                end = "length"
            if said[-1] in request["stops"]:
                end = "stop"
        answer = {"tokens": said, "rows": rows, "end": end}
        if variant == "grammar":
            answer["state"] = state_behind(request, said)
        answers.append(answer)
    return answers
