"""What a decode step must give, computed without slots, ranks' arithmetic or einsum.

Tokens that are kept are a plain list, oldest first; every head is a loop. Shares no line
with the reference.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def random_case(seed: int, **sizes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and config of a tiny decoder; sizes vary with the seed."""
    rng = np.random.default_rng(seed)
    kv_heads = int(rng.integers(1, 3))
    config = {
        "num_heads": kv_heads * int(rng.integers(1, 4)),
        "num_kv_heads": kv_heads,
        "head_size": 2 * int(rng.integers(1, 4)),
        "sinks": int(rng.integers(0, 4)),
        "window": int(rng.integers(1, 6)),
    } | sizes
    hidden, ffn, vocab = int(rng.integers(3, 9)), int(rng.integers(3, 9)), 11

    def matrix(*shape: int) -> Array:
        return rng.normal(size=shape)

    q_size = config["num_heads"] * config["head_size"]
    kv_size = config["num_kv_heads"] * config["head_size"]
    layers = [
        {
            "attn_norm": matrix(hidden),
            "q": matrix(q_size, hidden),
            "k": matrix(kv_size, hidden),
            "v": matrix(kv_size, hidden),
            "o": matrix(hidden, q_size),
            "mlp_norm": matrix(hidden),
            "gate": matrix(ffn, hidden),
            "up": matrix(ffn, hidden),
            "down": matrix(hidden, ffn),
        }
        for _ in range(int(rng.integers(1, 4)))
    ]
    weights = {"embed": matrix(vocab, hidden), "norm": matrix(hidden), "layers": layers}
    return weights, config


def empty_cache(weights: dict[str, Any], config: dict[str, Any], seed: int) -> dict[str, Array]:
    """A cache full of another request's numbers."""
    rng = np.random.default_rng(seed + 1)
    slots = config["sinks"] + config["window"]
    shape = (len(weights["layers"]), slots, config["num_kv_heads"], config["head_size"])
    return {"k": 3 * rng.normal(size=shape), "v": 3 * rng.normal(size=shape)}


def slots_by_position(config: dict[str, Any], position: int) -> list[tuple[int, int]]:
    """(position, slot) of the tokens kept once `position` is written, oldest first.

    Found by playing the writes: a slot belongs to whoever wrote it last.
    """
    owner: dict[int, int] = {}
    pointer = config["sinks"]
    for p in range(position + 1):
        if p < config["sinks"]:
            owner[p] = p
            continue
        owner[pointer] = p
        pointer += 1
        if pointer == config["sinks"] + config["window"]:
            pointer = config["sinks"]
    return sorted((p, slot) for slot, p in owner.items())


def norm(x: Array, weight: Array) -> Array:
    """Root-mean-square norm."""
    return x / math.sqrt(sum(v * v for v in x) / len(x) + 1e-6) * weight


def turn(vector: Array, position: int) -> Array:
    """Rotate one head's vector, pair by pair, as complex numbers."""
    half = len(vector) // 2
    out = np.empty_like(vector)
    for i in range(half):
        angle = position * 10_000.0 ** (-i / half)
        z = complex(vector[i], vector[i + half]) * complex(math.cos(angle), math.sin(angle))
        out[i], out[i + half] = z.real, z.imag
    return out


def step(
    weights: dict[str, Any], config: dict[str, Any], kept: list[list[Any]], token_id: int
) -> tuple[Array, list[tuple[Array, Array]]]:
    """Return the logits and each layer's new (key, value), [kv_heads, size].

    `kept[layer]` lists the (key, value) of the tokens before, oldest first, unrotated.
    """
    heads, size = config["num_heads"], config["head_size"]
    share = heads // config["num_kv_heads"]
    x = weights["embed"][token_id]
    fresh = []
    for layer, w in enumerate(weights["layers"]):
        y = norm(x, w["attn_norm"])
        key = (w["k"] @ y).reshape(-1, size)
        value = (w["v"] @ y).reshape(-1, size)
        fresh.append((key, value))
        tokens = [*kept[layer], (key, value)]
        query = (w["q"] @ y).reshape(heads, size)
        mixed = []
        for head in range(heads):
            own = turn(query[head], len(tokens) - 1)
            scores = [
                float(own @ turn(k[head // share], rank)) / math.sqrt(size)
                for rank, (k, _) in enumerate(tokens)
            ]
            top = max(scores)
            parts = [math.exp(score - top) for score in scores]
            total = math.fsum(parts)
            mixed.append(
                sum(
                    part / total * v[head // share]
                    for part, (_, v) in zip(parts, tokens, strict=True)
                )
            )
        x = x + w["o"] @ np.concatenate(mixed)
        y = norm(x, w["mlp_norm"])
        gate = w["gate"] @ y
        x = x + w["down"] @ (gate / (1 + np.exp(-gate)) * (w["up"] @ y))
    return weights["embed"] @ norm(x, weights["norm"]), fresh
