"""RMSNorm: scaling by the root mean square, over a hidden state or over each head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quire.kernels.norm import add_rms_norm, rms_norm
from quire.layers.module import Layer


class RMSNorm(Layer):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        """Create the norm with its weight [size] empty."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype, device=device), False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, [..., size]."""
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the norm of x + residual, and the sum; on a GPU it overwrites residual."""
        return add_rms_norm(x, residual, self.weight, self.eps)


class HeadNorm(Layer):
    """Weights of the RMSNorm of each query and key head (Qwen3), one for each kind.

    Queries and keys lie side by side after the fused projection and are normalised in
    one operation: the weight has a row a head.
    """

    def __init__(
        self,
        heads: dict[str, int],
        head_size: int,
        eps: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`heads` maps a checkpoint's name for each kind to its number of heads."""
        super().__init__()
        self.eps = eps
        self.shards = heads
        shape = (sum(heads.values()), head_size)
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype, device=device), False)

    def shard(self, name: str) -> Tensor:
        """Return the rows of `weight` that belong to a kind, [heads, head_size]."""
        begin = 0
        for kind, size in self.shards.items():
            if kind == name:
                return self.weight[begin : begin + size]
            begin += size
        raise KeyError(name)
