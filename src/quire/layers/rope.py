"""Rotary position embedding (Su et al. 2021) and the ways to stretch it over longer texts.

A model that was trained on short texts meets angles it never saw where a text is longer.
Linear scaling turns everything more slowly; Llama 3 and YaRN slow down what has turned less
than once or a few times in training, and leave alone what has turned often.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quire.kernels.rotation import Rotation
from quire.models.rope_config import RopeConfig


def inverse_frequencies(config: RopeConfig, head_size: int) -> Tensor:
    """Radians a position turns each pair of dimensions by, float32 [head_size / 2]."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.int64).float() / head_size
    frequencies = 1.0 / config.theta**exponents
    if config.kind == "linear":
        return frequencies / config.factor
    if config.kind == "llama3":
        return _llama3(frequencies, config)
    if config.kind == "yarn":
        return _yarn(frequencies, config)
    return frequencies


def _llama3(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """Stretch long wavelengths by `factor`, keep short ones, blend those between."""
    turns = config.original_max_position * frequencies / (2 * math.pi)
    ramp = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    ramp = ramp.clamp(0, 1)
    return (1 - ramp) * frequencies / config.factor + ramp * frequencies


def _yarn(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """Blend along the pairs of dimensions: those that turn often in training are kept.

    Peng et al. 2023 (YaRN): the ramp goes from the pair that turns `beta_fast` times over the
    original length to the one that turns `beta_slow` times.
    """
    num_pairs = len(frequencies)

    def pair_of(turns: float) -> float:
        """The pair, not always a whole number, that turns so often over the original length."""
        length = config.original_max_position / (turns * 2 * math.pi)
        return num_pairs * math.log(length) / math.log(config.theta)

    first, last = pair_of(config.beta_fast), pair_of(config.beta_slow)
    if config.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * num_pairs - 1)
    last = last if last != first else last + 0.001  # a step
    stretched = ((torch.arange(num_pairs).float() - first) / (last - first)).clamp(0, 1)
    return frequencies / config.factor * stretched + frequencies * (1 - stretched)


class RotaryTable:
    """cos and sin of every position, computed once.

    The sine carries the sign of the rotation; both carry the factor by which YaRN sharpens
    attention, once for the query and once for the key.
    """

    def __init__(
        self,
        config: RopeConfig,
        head_size: int,
        max_len: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Tabulate positions [0, max_len); angles in float32, whatever the dtype."""
        angles = torch.outer(torch.arange(max_len).float(), inverse_frequencies(config, head_size))
        cos, sin = (x * config.attention_factor for x in (angles.cos(), angles.sin()))
        self.cos = torch.cat([cos, cos], dim=-1).to(device, dtype)
        self.sin = torch.cat([-sin, sin], dim=-1).to(device, dtype)

    def at(self, positions: Tensor) -> Rotation:
        """Return what turns tokens at int64 `positions`, [num_tokens]."""
        return Rotation(self.cos, self.sin, positions)
