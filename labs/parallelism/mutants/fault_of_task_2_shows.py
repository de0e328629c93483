# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# `project` is right; `all_reduce` is not, so of task 5 only the test on the whole notebook fails.


# %% task="ring"
# task: ring
from collections.abc import Generator

import numpy as np


def all_reduce(rank: int, x: np.ndarray, parts: list[int]) -> Generator:
    """Part p begins its way on rank p and goes up the ring, twice."""
    n = len(parts)
    if sum(parts) != len(x) or any(size < 0 for size in parts):
        raise ValueError("parts that do not add up")
    pieces = np.split(x / n, np.cumsum(parts)[:-1])
    for step in range(2 * n - 2):
        out, into = (rank - step) % n, (rank - step - 1) % n
        wishes = []
        if parts[out] > 0:
            wishes.append(Send((rank + 1) % n, pieces[out]))
        if parts[into] > 0:
            wishes.append(Receive((rank - 1) % n, (parts[into],)))
        for wish in wishes if rank % 2 == 0 else wishes[::-1]:
            answer = yield wish
            if answer is not None:
                pieces[into] = pieces[into] + answer if step < n - 1 else answer
    return np.concatenate(pieces)


# %% task="engine"
# task: engine
from collections.abc import Generator

import numpy as np


def project(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> Generator:
    """A rank's term, the sum, then the bias."""
    total = yield AllReduce(x @ weight.T)
    if bias is not None:
        total = total + bias
    return total


def norm(x: np.ndarray, weight: np.ndarray, width: int, eps: float) -> Generator:
    """The mean square of all ranks' numbers."""
    mean = (yield AllReduce(np.square(x).sum(1))) / width
    return x * weight / np.sqrt(mean + eps)[:, None]


def pick(logits: np.ndarray, begin: int) -> Generator:
    """The best of each rank, then the best of these."""
    rows = logits.tolist()
    mine = [[max(row), begin + row.index(max(row))] for row in rows if row]
    found = yield AllGather(mine)
    found = [one for one in found if one]
    return [min((-one[i][0], one[i][1]) for one in found)[1] for i in range(len(rows))]
