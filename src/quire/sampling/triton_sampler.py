"""`TritonSampler`: the reference's choices by kernels that a captured step may end with."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels import sampling as kernels
from quire.sampling.processors import apply_penalties
from quire.sampling.sampler import TorchSampler
from quire.sampling.tensors import SamplingTensors


class TritonSampler(TorchSampler):
    """Draws the same tokens as `TorchSampler` from the same logits, without a sort."""

    def choose(self, logits: Tensor, sampling: SamplingTensors) -> Tensor:
        """Return the next token of each row, int64 [R]."""
        if sampling.penalties is not None:
            logits = apply_penalties(logits, sampling.penalties)
        return self.greedy(logits) if sampling.all_greedy else self.draw(logits, sampling)

    def greedy(self, logits: Tensor) -> Tensor:
        """Return each row's largest logit's token, int64 [R], from logits of any dtype."""
        return kernels.greedy(logits)

    def draw(self, logits: Tensor, sampling: SamplingTensors) -> Tensor:
        """Return a draw a row, int64 [R]; a parameter that no row uses may be None."""
        rows = logits.shape[0]

        def column(values: Tensor | None, neutral: float, dtype: torch.dtype) -> Tensor:
            if values is not None:
                return values
            return torch.full((rows,), neutral, dtype=dtype, device=logits.device)

        return kernels.sample(
            logits,
            sampling.temperature,
            column(sampling.top_k, 0, torch.int64),
            column(sampling.top_p, 1, torch.float32),
            column(sampling.min_p, 0, torch.float32),
            sampling.seeds,
            sampling.positions,
        )
