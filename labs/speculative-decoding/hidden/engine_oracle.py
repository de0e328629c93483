"""Drafts after trials, and the count of a run, one draft at a time."""

from __future__ import annotations

from typing import Any

from .propose_oracle import propose


def draft(
    texts: list[list[int]], longest: int, shortest: int, separator: int, k: int, trials: int
) -> list[list[int]]:
    """What `draft` must return."""
    answers = []
    for text in texts:
        right = 0
        for out in range(1, trials + 1):
            known, came = text[: len(text) - out], text[len(text) - out :]
            if out < len(text) and propose(known, longest, shortest, separator, 1) == came[:1]:
                right += 1
        answers.append(propose(text, longest, shortest, separator, k * right // trials))
    return answers


def tally(records: list[list[list[int]]]) -> dict[str, Any]:
    """What `tally` must return."""
    longest = max([len(drafts) for drafts, _ in records], default=0)
    counts = {name: [0] * longest for name in ("drafted", "judged", "kept")}
    for drafts, said in records:
        for place, token in enumerate(drafts):
            counts["drafted"][place] += 1
            if place < len(said):
                counts["judged"][place] += 1
                counts["kept"][place] += token == said[place]
    return {"records": len(records), "tokens": sum(len(said) for _, said in records), **counts}
