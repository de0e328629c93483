"""`RopeConfig`: what a checkpoint says of its rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: base frequency and, where a model has it, its scaling.

    `kind` is "default", "linear" (positions divided by `factor`), "llama3" (low frequencies
    divided by `factor`, high ones kept, a ramp between) or "yarn" (likewise, with a ramp over
    pairs of dimensions, and queries and keys multiplied by `attention_factor`).
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_position: int = 8_192  # llama3, yarn: the length before scaling, in tokens
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn: turns over the original length, from which on all is kept
    beta_slow: float = 1.0  # yarn: turns below which all is stretched
    truncate: bool = True  # yarn: whether the ramp begins and ends at whole pairs
    attention_factor: float = 1.0  # yarn
