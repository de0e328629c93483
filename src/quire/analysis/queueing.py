"""A discrete-event model of a server under load: who is scheduled when, and what users see.

Requests arrive at given times. A *server* decides each step's work; the clock moves on by
what a step of that size and that context takes, by a measurement. `SchedulerModel` makes the
decisions of quire's own scheduler in forty lines of counting, so that a thousand requests
take milliseconds; the engine itself can stand in its place (`quire.bench.replay`), and a test
holds the two equal step by step. Nothing is random here: the same arrivals give the same run.

The cache is taken to be large enough, so nobody is preempted. The explorable "Load" runs
these very formulas in the browser. See the chapter "Batching".
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from quire.analysis.step_time import Entry


@dataclass(frozen=True)
class Arrival:
    """A request as the outside sees it; its output has exactly `output_tokens` tokens."""

    time: float  # seconds
    prompt_tokens: int
    output_tokens: int
    client: str = ""
    priority: int = 0


def poisson_arrivals(
    count: int, lengths: Sequence[tuple[int, int]], seed: int = 0
) -> list[Arrival]:
    """Return requests with independent exponential gaps, one a second on average.

    `lengths` are (prompt, output) pairs, drawn uniformly. `at_rate` sets another rate, which
    leaves lengths and order as they are: two rates then differ in nothing but the rate.
    """
    generator, time, arrivals = random.Random(seed), 0.0, []
    for _ in range(count):
        time += generator.expovariate(1.0)
        prompt_tokens, output_tokens = generator.choice(lengths)
        arrivals.append(Arrival(time, prompt_tokens, output_tokens))
    return arrivals


def at_rate(arrivals: Iterable[Arrival], rate: float) -> list[Arrival]:
    """Return unit-rate arrivals at `rate` requests a second."""
    return [replace(arrival, time=arrival.time / rate) for arrival in arrivals]


@dataclass(frozen=True)
class Gate:
    """When requests that have arrived are let through to the server.

    "continuous": at once. "static": when the server is empty and `batch` requests wait, or no
    more will come. "dynamic": when it is empty and `batch` wait or the first has waited
    `window` seconds. Beyond `batch`, requests wait for the next opening.
    """

    kind: str = "continuous"
    batch: int = 1
    window: float = 0.0

    def opens(self, num_held: int, expiry: float, clock: float, more: bool) -> int:
        """Return how many held requests go through while the server is empty."""
        if num_held < self.batch and more and (self.kind == "static" or clock < expiry):
            return 0
        return min(num_held, self.batch)


class Server(Protocol):
    """What decides: the model below, or the engine."""

    def add(self, index: int, arrival: Arrival) -> None:
        """Take request `index`."""
        ...

    def step(self) -> list[Entry]:
        """Compute a step and return what it held, in order; nothing when there is no work."""
        ...


class Clock(Protocol):
    """What a step takes: `StepTime`, by a measurement, or a model of it."""

    def seconds(self, entries: Sequence[Entry]) -> float:
        """Return the seconds of a step with these entries."""
        ...


@dataclass(frozen=True)
class Step:
    """One step of a run."""

    begin: float
    end: float
    entries: tuple[Entry, ...]
    num_waiting: int  # requests that have arrived and have had no position computed


@dataclass(frozen=True)
class Run:
    """What happened: the steps, and when each request's tokens were known, in seconds."""

    arrivals: list[Arrival]
    steps: list[Step]
    token_times: list[list[float]]

    def ttft(self, index: int) -> float:
        """Time to first token."""
        return self.token_times[index][0] - self.arrivals[index].time

    def tpot(self, index: int) -> float:
        """Mean time per output token after the first; 0 for a single token."""
        times = self.token_times[index]
        return (times[-1] - times[0]) / max(len(times) - 1, 1)

    def latency(self, index: int) -> float:
        """From arrival to the last token."""
        return self.token_times[index][-1] - self.arrivals[index].time

    def inter_token_latencies(self) -> list[float]:
        """All gaps between successive tokens of one request."""
        return [b - a for times in self.token_times for a, b in pairwise(times)]

    @property
    def seconds(self) -> float:
        """From the first arrival to the last token."""
        return max(times[-1] for times in self.token_times) - self.arrivals[0].time

    @property
    def output_tokens_per_second(self) -> float:
        """Throughput."""
        return sum(len(times) for times in self.token_times) / self.seconds

    def attainment(self, ttft: float, tpot: float) -> float:
        """Share of the requests that met both targets."""
        return self._num_met(ttft, tpot) / len(self.arrivals)

    def goodput(self, ttft: float, tpot: float) -> float:
        """Requests a second that met both targets [zhong2024distserve]."""
        return self._num_met(ttft, tpot) / self.seconds

    def _num_met(self, ttft: float, tpot: float) -> int:
        indices = range(len(self.arrivals))
        return sum(self.ttft(i) <= ttft and self.tpot(i) <= tpot for i in indices)

    def mean_in_system(self) -> float:
        """Return the time average of the requests that have arrived and not ended.

        Counted at every change, not from latencies, so that Little's law can be put to it.
        """
        changes = [(arrival.time, 1) for arrival in self.arrivals]
        changes += [(times[-1], -1) for times in self.token_times]
        area, present, last = 0.0, 0, 0.0
        for time, change in sorted(changes):
            area += present * (time - last)
            present, last = present + change, time
        return area / self.seconds


def percentile(values: Iterable[float], share: float) -> float:
    """Return the least value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


CONTINUOUS = Gate()


def serve(
    arrivals: list[Arrival],
    server: Server,
    step_time: Clock,
    gate: Gate = CONTINUOUS,
    *,
    overlap: bool = False,
) -> Run:
    """Run until every request has its tokens. `arrivals` are in order of time.

    With `overlap` a step is chosen while the one before it runs: who arrives meanwhile is not in
    it, unless the server was empty.
    """
    clock = 0.0
    steps: list[Step] = []
    coming, held = deque(range(len(arrivals))), deque[int]()
    token_times: list[list[float]] = [[] for _ in arrivals]
    begun: set[int] = set()
    num_inside = num_arrived = 0
    while coming or held or num_inside:
        known = steps[-1].begin if overlap and num_inside else clock
        while coming and arrivals[coming[0]].time <= known:
            held.append(coming.popleft())
            num_arrived += 1
        num_through = len(held)
        expiry = arrivals[held[0]].time + gate.window if held else math.inf
        if gate.kind != "continuous":
            num_through = 0 if num_inside else gate.opens(len(held), expiry, clock, bool(coming))
        for _ in range(num_through):
            index = held.popleft()
            server.add(index, arrivals[index])
            num_inside += 1
        if not num_inside:
            arriving = arrivals[coming[0]].time if coming else math.inf
            clock = min(arriving, expiry) if gate.kind == "dynamic" else arriving
            continue
        entries = tuple(server.step())
        begun.update(index for index, _, _ in entries)
        begin, clock = clock, clock + step_time.seconds(entries)
        steps.append(Step(begin, clock, entries, num_arrived - len(begun)))
        for index, start, count in entries:
            arrival, times = arrivals[index], token_times[index]
            if start + count == arrival.prompt_tokens + len(times):  # no position is behind
                times.append(clock)
                num_inside -= len(times) == arrival.output_tokens
    return Run(arrivals, steps, token_times)


@dataclass
class _Tracked:
    index: int
    arrival: Arrival
    num_tokens: int  # prompt and output so far
    num_computed: int = 0


class SchedulerModel:
    """The decisions of `TokenBudgetScheduler` where the cache has room, without an engine."""

    def __init__(
        self, max_num_seqs: int, max_num_batched_tokens: int, policy: str = "fcfs"
    ) -> None:
        """`policy` is a name of `quire.policy.POLICIES`."""
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._policy = policy
        self._waiting: list[_Tracked] = []  # in order of arrival
        self._running: list[_Tracked] = []  # in order of admission
        self._served: dict[str, int] = {}  # positions computed, by client
        self._last_left = 0  # positions of the client that left last

    def add(self, index: int, arrival: Arrival) -> None:
        """Queue a request; a client who was away starts level with those present.

        Where nobody is present, it starts at the count of the client that left last.
        """
        present = self._clients()
        if arrival.client not in present:
            level = min((self._served[client] for client in present), default=self._last_left)
            self._served[arrival.client] = max(self._served.get(arrival.client, 0), level)
        self._waiting.append(_Tracked(index, arrival, arrival.prompt_tokens))

    def step(self) -> list[Entry]:
        """Let the running catch up, then admit while seats and budget last."""
        budget, entries = self._max_num_batched_tokens, []
        for tracked in self._running:
            count = min(tracked.num_tokens - tracked.num_computed, budget)
            if count > 0:
                entries.append((tracked, count))
                budget -= count
        while self._waiting and len(self._running) < self._max_num_seqs and budget > 0:
            tracked = min(self._waiting, key=self._rank)  # among equals the first
            self._waiting.remove(tracked)
            self._running.append(tracked)
            count = min(tracked.num_tokens, budget)
            entries.append((tracked, count))
            budget -= count
        return [self._compute(tracked, count) for tracked, count in entries]

    def _compute(self, tracked: _Tracked, count: int) -> Entry:
        entry = (tracked.index, tracked.num_computed, count)
        arrival = tracked.arrival
        self._served[arrival.client] += count
        tracked.num_computed += count
        if tracked.num_computed == tracked.num_tokens:
            tracked.num_tokens += 1
            if tracked.num_tokens == arrival.prompt_tokens + arrival.output_tokens:
                self._running.remove(tracked)
                if arrival.client not in self._clients():
                    self._last_left = self._served[arrival.client]
        return entry

    def _clients(self) -> set[str]:
        return {tracked.arrival.client for tracked in self._waiting + self._running}

    def _rank(self, tracked: _Tracked) -> float:
        if self._policy == "fair":
            return self._served[tracked.arrival.client]
        return tracked.arrival.priority if self._policy == "priority" else 0
