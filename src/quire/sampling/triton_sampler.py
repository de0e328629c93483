"""`TritonSampler`: the reference's choices by kernels that a captured step may end with."""

from __future__ import annotations

from torch import Tensor

from quire.kernels import sampling as kernels
from quire.sampling.processors import shape_logits
from quire.sampling.sampler import TorchSampler
from quire.sampling.tensors import SamplingTensors


class TritonSampler(TorchSampler):
    """Draws the same tokens as `TorchSampler` from the same logits, without a sort."""

    def choose(self, logits: Tensor, sampling: SamplingTensors) -> Tensor:
        """Return the next token of each row, int64 [R]; `NO_TOKEN` where there is none."""
        logits = shape_logits(logits, sampling)
        return self.greedy(logits) if sampling.all_greedy else self.draw(logits, sampling)

    def greedy(self, logits: Tensor) -> Tensor:
        """Return each row's largest logit's token, int64 [R], from logits of any dtype."""
        return kernels.greedy(logits)

    def draw(self, logits: Tensor, sampling: SamplingTensors) -> Tensor:
        """Return a draw a row, int64 [R]; a parameter that no row uses may be None."""
        return kernels.sample(
            logits,
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            sampling.min_p,
            sampling.seeds,
            sampling.positions,
        )
