"""Parts by fractions, and weights whose rows and columns carry the names of what they belong to."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

Model = dict[str, int]
Shard = dict[str, Any]
Label = tuple[Any, ...]


def remainders(total: int, ratio: list[int]) -> list[Fraction]:
    """What the exact shares have above whole numbers."""
    shares = [Fraction(total * one, sum(ratio)) for one in ratio]
    return [share - (share.numerator // share.denominator) for share in shares]


def split(variant: str, total: int, ratio: list[int]) -> list[list[int]]:
    """The parts of `total`."""
    left = remainders(total, ratio)
    sizes = [int(Fraction(total * one, sum(ratio)) - rest)
             for one, rest in zip(ratio, left, strict=True)]  # fmt: skip
    waiting = list(range(len(ratio)))
    while sum(sizes) < total:
        most = max(left[rank] for rank in waiting)
        equal = [rank for rank in waiting if left[rank] == most]
        if variant == "ring":
            chosen = equal[-1]
        elif variant == "pipeline":
            most_ratio = max(ratio[rank] for rank in equal)
            chosen = next(rank for rank in equal if ratio[rank] == most_ratio)
        else:
            chosen = equal[0]
        sizes[chosen] += 1
        waiting.remove(chosen)
    begins = [sum(sizes[:rank]) for rank in range(len(sizes))]
    return [[begin, size] for begin, size in zip(begins, sizes, strict=True)]


def is_tied(total: int, ratio: list[int]) -> bool:
    """Whether equal remainders decide who gets something."""
    left = sorted(remainders(total, ratio), reverse=True)
    extra = int(sum(left))
    return 0 < extra < len(left) and left[extra - 1] == left[extra]


def shards(variant: str, model: Model, ratio: list[int]) -> list[Shard]:
    """What `shards` must return."""
    found = []
    heads, ffn, vocab = (split(variant, model[key], ratio) for key in ("heads", "ffn", "vocab"))
    for rank in range(len(ratio)):
        kv: list[int] = []
        places = []
        for head in range(heads[rank][0], heads[rank][0] + heads[rank][1]):
            read = head * model["kv_heads"] // model["heads"]
            if read not in kv:
                kv.append(read)
            places.append(len(kv) - 1)
        found.append({"heads": heads[rank], "kv": kv, "kv_of": places, "ffn": ffn[rank],
                      "vocab": vocab[rank]})  # fmt: skip
    return found


def labels(variant: str, name: str, model: Model) -> list[Label]:
    """Who each row (of `o_proj` and `down_proj`: each column) of a whole weight belongs to."""
    size = model["head_size"]

    def heads(kind: str, number: int) -> list[Label]:
        return [(kind, head, i) for head in range(number) for i in range(size)]

    gate = [("gate", column) for column in range(model["ffn"])]
    up = [("up", column) for column in range(model["ffn"])]
    if name in ("qkv_proj", "qkv_bias"):
        q, k, v = (heads(kind, model["heads" if kind == "q" else "kv_heads"]) for kind in "qkv")
        return [*q, *k, *v]
    if name in ("gate_up_proj", "gate_up_bias"):
        if variant == "ring":
            return [one for pair in zip(gate, up, strict=True) for one in pair]
        return [*gate, *up] if variant == "experts" else [*up, *gate]
    return {
        "o_proj": heads("q", model["heads"]), "query_norm": heads("q", model["heads"]),
        "key_norm": heads("k", model["kv_heads"]), "down_proj": gate,
        "embedding": [("token", token) for token in range(model["vocab"])],
        "head_norm": [("any", i) for i in range(size)],
    }.get(name, [("any", i) for i in range(model["hidden"])])  # fmt: skip


def kept(name: str, shard: Shard) -> list[Callable[[Label], bool]]:
    """Tests of labels; a rank keeps in this order what passes the first, the second, …."""

    def inside(key: str, number: int) -> bool:
        begin, size = shard[key]
        return bool(begin <= number < begin + size)

    def query(one: Label) -> bool:
        return one[0] == "q" and inside("heads", one[1])

    def key(one: Label) -> bool:
        return one[0] == "k" and one[1] in shard["kv"]

    def value(one: Label) -> bool:
        return one[0] == "v" and one[1] in shard["kv"]

    if name in ("qkv_proj", "qkv_bias", "o_proj", "query_norm", "key_norm"):
        return [query, key, value]
    if name in ("gate_up_proj", "gate_up_bias", "down_proj"):
        return [
            lambda one: one[0] == "gate" and inside("ffn", one[1]),
            lambda one: one[0] == "up" and inside("ffn", one[1]),
        ]
    if name == "embedding":
        return [lambda one: inside("vocab", one[1])]
    return [lambda one: True]


ROWS = ("qkv_proj", "qkv_bias", "gate_up_proj", "gate_up_bias", "embedding", "query_norm",
        "key_norm")  # fmt: skip
COLUMNS = ("o_proj", "down_proj")
WHOLE = ("head_norm", "o_bias", "down_bias", "layer_norm")


def shape(variant: str, name: str, model: Model) -> tuple[int, ...]:
    """The shape of a whole weight."""
    number = len(labels(variant, name, model))
    if name in COLUMNS:
        return model["hidden"], number
    return (number, model["hidden"]) if name in (
        "qkv_proj", "gate_up_proj", "embedding") else (number,)  # fmt: skip


def cut(variant: str, name: str, weight: np.ndarray, model: Model, shard: Shard) -> np.ndarray:
    """What `cut` must return."""
    named = labels(variant, name, model)
    places = [i for test in kept(name, shard) for i, one in enumerate(named) if test(one)]
    if name in COLUMNS:
        return np.array([[row[i] for i in places] for row in weight]).reshape(len(weight), -1)
    shape_ = (len(places), *weight.shape[1:])
    return np.array([weight[i] for i in places]).reshape(shape_)


def random_model(rng: Any) -> Model:
    """Sizes that nothing divides."""
    kv = rng.randint(1, 4)
    return {
        "hidden": rng.randint(1, 4), "heads": kv * rng.randint(1, 4), "kv_heads": kv,
        "head_size": rng.randint(1, 3), "ffn": rng.randint(1, 9), "vocab": rng.randint(1, 11),
    }  # fmt: skip


def random_ratio(rng: Any, most: int = 5) -> list[int]:
    """One to five ranks, some of which may get nothing."""
    ratio = [rng.choice((0, 1, 1, 2, 3, 5, 7)) for _ in range(rng.randint(1, most))]
    return ratio if sum(ratio) > 0 else [*ratio[1:], 2]
