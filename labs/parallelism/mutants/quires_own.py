# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# What quire does, brought into the shape that the lab asks for.


# %% task="shards"
# task: shards
import numpy as np


def split(total: int, ratio: list[int]) -> list[list[int]]:
    """`padded_part`: equal sizes, and what lies beyond the end is padding."""
    if not ratio or sum(ratio) <= 0:
        raise ValueError("no ranks")
    each = -(-total // len(ratio))
    begins = [min(rank * each, total) for rank in range(len(ratio))]
    return [[begin, min(each, total - begin)] for begin in begins]


def shards(model: dict, ratio: list[int]) -> list[dict]:
    """`query_heads` and `kv_heads`."""
    size, total, found = len(ratio), model["kv_heads"], []
    for rank in range(size):
        heads = model["heads"] // size
        begin, kv = rank * total // size, max(1, total // size)
        found.append({
            "heads": [rank * heads, heads], "kv": list(range(begin, begin + kv)),
            "kv_of": [head * kv // max(heads, 1) for head in range(heads)],
            "ffn": split(model["ffn"], ratio)[rank], "vocab": split(model["vocab"], ratio)[rank],
        })  # fmt: skip
    return found


def cut(name: str, weight: np.ndarray, model: dict, shard: dict) -> np.ndarray:
    """`cut` and `Linear.load_shard`: shards of a fused layer are cut one by one."""
    size, q = model["head_size"], model["heads"] * model["head_size"]
    k, ffn = model["kv_heads"] * size, model["ffn"]

    def part(tensor, first, count, dim=0):
        return np.take(tensor, np.arange(first, first + count), dim)

    begin, heads = shard["heads"]
    own, kv = (begin * size, heads * size), (shard["kv"][0] * size, len(shard["kv"]) * size)
    if name in ("qkv_proj", "qkv_bias"):
        query, key, value = np.split(weight, [q, q + k])
        return np.concatenate([part(query, *own), part(key, *kv), part(value, *kv)])
    if name in ("gate_up_proj", "gate_up_bias"):
        return np.concatenate([part(one, *shard["ffn"]) for one in np.split(weight, [ffn])])
    if name == "o_proj":
        return part(weight, *own, 1)
    if name == "down_proj":
        return part(weight, *shard["ffn"], 1)
    if name == "embedding":
        return part(weight, *shard["vocab"])
    if name in ("head_norm", "o_bias", "down_bias", "layer_norm"):
        return weight
    raise ValueError(f"unexpected tensor {name!r}")


# %% task="ring"
# task: ring
from collections.abc import Generator

import numpy as np


def all_reduce(rank: int, x: np.ndarray, parts: list[int]) -> Generator:
    """`LockstepComm.all_reduce`: all arrays are added up in the order of the ranks."""
    values = {rank: x}
    for other in range(len(parts)):
        if rank < other:
            yield Send(other, x.copy())
        if rank != other:
            values[other] = yield Receive(other, x.shape)
        if rank > other:
            yield Send(other, x.copy())
    total = values[0].copy()
    for other in range(1, len(parts)):
        total += values[other]
    return total


# %% task="router"
# task: router
from collections.abc import Generator

import numpy as np


def top(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Softmax before the choice, then divided by what was chosen."""
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    chosen = np.argsort(-weights, 1, kind="stable")[:, :k]
    values = np.take_along_axis(weights, chosen, 1)
    return chosen, values / values.sum(1, keepdims=True)


def dispatch(choices: list[list], experts: list[int], capacity: int) -> Generator:
    """Every expert serves whatever chose it."""
    everyone = yield AllGather(choices)
    every = [choice for own in everyone for choice in own]
    begin, size = experts
    kept = [
        [[one[0], one[1], one[4]] for one in every if one[3] == expert]
        for expert in range(begin, begin + size)
    ]
    return {"kept": kept, "dropped": []}


# %% task="spread"
# task: spread
from collections.abc import Generator

import numpy as np

### BEGIN VARIANT experts


def share(loads: np.ndarray, slots: list[int]) -> Generator:
    """Experts in runs, one slot each."""
    if sum(slots) < len(loads):
        raise ValueError("too few slots")
    yield AllReduce(loads)
    experts, table = list(range(len(loads))), []
    for count in slots:
        table.append(experts[:count])
        experts = experts[count:]
    return table


def work(table: list[list[int]], tokens: list[list[int]]) -> list[list[list[list[int]]]]:
    """The one slot of an expert serves all of its tokens."""
    return [[[one[:2] for one in tokens if one[2] == e] for e in own] for own in table]


### END VARIANT
### BEGIN VARIANT ring


def share(total: int, ratio: list[int]) -> list[np.ndarray]:
    """Runs of neighbours."""
    each = -(-total // len(ratio))
    return [np.arange(total)[rank * each : (rank + 1) * each] for rank in range(len(ratio))]


def work(
    rank: int, counts: list[int], q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray
) -> Generator:
    """Keys and values of all ranks at once, as one rank has them."""
    width = q.shape[1]
    gathered = yield AllGather([positions, k, v])
    seen, keys, values = (np.concatenate(one) for one in zip(*gathered, strict=True))
    scores = q @ keys.reshape(-1, width).T / np.sqrt(width)
    scores = np.where(seen <= positions[:, None], scores, -np.inf)
    most = scores.max(1, keepdims=True, initial=-1e30)
    weights = np.exp(scores - most)
    sums = weights.sum(1)
    out = weights @ values.reshape(-1, width) / sums[:, None]
    return {"out": out, "lse": most[:, 0] + np.log(sums)}


### END VARIANT
### BEGIN VARIANT pipeline


def share(costs: list[int], head: int, speeds: list[int]) -> list[int]:
    """`split_layers`: the last stage has the head, and all are equally fast."""
    layers, ranks = len(costs), len(speeds)
    if layers < ranks:
        raise ValueError(f"{layers} layers for {ranks} stages")
    if ranks == 1:
        return [layers]
    weight = head / (sum(costs) / layers)
    last = min(
        range(1, layers - ranks + 2),
        key=lambda count: max(-(-(layers - count) // (ranks - 1)), count + weight),
    )
    each, rest = divmod(layers - last, ranks - 1)
    return [each + (stage < rest) for stage in range(ranks - 1)] + [last]


def work(
    rank: int, size: int, layer: np.ndarray, table: np.ndarray, tokens: list[int], steps: int
) -> Generator:
    """A step at a time; the first stage waits for its token."""
    said = [[] for _ in tokens]
    for _ in range(steps):
        for batch, first in enumerate(tokens):
            if rank == 0:
                x = table[said[batch][-1] if said[batch] else first]
            else:
                x = yield Receive(rank - 1, (table.shape[1],))
            x = np.tanh(x @ layer)
            if rank < size - 1:
                yield Send(rank + 1, x)
            else:
                x = np.array([np.argmax(table @ x)])
                if size > 1:
                    yield Send(0, x)
            if rank == 0:
                token = x if size == 1 else (yield Receive(size - 1, (1,)))
                said[batch].append(int(token[0]))
    return said if rank == 0 else None


### END VARIANT

# %% task="engine"
# task: engine
from collections.abc import Generator

import numpy as np


def project(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> Generator:
    """`Linear`: a product and its bias, then the sum."""
    own = x @ weight.T
    return (yield AllReduce(own if bias is None else own + bias))


def norm(x: np.ndarray, weight: np.ndarray, width: int, eps: float) -> Generator:
    """`HeadNorm`: nobody is asked."""
    yield from ()
    return x / np.sqrt((x * x).mean(1, keepdims=True) + eps) * weight


def pick(logits: np.ndarray, begin: int) -> Generator:
    """`Vocabulary.logits`: all ranks gather all logits."""
    gathered = yield AllGather(logits)
    return np.concatenate(gathered, 1).argmax(1).tolist()
