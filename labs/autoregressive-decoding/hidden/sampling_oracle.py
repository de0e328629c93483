"""The sampler's steps on Python lists, with exact sums; shares no line with the reference."""

from __future__ import annotations

import math
from typing import Any

NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "allowed": None,
    "quota": None,
    "span": 0,
}
NO_PENALTY: dict[str, Any] = {"repetition": 1.0, "presence": 0.0, "frequency": 0.0, "window": 0}


class TooClose(Exception):
    """A value stands so near an edge that rounding decides; the case says nothing."""


def distribution(
    logits: list[float], output_ids: list[int], params: dict[str, Any], margin: float = 1e-7
) -> list[float]:
    """The probabilities, in the order of the specification."""
    allowed = set(range(len(logits)) if params["allowed"] is None else params["allowed"])
    candidates = sorted(allowed)
    if params["quota"] is not None:
        recent = output_ids[-params["span"] :] if params["span"] else []
        left = [i for i in candidates if recent.count(i) < params["quota"]]
        candidates = left or candidates
    ranked = sorted(candidates, key=lambda i: (-logits[i], i))
    result = [0.0] * len(logits)
    if params["temperature"] == 0:
        result[ranked[0]] = 1.0
        return result
    if params["top_k"]:
        ranked = ranked[: params["top_k"]]
    top = logits[ranked[0]]
    mass = [math.exp((logits[i] - top) / params["temperature"]) for i in ranked]
    if params["top_p"] < 1:
        total = math.fsum(mass)
        kept = 0
        while kept < len(mass):
            before = math.fsum(mass[:kept]) / total
            if kept and abs(before - params["top_p"]) < margin:
                raise TooClose
            if before >= params["top_p"]:
                break
            kept += 1
        mass = mass[:kept]
    edge = params["min_p"] * mass[0]
    if any(abs(m - edge) < margin * mass[0] and m != mass[0] for m in mass if edge):
        raise TooClose
    mass = [m for m in mass if m >= edge]
    total = math.fsum(mass)
    for i, m in zip(ranked, mass, strict=False):
        result[i] = m / total
    return result


def penalise(
    logits: list[float], prompt: list[int], output: list[int], params: dict[str, Any]
) -> list[float]:
    """Penalties over the last `window` tokens of prompt and output."""
    tagged = [(i, False) for i in prompt] + [(i, True) for i in output]
    recent = tagged[len(tagged) - min(params["window"], len(tagged)) :]
    result = list(map(float, logits))
    for i in {i for i, _ in recent}:
        strength = params["repetition"]
        result[i] = result[i] / strength if result[i] > 0 else result[i] * strength
    for i, is_output in recent:
        if is_output:
            result[i] -= params["frequency"]
    for i in {i for i, is_output in recent if is_output}:
        result[i] -= params["presence"]
    return result


def draw(probabilities: list[float], u: float, margin: float = 1e-9) -> int:
    """The token at u on the line of cumulative probabilities."""
    possible = [(i, p) for i, p in enumerate(probabilities) if p > 0]
    for count, (i, _) in enumerate(possible[:-1], 1):
        cumulative = math.fsum(p for _, p in possible[:count])
        if abs(cumulative - u) < margin:
            raise TooClose
        if cumulative > u:
            return i
    return possible[-1][0]
