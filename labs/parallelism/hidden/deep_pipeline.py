"""Task 4 as a pipeline: cuts by trying all, wishes of rank 0 written down, tokens in one go."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from .driving import expect, messages, sent_by, words_of


def _cuts(layers: int, ranks: int) -> Iterator[list[int]]:
    """Sizes of runs, the fewest layers on the first ranks first."""
    if ranks == 1:
        yield [layers]
        return
    for first in range(1, layers - ranks + 2):
        for others in _cuts(layers - first, ranks - 1):
            yield [first, *others]


def stages(costs: list[int], head: int, speeds: list[int]) -> list[int]:
    """What `share` must return."""
    best, least = [], None
    for sizes in _cuts(len(costs), len(speeds)):
        begin, times = 0, []
        for rank, size in enumerate(sizes):
            cost = sum(costs[begin : begin + size])
            begin += size
            is_last = rank == len(sizes) - 1
            times.append(Fraction(cost + (head if is_last else 0), speeds[rank]))
        if least is None or max(times) < least:
            best, least = sizes, max(times)
    return best


def wishes(size: int, k: int, steps: int) -> list[str]:
    """What rank 0 sends and receives, in order."""
    found, received = [], 0
    for job in range(k * steps):
        others_are_busy = job - received >= size - 1
        while received < job and (others_are_busy or job - received >= k):
            found.append(f"R {received}")
            received += 1
            others_are_busy = job - received >= size - 1
        found.append(f"S {job}")
    return [*found, *(f"R {job}" for job in range(received, k * steps))]


def said(table: np.ndarray, layers: list[np.ndarray], first: int, steps: int) -> list[int]:
    """The tokens of one micro-batch."""
    found, token = [], first
    for _ in range(steps):
        x = table[token]
        for layer in layers:
            x = np.tanh(x @ layer)
        products = (table * x).sum(1).tolist()
        token = products.index(max(products))
        found.append(token)
    return found


def flow(
    student: Any, rng: Any, size: int, k: int, steps: int, because: str = "", ties: bool = False,
    vocab: int = 0,
) -> None:  # fmt: skip
    """Run `work`, judge the tokens and the order of everything that is sent."""
    width, vocab = rng.randint(2, 5), vocab or rng.randint(2, 9)
    numbers = np.random.default_rng(rng.randrange(10**6))
    while True:
        table = numbers.normal(size=(vocab, width))
        if ties:
            table = np.concatenate([table, table])
        layers = [numbers.normal(size=(width, width)) for _ in range(size)]
        tokens = [rng.randrange(len(table)) for _ in range(k)]
        want = [said(table, layers, token, steps) for token in tokens]
        if _is_clear(table, layers, tokens, want):
            break
    calls = [
        (rank, size, layers[rank], table, tokens if rank == 0 else [10**6] * k, steps)
        for rank in range(size)
    ]
    events = expect(student, "work", calls, [want, *[None] * (size - 1)], because)
    sent = messages(student, events, words_of(student, "work", calls))
    if size > 1:
        got, counts = [], {"S": 0, "R": 0}
        for source, to, _ in sent:
            if 0 in (source, to):
                kind = "S" if source == 0 else "R"
                got.append(f"{kind} {counts[kind]}")
                counts[kind] += 1
        words = f"{words_of(student, 'work', calls)}, the order of rank 0"
        student.compare(words, got, wishes(size, k, steps), because=because)
        _messages(student, sent, table, layers, tokens, want, words_of(student, "work", calls))
    elif events:
        student.fail(f"called {words_of(student, 'work', calls)}\nexpected nothing to be sent\n"
                     f"got {len(events)} messages")  # fmt: skip


def _is_clear(
    table: np.ndarray, layers: list[np.ndarray], tokens: list[int], want: list[list[int]]
) -> bool:
    """Whether no product is so close to the largest one that rounding could decide."""
    for first, own in zip(tokens, want, strict=True):
        for token in [first, *own[:-1]]:
            x = table[token]
            for layer in layers:
                x = np.tanh(x @ layer)
            products = np.unique(np.round(table @ x, 12))
            if len(products) > 1 and products[-1] - products[-2] < 1e-6:
                return False
    return True


def _messages(
    student: Any, sent: Any, table: np.ndarray, layers: list[np.ndarray], tokens: list[int],
    want: list[list[int]], words: str,
) -> None:  # fmt: skip
    """What each rank sends, job by job."""
    size, k = len(layers), len(tokens)
    for rank in range(size):
        expected = []
        for job in range(k * len(want[0])):
            step, batch = divmod(job, k)
            x = table[want[batch][step - 1] if step else tokens[batch]]
            for layer in layers[: rank + 1]:
                x = np.tanh(x @ layer)
            out = np.array([want[batch][step]]) if rank == size - 1 else x
            expected.append([(rank + 1) % size, out])
        got = sent_by(sent, rank)
        student.compare(f"{words}, what rank {rank} sends", got, expected, 1e-9)


def shares(student: Any, rng: Any) -> None:
    """Random costs and speeds, equal ones, a heavy head."""
    for _ in range(2):
        ranks = rng.randint(1, 4)
        costs = [rng.randint(1, 9) for _ in range(rng.randint(ranks, 10))]
        speeds, head = [rng.randint(1, 5) for _ in range(ranks)], rng.choice((0, 3, 11))
        student.expect("share", costs, head, speeds, want=stages(costs, head, speeds))
        costs = [3] * len(costs)
        student.expect("share", costs, head, speeds, want=stages(costs, head, speeds))
    speeds = [3, 7, 11]
    costs = [rng.randint(1, 4) * 77 for _ in range(8)]
    want = stages(costs, 0, speeds)
    student.expect("share", costs, 0, speeds, want=want, because="thirds, sevenths, elevenths")
    big = 10**17  # a float does not know it from the next number
    for costs, want in (([big, 1, big + 1], [2, 1]), ([big + 1, 1, big], [1, 2])):
        student.expect("share", costs, 0, [1, 1], want=want, because="one more than 10 ** 17")


def exchange(student: Any, rng: Any) -> None:
    """Two to five ranks, fewer and more micro-batches than ranks."""
    size = rng.choice((2, 3, 3, 4, 5))
    for k in rng.sample((1, size - 1, size, size + 1, size + 2), 2):
        flow(student, rng, size, k, rng.randint(1, 3), f"{size} ranks, {k} micro-batches")


def result(student: Any, rng: Any) -> None:
    """Tokens of several steps; equal rows of the table."""
    flow(student, rng, rng.randint(2, 4), rng.randint(1, 4), rng.randint(2, 4))
    flow(student, rng, 2, 2, 2, "each row of the table twice: the smaller number", ties=True)
    flow(student, rng, 2, 2, 2, "more tokens than 16 bits can tell", vocab=4_099)


def edges(student: Any, rng: Any) -> None:
    """One rank, one micro-batch, one step, many micro-batches; as many layers as ranks."""
    flow(student, rng, 1, rng.randint(1, 4), 3, "a single rank sends nothing")
    many = rng.choice(((4, 1, 1), (2, 6, 2), (5, 2, 2), (3, 1, 3), (2, 2, 1)))
    flow(student, rng, *many, f"{many[0]} ranks, {many[1]} micro-batches")
    student.expect("share", [5, 1, 1], 2, [1, 1, 1], want=[1, 1, 1], because="a layer each")
    for layers, ranks in ((1, 2), (3, 4), (0, 1)):
        why = f"{layers} layers for {ranks} ranks"
        student.refuses("share", [1] * layers, 0, [1] * ranks, because=why)
