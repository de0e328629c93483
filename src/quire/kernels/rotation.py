"""Rotary embedding as the kernels apply it: the angles of a step's tokens, and the turn itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass
class Rotation:
    """The cosines and sines at the positions of a step's tokens, the same for all layers.

    The sine carries the sign of the rotation, so that `rotate` is three operations.
    """

    cos: Tensor  # [max_len, head_size], of every position
    sin: Tensor  # the same
    positions: Tensor  # int64 [num_tokens]

    @cached_property
    def gathered(self) -> tuple[Tensor, Tensor]:
        """cos and sin of each token, [num_tokens, 1, head_size]; a kernel reads the table."""
        return self.cos[self.positions][:, None], self.sin[self.positions][:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn dimension i of x [num_tokens, heads, head_size] against i + head_size / 2."""
    half = x.shape[-1] // 2
    swapped = torch.cat((x.narrow(-1, half, half), x.narrow(-1, 0, half)), dim=-1)
    return torch.addcmul(x * cos, swapped, sin)
