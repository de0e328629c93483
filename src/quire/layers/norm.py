"""RMSNorm: scaling by the root mean square, over a hidden state or over each head."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from quire.kernels.norm import add_rms_norm, rms_norm
from quire.kernels.round_inputs import Rounding
from quire.kernels.rounded import add_rms_norm_rounded
from quire.layers.module import Layer, Taker, copy_checked, empty_parameter
from quire.parallel.comm import NormingComm, PartialSum, total


class RMSNorm(Layer):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension."""

    def __init__(
        self, name: str, size: int, eps: float, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Create the norm, `name` in the checkpoint, with its weight [size] empty."""
        super().__init__()
        self.name = name
        self.eps = eps
        self.weight = empty_parameter((size,), dtype, device)
        self.rounding: Rounding | None = None  # what the layer behind `add` asks for

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, [..., size]."""
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor | PartialSum, residual: Tensor) -> tuple[Any, Tensor]:
        """Return the norm of x + residual, and the sum; on a GPU it overwrites residual.

        The norm is a tensor or, where there is a `rounding`, `Rounded`.
        """
        if isinstance(x, PartialSum) and self.rounding is None and isinstance(x.comm, NormingComm):
            return x.comm.add_rms_norm(x.part, residual, self.weight, self.eps)
        x = total(x)
        if self.rounding is not None:
            return add_rms_norm_rounded(x, residual, self.weight, self.eps, self.rounding)
        return add_rms_norm(x, residual, self.weight, self.eps)

    def takes(self) -> dict[str, Taker]:
        """One weight."""
        return {f"{self.name}.weight": Taker(partial(copy_checked, self.weight))}

    def fill_random(self, generator: torch.Generator) -> None:
        """Scale by one, as models are initialised for training."""
        self.weight.fill_(1.0)


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
        """`heads` maps the checkpoint's full name of each kind to its number of heads."""
        super().__init__()
        self.eps = eps
        self.heads = heads
        self.weight = empty_parameter((sum(heads.values()), head_size), dtype, device)

    def takes(self) -> dict[str, Taker]:
        """One weight [head_size] a kind, the same for all its heads."""
        shards = self.weight.split(list(self.heads.values()))
        return {
            f"{name}.weight": Taker(partial(_fill_rows, shard))
            for name, shard in zip(self.heads, shards, strict=True)
        }

    def fill_random(self, generator: torch.Generator) -> None:
        """Scale by one."""
        self.weight.fill_(1.0)


def _fill_rows(rows: Tensor, tensor: Tensor) -> None:
    copy_checked(rows[0], tensor)
    rows[1:] = rows[0]
