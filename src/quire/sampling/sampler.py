"""`Sampler`: from the logits of a step to one token a row, without leaving the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from quire.kernels.sampling import greedy_torch, sample_torch
from quire.sampling.drafts import Drafts
from quire.sampling.processors import shape_logits
from quire.sampling.tensors import SamplingTensors
from quire.speculation.coupled import accept_equal


@dataclass
class TokenLogprobs:
    """Log-probabilities of chosen tokens and of the K most probable ones, R rows.

    `rank` is 1 for the most probable token.
    """

    chosen: Tensor  # float32 [R]
    rank: Tensor  # int64 [R]
    top_ids: Tensor  # int64 [R, K]
    top_values: Tensor  # float32 [R, K]


@dataclass
class SamplerOutput:
    """The tokens of a step: request r accepts `tokens[r, : num_accepted[r]]`.

    A step without drafts has one column and accepts one token a request. `logprobs` has a row
    for each row of logits.
    """

    tokens: Tensor  # int64 [R, 1 + k]
    num_accepted: Tensor | None = None  # int64 [R]; None: one a row
    logprobs: TokenLogprobs | None = None


class Sampler(Protocol):
    """Swap point: chooses the next token of every row.

    It heeds every field of `SamplingTensors`; a row that has no token to choose gets `NO_TOKEN`
    (`quire.kernels.sampling`). `drafts` is None in a step that verifies none.
    """

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Drafts | None = None
    ) -> SamplerOutput:
        """Choose from `logits`, float32 [N, V]."""
        ...


@runtime_checkable
class GraphSafeSampler(Protocol):
    """A sampler that a captured step may end with: no look at the host, no changing shapes.

    A captured step has no logits to shape (`quire.sampling.processors`) and no
    log-probabilities.
    """

    def greedy(self, logits: Tensor) -> Tensor:
        """Return each row's largest logit's token, int64 [R], from logits of any dtype."""
        ...

    def draw(self, logits: Tensor, sampling: SamplingTensors) -> Tensor:
        """Return a draw a row, int64 [R]; the parameters of every row are given."""
        ...


class TorchSampler:
    """The reference sampler: exact, in torch, on any device; drafts are judged coupled."""

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Drafts | None = None
    ) -> SamplerOutput:
        """Choose from `logits`, float32 [N, V]."""
        tokens = self.choose(logits, sampling)
        logprobs = None
        if sampling.num_logprobs is not None:
            logprobs = gather_logprobs(logits, tokens, sampling.num_logprobs)
        if drafts is None:
            return SamplerOutput(tokens[:, None], logprobs=logprobs)
        accepted = accept_equal(tokens, drafts, sampling.seeds, sampling.positions)
        return SamplerOutput(*accepted, logprobs)

    def choose(self, logits: Tensor, sampling: SamplingTensors) -> Tensor:
        """Return the next token of each row, int64 [N]; `NO_TOKEN` where there is none."""
        logits = shape_logits(logits, sampling)
        if sampling.all_greedy:
            return greedy_torch(logits)
        return sample_torch(
            logits,
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            sampling.min_p,
            sampling.seeds,
            sampling.positions,
        )


def gather_logprobs(logits: Tensor, tokens: Tensor, num_top: int) -> TokenLogprobs:
    """Return the log-probabilities of `tokens` [R] and of the `num_top` best, from raw logits.

    A vocabulary of fewer than `num_top` tokens gives them all. A row that holds no distribution
    (NaN, +inf, or nothing above -inf) has NaN everywhere, beside `NO_TOKEN` too.
    """
    # No tensor of all log-probabilities: a logit less the logarithm of the sum is one.
    log_sum = logits.logsumexp(dim=-1, keepdim=True)
    log_sum = torch.where(log_sum.isfinite(), log_sum, torch.nan)
    chosen = logits.gather(-1, tokens.clamp(min=0)[:, None])
    top_values, top_ids = logits.topk(min(num_top, logits.shape[-1]), dim=-1)
    return TokenLogprobs(
        chosen=(chosen - log_sum)[:, 0],
        rank=(logits > chosen).sum(dim=-1) + 1,
        top_ids=top_ids,
        top_values=top_values - log_sum,
    )
