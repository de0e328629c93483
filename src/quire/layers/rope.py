"""Rotary position embedding (Su et al. 2021), with Llama 3's scaling of frequencies."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from quire.models.config import RopeConfig


def inverse_frequencies(config: RopeConfig, head_size: int) -> Tensor:
    """Radians a position turns each pair of dimensions by, float32 [head_size / 2]."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.int64).float() / head_size
    frequencies = 1.0 / config.theta**exponents
    if config.kind == "linear":
        return frequencies / config.factor
    if config.kind == "llama3":
        return _llama3(frequencies, config)
    return frequencies


def _llama3(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """Stretch long wavelengths by `factor`, keep short ones, blend those between."""
    turns = config.original_max_position * frequencies / (2 * math.pi)
    ramp = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    ramp = ramp.clamp(0, 1)
    return (1 - ramp) * frequencies / config.factor + ramp * frequencies


class RotaryTable:
    """cos and sin of every position, computed once.

    The sine carries the sign of the rotation, so that `rotate` is three operations.
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
        self.cos = torch.cat([angles.cos(), angles.cos()], dim=-1).to(device, dtype)
        self.sin = torch.cat([-angles.sin(), angles.sin()], dim=-1).to(device, dtype)

    def lookup(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin for positions [num_tokens], each [num_tokens, 1, head_size]."""
        return self.cos[positions][:, None], self.sin[positions][:, None]


class Rotation:
    """The table at the positions of a step's tokens, the same for all layers."""

    def __init__(self, table: RotaryTable, positions: Tensor) -> None:
        """`positions` are int64 [num_tokens]."""
        self.table = table
        self.positions = positions

    @cached_property
    def gathered(self) -> tuple[Tensor, Tensor]:
        """cos and sin as torch wants them; a kernel reads them from the table in place."""
        return self.table.lookup(self.positions)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn dimension i of x [num_tokens, heads, head_size] against i + head_size / 2."""
    half = x.shape[-1] // 2
    swapped = torch.cat((x.narrow(-1, half, half), x.narrow(-1, 0, half)), dim=-1)
    return torch.addcmul(x * cos, swapped, sin)
