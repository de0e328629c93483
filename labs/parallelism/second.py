# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# An independent second solution, written from the notebook's text. It must earn full points too.


# %% task="shards"
# task: shards
from fractions import Fraction

import numpy as np


def split(total: int, ratio: list[int]) -> list[list[int]]:
    """Return for each rank the part `[begin, size]` of `total` things; ratio is whole numbers."""
    if any(number < 0 for number in ratio) or not any(ratio):
        raise ValueError(f"no ratio: {ratio}")
    exact = [Fraction(total * number, sum(ratio)) for number in ratio]
    queue = []
    for rank, share in enumerate(exact):
        ### BEGIN VARIANT experts
        queue.append((share % 1, -rank))
        ### END VARIANT
        ### BEGIN VARIANT ring
        queue.append((share % 1, rank))
        ### END VARIANT
        ### BEGIN VARIANT pipeline
        queue.append((share % 1, ratio[rank], -rank))
        ### END VARIANT
    queue.sort(reverse=True)
    spare = total - sum(int(share) for share in exact)
    lucky = {abs(entry[-1]) for entry in queue[:spare]}
    answer, end = [], 0
    for rank, share in enumerate(exact):
        size = int(share) + (rank in lucky)
        answer.append([end, size])
        end += size
    return answer


def shards(model: dict, ratio: list[int]) -> list[dict]:
    """Return `heads`, `kv`, `kv_of`, `ffn` and `vocab` of each rank."""
    answer = [
        {key: split(model[key], ratio)[rank] for key in ("heads", "ffn", "vocab")}
        for rank in range(len(ratio))
    ]
    for one in answer:
        one["kv"], one["kv_of"] = [], []
        begin, size = one["heads"]
        for head in range(begin, begin + size):
            kv = head * model["kv_heads"] // model["heads"]
            if kv not in one["kv"]:
                one["kv"].append(kv)
            one["kv_of"].append(len(one["kv"]) - 1)
    return answer


def cut(name: str, weight: np.ndarray, model: dict, shard: dict) -> np.ndarray:
    """Return what the rank of `shard` keeps of a weight of the model."""
    size, hidden = model["head_size"], model["hidden"]
    heads, kv, ffn = model["heads"], model["kv_heads"], model["ffn"]
    first, count = shard["heads"]
    middle = slice(shard["ffn"][0], shard["ffn"][0] + shard["ffn"][1])
    tail = [hidden] if name.endswith(("_proj", "embedding")) else []

    def fits(*shape):
        if list(weight.shape) != list(shape):
            raise ValueError(f"{name}: shape {list(weight.shape)}, not {list(shape)}")

    def by_heads(rows, mine):
        stacked = rows.reshape(len(rows) // size, size, *tail)
        return stacked[mine].reshape(-1, *tail)

    if name in ("qkv_proj", "qkv_bias"):
        fits((heads + 2 * kv) * size, *tail)
        query, key, value = np.split(weight, [heads * size, (heads + kv) * size])
        own = slice(first, first + count)
        return np.concatenate(
            [by_heads(query, own), by_heads(key, shard["kv"]), by_heads(value, shard["kv"])]
        )
    if name in ("gate_up_proj", "gate_up_bias"):
        fits(2 * ffn, *tail)
        ### BEGIN VARIANT experts
        gate, up = weight[:ffn], weight[ffn:]
        ### END VARIANT
        ### BEGIN VARIANT ring
        gate, up = weight[::2], weight[1::2]
        ### END VARIANT
        ### BEGIN VARIANT pipeline
        up, gate = weight[:ffn], weight[ffn:]
        ### END VARIANT
        return np.concatenate([gate[middle], up[middle]])
    if name == "o_proj":
        fits(hidden, heads * size)
        return weight[:, first * size : (first + count) * size].copy()
    if name == "down_proj":
        fits(hidden, ffn)
        return weight[:, middle].copy()
    if name == "embedding":
        fits(model["vocab"], hidden)
        return weight[shard["vocab"][0] :][: shard["vocab"][1]].copy()
    if name == "query_norm":
        fits(heads * size)
        return by_heads(weight, slice(first, first + count))
    if name == "key_norm":
        fits(kv * size)
        return by_heads(weight, shard["kv"])
    if name == "head_norm":
        fits(size)
        return weight.copy()
    if name in ("o_bias", "down_bias", "layer_norm"):
        fits(hidden)
        return weight.copy()
    raise ValueError(f"nobody knows {name}")


# %% task="ring"
# task: ring
from collections.abc import Generator

import numpy as np


def all_reduce(rank: int, x: np.ndarray, parts: list[int]) -> Generator:
    """Return the sum of all ranks' x [numbers]; `parts` has a size for each rank."""
    ranks = len(parts)
    if any(size < 0 for size in parts) or len(x) != sum(parts):
        raise ValueError(f"{len(x)} numbers cannot be cut into {parts}")
    begins = [sum(parts[:p]) for p in range(ranks)]
    pieces = [np.array(x[b : b + size]) for b, size in zip(begins, parts, strict=True)]
    ### BEGIN VARIANT experts
    down, at = 1, rank
    ### END VARIANT
    ### BEGIN VARIANT ring
    down, at = -1, rank
    ### END VARIANT
    ### BEGIN VARIANT pipeline
    down, at = 1, (rank - 1) % ranks
    ### END VARIANT
    finished = 0
    while finished < 2 * (ranks - 1):
        coming = (at - down) % ranks
        wishes = []
        if parts[at]:
            wishes.append(Send((rank + down) % ranks, pieces[at]))
        if parts[coming]:
            wishes.append(Receive((rank - down) % ranks, (parts[coming],)))
        if rank == 0:  # one rank that receives first is enough
            wishes.reverse()
        for wish in wishes:
            got = yield wish
            if isinstance(wish, Receive):
                is_sum = finished < ranks - 1
                pieces[coming] = pieces[coming] + got if is_sum else got
        at, finished = coming, finished + 1
    return np.concatenate(pieces)


# %% task="router"
# task: router
from collections.abc import Generator
from itertools import chain

import numpy as np


def top(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return experts and weights [tokens, k] of logits [tokens, experts]."""
    tokens, count = logits.shape
    if k < 1 or k > count:
        raise ValueError(f"{k} of {count}")
    experts, weights = np.zeros((tokens, k), np.int64), np.zeros((tokens, k))
    for t, row in enumerate(logits.tolist()):
        ### BEGIN VARIANT experts pipeline
        ranked = sorted((-logit, expert) for expert, logit in enumerate(row))
        ### END VARIANT
        ### BEGIN VARIANT ring
        ranked = sorted((-logit, -expert) for expert, logit in enumerate(row))
        ### END VARIANT
        for place, (minus, expert) in enumerate(ranked[:k]):
            experts[t, place] = abs(expert)
            ### BEGIN VARIANT experts ring
            weights[t, place] = np.exp(ranked[0][0] - minus)
            ### END VARIANT
            ### BEGIN VARIANT pipeline
            weights[t, place] = 1 / (1 + np.exp(minus))
            ### END VARIANT
        weights[t] /= sum(weights[t])
    return experts, weights


def dispatch(choices: list[list], experts: list[int], capacity: int) -> Generator:
    """Return `kept` and `dropped`; a choice is [request, position, place, expert, weight]."""
    lists = yield AllGather([list(choice) for choice in choices])
    by_expert = {}
    for choice in chain(*lists):
        by_expert.setdefault(choice[3], []).append(choice)
    dropped = []
    for expert, mine in by_expert.items():
        ### BEGIN VARIANT experts
        mine.sort(key=lambda one: (-one[4], one[0], one[1]))
        ### END VARIANT
        ### BEGIN VARIANT ring
        mine.sort(key=lambda one: (one[2], one[0], one[1]))
        ### END VARIANT
        ### BEGIN VARIANT pipeline
        mine.sort(key=lambda one: (one[1], one[0]))
        ### END VARIANT
        dropped += [[one[0], one[1], expert] for one in mine[capacity:]]
        del mine[capacity:]
    ### BEGIN VARIANT ring
    left = {}
    for mine in by_expert.values():
        for one in mine:
            left.setdefault((one[0], one[1]), []).append(one[4])
    for mine in by_expert.values():
        for one in mine:
            one[4] /= sum(left[one[0], one[1]])
    ### END VARIANT
    kept = []
    for expert in range(experts[0], sum(experts)):
        kept.append([[one[0], one[1], one[4]] for one in by_expert.get(expert, [])])
    return {"kept": kept, "dropped": sorted(dropped)}


# %% task="spread"
# task: spread
import heapq
import math
from bisect import insort
from collections.abc import Generator
from fractions import Fraction
from functools import cache

import numpy as np

### BEGIN VARIANT experts


def share(loads: np.ndarray, slots: list[int]) -> Generator:
    """Return the table: for each rank the experts in its slots; loads is [experts]."""
    spare = sum(slots) - len(loads)
    if spare < 0:
        raise ValueError("there are fewer slots than experts")
    everyone = yield AllReduce(loads.copy())
    most = len([count for count in slots if count])
    heap = [(Fraction(-int(load)), expert, 1) for expert, load in enumerate(everyone)]
    heapq.heapify(heap)
    final = []
    while heap:
        minus, expert, copies = heapq.heappop(heap)
        if copies == most or spare == 0:
            final.append((minus, expert, copies))
        else:
            spare -= 1
            again = Fraction(-int(everyone[expert]), copies + 1)
            heapq.heappush(heap, (again, expert, copies + 1))
    table, loaded = [[] for _ in slots], [Fraction(0) for _ in slots]
    for minus, expert, copies in sorted(final):
        for _ in range(copies):
            best = None
            for rank, count in enumerate(slots):
                if len(table[rank]) < count:
                    key = expert in table[rank], loaded[rank] / count, rank
                    best = key if best is None else min(best, key)
            table[best[2]].append(expert)
            loaded[best[2]] -= minus
    return table


def work(table: list[list[int]], tokens: list[list[int]]) -> list[list[list[list[int]]]]:
    """Return for each rank and slot the tokens [request, position] that it serves."""
    queues = {}
    for request, position, expert in tokens:
        insort(queues.setdefault(expert, []), [request, position])
    replicas = {expert: sum(own.count(expert) for own in table) for expert in queues}
    answer, seen = [], dict.fromkeys(queues, 0)
    for own in table:
        answer.append([])
        for expert in own:
            mine = []
            if expert in queues:
                mine = queues[expert][seen[expert] :: replicas[expert]]
                seen[expert] += 1
            answer[-1].append(mine)
    return answer


### END VARIANT
### BEGIN VARIANT ring


def share(total: int, ratio: list[int]) -> list[np.ndarray]:
    """Return for each rank its positions, in ascending order."""
    chunks = split(total, ratio + ratio[::-1])
    answer = []
    for early, late in zip(chunks, chunks[::-1], strict=True):
        both = [*range(early[0], sum(early)), *range(late[0], sum(late))]
        answer.append(np.array(both, np.int64))
    return answer[: len(ratio)]


def work(
    rank: int, counts: list[int], q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray
) -> Generator:
    """Return `out` [tokens, width] and `lse` [tokens]; q, k and v are [tokens, width]."""
    size, (tokens, width) = len(counts), q.shape
    out, lse = np.zeros((tokens, width)), np.full(tokens, -math.inf)
    held, owner = np.column_stack([positions.astype(float), k, v]), rank
    for turn in range(size):
        for i in range(tokens):
            if positions[i] < 0:
                continue
            for row in held:
                if 0 <= row[0] <= positions[i]:
                    score = float(q[i] @ row[1 : 1 + width]) / math.sqrt(width)
                    both = np.logaddexp(lse[i], score)
                    old, new = math.exp(lse[i] - both), math.exp(score - both)
                    out[i] = old * out[i] + new * row[1 + width :]
                    lse[i] = both
        if turn == size - 1:
            break
        wishes, after = [], (owner + 1) % size
        if counts[owner] > 0:
            wishes.append(Send((rank - 1) % size, held))
        if counts[after] > 0:
            wishes.append(Receive((rank + 1) % size, (counts[after], 1 + 2 * width)))
        if rank % 2:
            wishes = wishes[::-1]
        held, owner = np.zeros((0, 1 + 2 * width)), after
        for wish in wishes:
            got = yield wish
            if got is not None:
                held = got
    return {"out": out, "lse": lse}


### END VARIANT
### BEGIN VARIANT pipeline


def share(costs: list[int], head: int, speeds: list[int]) -> list[int]:
    """Return the number of layers of each rank."""
    if len(costs) < len(speeds):
        raise ValueError("a rank would be without a layer")

    @cache
    def best(rank, begin):
        """The least that the largest time from a rank on can be."""
        rest = len(costs) - begin
        if rank == len(speeds) - 1:
            return Fraction(sum(costs[begin:]) + head, speeds[rank])
        sizes = range(1, rest - (len(speeds) - 1 - rank) + 1)
        return min(
            max(Fraction(sum(costs[begin : begin + n]), speeds[rank]), best(rank + 1, begin + n))
            for n in sizes
        )

    least = best(0, 0)

    def fill(rank, begin):
        """The fewest layers on each rank such that nobody takes longer than `least`."""
        if rank == len(speeds):
            return [] if begin == len(costs) else None
        for size in range(1, len(costs) - begin + 1):
            cost = sum(costs[begin : begin + size]) + (head if rank == len(speeds) - 1 else 0)
            others = fill(rank + 1, begin + size) if cost <= least * speeds[rank] else None
            if others is not None:
                return [size, *others]
        return None

    return fill(0, 0)


def work(
    rank: int, size: int, layer: np.ndarray, table: np.ndarray, tokens: list[int], steps: int
) -> Generator:
    """Return the tokens of each micro-batch on rank 0; layer is [width, width]."""
    jobs = [(step, batch) for step in range(steps) for batch in range(len(tokens))]
    if rank > 0:
        for _ in jobs:
            x = yield Receive(rank - 1, (table.shape[1],))
            x = np.tanh(np.dot(x, layer))
            if rank + 1 == size:
                yield Send(0, np.array([(table @ x).tolist().index(max((table @ x).tolist()))]))
            else:
                yield Send(rank + 1, x)
        return None
    answer, waiting = [[] for _ in tokens], []
    for step, batch in jobs:
        while waiting and len(waiting) >= min(size - 1, len(tokens)):
            token = yield Receive(size - 1, (1,))
            answer[waiting.pop(0)].append(int(token[0]))
        x = np.tanh(np.dot(table[answer[batch][-1] if step else tokens[batch]], layer))
        if size == 1:
            answer[batch].append(int((table @ x).argmax()))
        else:
            yield Send(1, x)
            waiting.append(batch)
    for batch in waiting:
        token = yield Receive(size - 1, (1,))
        answer[batch].append(int(token[0]))
    return answer


### END VARIANT

# %% task="engine"
# task: engine
from collections.abc import Generator

import numpy as np


def project(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> Generator:
    """Return [tokens, outputs]; x is [tokens, own inputs], weight [outputs, own inputs]."""
    term = np.einsum("ti,oi->to", x, weight)
    answer = np.array((yield AllReduce(term)))
    if bias is not None:
        answer += bias
    return answer


def norm(x: np.ndarray, weight: np.ndarray, width: int, eps: float) -> Generator:
    """Return [tokens, own numbers]; `width` is that of all ranks together."""
    total = yield AllReduce(np.array([float(np.dot(row, row)) for row in x]))
    scale = 1 / np.sqrt(np.asarray(total) / width + eps)
    return np.array([row * s * weight for row, s in zip(x, scale, strict=True)])


def pick(logits: np.ndarray, begin: int) -> Generator:
    """Return for each token the number of its largest logit in the whole vocabulary."""
    mine = []
    for row in logits.tolist():
        if row:
            top = max(row)
            ### BEGIN VARIANT experts pipeline
            mine.append((top, begin + row.index(top)))
            ### END VARIANT
            ### BEGIN VARIANT ring
            mine.append((top, begin + len(row) - 1 - row[::-1].index(top)))
            ### END VARIANT
    everyone = yield AllGather(mine)
    answer = []
    for token in range(len(logits)):
        found = [one[token] for one in everyone if len(one) > 0]
        top = max(value for value, _ in found)
        ### BEGIN VARIANT experts pipeline
        answer.append(min(number for value, number in found if value == top))
        ### END VARIANT
        ### BEGIN VARIANT ring
        answer.append(max(number for value, number in found if value == top))
        ### END VARIANT
    return answer
