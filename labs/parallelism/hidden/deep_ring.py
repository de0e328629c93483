"""Task 4 as ring attention: every query's scores with every key, at once, in plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .driving import Events, expect, messages, sent_by, words_of
from .shards_oracle import random_ratio, split


def positions(total: int, ratio: list[int]) -> list[np.ndarray]:
    """What `share` must return."""
    n = len(ratio)
    parts = split("ring", total, [*ratio, *reversed(ratio)])
    owner = [chunk if chunk < n else 2 * n - 1 - chunk for chunk in range(2 * n)]
    found: list[list[int]] = [[] for _ in ratio]
    for chunk, (begin, size) in enumerate(parts):
        found[owner[chunk]] += list(range(begin, begin + size))
    return [np.array(own, np.int64) for own in found]


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and logarithms of sums of all tokens."""
    tokens, width = q.shape
    out, lse = np.zeros((tokens, width)), np.full(tokens, -math.inf)
    for i in range(tokens):
        seen = [j for j in range(tokens) if 0 <= at[j] <= at[i]]
        if not seen:
            continue
        scores = [math.fsum(a * b for a, b in zip(q[i], k[j], strict=True)) / math.sqrt(width)
                  for j in seen]  # fmt: skip
        most = max(scores)
        weights = [math.exp(score - most) for score in scores]
        whole = math.fsum(weights)
        lse[i] = most + math.log(whole)
        for weight, j in zip(weights, seen, strict=True):
            out[i] += weight / whole * v[j]
    return out, lse


def attend(
    student: Any, q: np.ndarray, k: np.ndarray, v: np.ndarray, at: np.ndarray,
    kept: list[np.ndarray], because: str = "",
) -> Events:  # fmt: skip
    """Run `work` on the tokens of ranks and judge what comes out."""
    counts = [len(own) for own in kept]
    calls = [(rank, counts, q[own], k[own], v[own], at[own]) for rank, own in enumerate(kept)]
    out, lse = attention(q, k, v, at)
    want = [{"out": out[own], "lse": lse[own]} for own in kept]
    events = expect(student, "work", calls, want, because)
    messages(student, events, words_of(student, "work", calls))
    return events


def _tokens(rng: Any, tokens: int, width: int, size: float = 1.0) -> Any:
    numbers = np.array([rng.gauss(0, 1) for _ in range(3 * tokens * width)])
    return numbers.reshape(3, tokens, width) * np.array([size, 1, 1])[:, None, None]


def _kept(rng: Any, tokens: int, ranks: int) -> list[np.ndarray]:
    """Tokens dealt to ranks anyhow."""
    home = [rng.randrange(ranks) for _ in range(tokens)]
    return [np.array([i for i in range(tokens) if home[i] == r], np.int64) for r in range(ranks)]


def shares(student: Any, rng: Any) -> None:
    """Any total and ratio."""
    for _ in range(4):
        ratio, total = random_ratio(rng), rng.randint(0, 60)
        student.expect("share", total, ratio, want=positions(total, ratio))
    student.expect("share", 24, [1, 1, 1], want=positions(24, [1, 1, 1]), because="equal ranks")


def exchange(student: Any, rng: Any) -> None:
    """Which blocks a rank sends, in which order, and that nobody waits for ever."""
    for ranks in (rng.randint(2, 3), rng.randint(3, 6)):
        tokens, width = rng.randint(1, 9), rng.randint(1, 3)
        q, k, v = _tokens(rng, tokens, width)
        kept, at = _kept(rng, tokens, ranks), np.arange(tokens)
        events = attend(student, q, k, v, at, kept, f"{ranks} ranks")
        blocks = [np.concatenate([at[own][:, None], k[own], v[own]], 1) for own in kept]
        counts = [len(own) for own in kept]
        calls = [(r, counts, q[own], k[own], v[own], at[own]) for r, own in enumerate(kept)]
        sent = messages(student, events, words_of(student, "work", calls))
        for rank in range(ranks):
            held = [blocks[(rank + step) % ranks] for step in range(ranks - 1)]
            want = [[(rank - 1) % ranks, block] for block in held if len(block)]
            words = f"{words_of(student, 'work', calls)}, what rank {rank} sends, [to, block]"
            student.compare(words, sent_by(sent, rank), want, 1e-9)


def result(student: Any, rng: Any) -> None:
    """Tokens anywhere, scores small and large."""
    tokens, width = rng.randint(2, 12), rng.randint(1, 5)
    at = np.arange(tokens)
    for size in (1.0, rng.choice((3000.0, 0.0))):
        q, k, v = _tokens(rng, tokens, width, size)
        kept = _kept(rng, tokens, rng.randint(1, 4))
        attend(student, q, k, v, at, kept, f"scores times {size}")
    q, k, v = _tokens(rng, tokens, width)
    k[:, 0], q[:, 0] = np.where(at < tokens // 2, -2000, 2000), 1.0
    k[:, 0] *= rng.choice((-1, 1))
    zigzag = positions(tokens, [2, 1, 1])
    attend(student, q, k, v, at, zigzag, "late or early keys outweigh all others")


def edges(student: Any, rng: Any) -> None:
    """Padding of NaN and infinity, ranks of padding alone, ranks without tokens."""
    tokens, width = rng.randint(3, 8), rng.randint(1, 3)
    q, k, v = _tokens(rng, tokens, width)
    at = np.arange(tokens)
    padding = rng.sample(range(tokens), rng.randint(1, tokens - 1))
    at[padding] = -1
    for one in (q, k, v):
        one[padding] = rng.choice((np.nan, np.inf, -np.inf, 1e300))
    kept = _kept(rng, tokens, rng.randint(1, 4))
    attend(student, q, k, v, at, kept, f"tokens {sorted(padding)} are padding")
    real = np.array([i for i in range(tokens) if i not in padding], np.int64)
    apart = [np.array(sorted(padding), np.int64), real, np.zeros(0, np.int64)]
    rng.shuffle(apart)
    attend(student, q, k, v, at, apart, "a rank has only padding, another one no tokens")
    none = np.zeros(0, np.int64)
    if rng.random() < 0.3:
        attend(student, q, k, v, np.full(tokens, -1), apart, "everything is padding")
        attend(student, q, k, v, at, [none, none], "no rank has tokens")
    gaps = np.cumsum([rng.randint(1, 5) for _ in range(tokens)]) + 3
    q, k, v = _tokens(rng, tokens, width)
    order = rng.sample(range(tokens), tokens)
    mixed = [np.array(order[::2], np.int64), np.array(order[1::2], np.int64)]
    attend(student, q, k, v, gaps, mixed, "positions with gaps, in any order")
    for ratio in ([], [0, 0], [1, -1]):
        student.refuses("share", 5, ratio, because=f"split refuses {ratio}")
