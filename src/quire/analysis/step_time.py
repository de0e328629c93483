"""`StepTime`: what a step takes, read from a `quire bench steps` measurement.

The clock of the chapter "Batching": its simulations and replays move on by it, and the
explorable "Load" evaluates the same formula in the browser.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import linear_regression
from typing import Any

Entry = tuple[int, int, int]  # request, first position computed, number of positions
Points = tuple[tuple[float, float], ...]  # (size of a step, its seconds), sizes rising


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step: straight lines between measured points, then the cached tokens it reads.

    A step in which every request computes one position is timed by its requests (it may be
    a captured graph), any other by its positions. The points were measured at one context:
    each request of a decode step attended to `context` tokens, and the prompt of a mixed step
    to itself alone. Every cached token that a step reads beyond those takes `decode_token` or
    `mixed_token` seconds more; one that it does not read takes as much less.

    Left out: a chunk of a prompt does arithmetic, too, for each token before it.
    """

    decode: Points  # over requests
    mixed: Points  # over positions
    decode_token: float = 0.0
    mixed_token: float = 0.0
    context: int = 272  # `quire bench steps`: 256 prompt tokens and half of 32 outputs

    @classmethod
    def from_rows(cls, rows: Iterable[dict[str, Any]], token_seconds: float = 0.0) -> StepTime:
        """Read the rows of a `quire bench steps` measurement.

        A step with a prompt takes what its rows `prefill` say: kernels launched one by one, as
        beside other requests. A short prompt alone is faster (`alone`), which is left out here.
        What a cached token takes is the slope of the rows that vary the context. Where there
        are none it is `token_seconds`, such as its bytes over the bandwidth.
        """
        points: dict[str, list[tuple[float, float]]] = {
            kind: [] for kind in ("decode", "prefill", "context", "mixed")
        }
        for row in rows:
            kind, parameters = row["case"].partition("-")[0], row["parameters"]
            if kind == "alone":
                continue
            if kind == "context":  # a step's cached tokens; their number's offset moves no slope
                size = parameters["batch"] * parameters["prompt_tokens"]
            elif kind == "mixed":
                size = parameters["batch"] * parameters["context"]
            else:
                size = parameters["batch" if kind == "decode" else "prompt_tokens"]
            points[kind].append((size, row["value"] / 1e3))
        return cls(
            tuple(sorted(points["decode"])),
            tuple(sorted(points["prefill"])),
            slope(points["context"], token_seconds),
            slope(points["mixed"], token_seconds),
        )

    def seconds(self, entries: Sequence[Entry]) -> float:
        """Return what a step with these entries takes."""
        num_tokens = sum(count for _, _, count in entries)
        cached = sum(start for _, start, _ in entries)
        if num_tokens == len(entries):
            beyond = cached + num_tokens * (1 - self.context)
            return interpolate(self.decode, num_tokens) + self.decode_token * beyond
        return interpolate(self.mixed, num_tokens) + self.mixed_token * cached


def slope(points: Sequence[tuple[float, float]], default: float) -> float:
    """Return the slope of the line nearest to the points, at least 0; `default` below two."""
    if len(points) < 2:
        return default
    return max(linear_regression(*zip(*points, strict=True)).slope, 0.0)


def interpolate(points: Points, size: float) -> float:
    """Return the value at `size`: constant below the first point, the last slope beyond the last.

    A slope never falls below 0 beyond the last point.
    """
    if size <= points[0][0] or len(points) == 1:
        return points[0][1]
    right = next((i for i, (at, _) in enumerate(points) if at >= size), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    slope = (y1 - y0) / (x1 - x0)
    if size > x1:
        return y1 + max(slope, 0.0) * (size - x1)
    return y0 + slope * (size - x0)
