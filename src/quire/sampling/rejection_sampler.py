"""`RejectionSampler`: judges drafts by their probabilities, not by what would have been chosen."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from quire.kernels.sampling import probabilities
from quire.sampling.drafts import Drafts
from quire.sampling.processors import shape_logits
from quire.sampling.sampler import Sampler, SamplerOutput, gather_logprobs
from quire.sampling.tensors import SamplingTensors
from quire.sending import send
from quire.speculation import block, rejection

Judge = Callable[[Tensor, Tensor | None, Drafts, Tensor, Tensor], tuple[Tensor, Tensor]]
JUDGES: dict[str, Judge] = {
    "rejection": rejection.accept_or_replace,
    "block": block.accept_or_replace,
}


class RejectionSampler:
    """Chooses as another sampler does where there are no drafts, and judges those there are.

    What a request would have said without drafts is not computed, so the text depends on them;
    its law does not. Nothing of this is captured: a captured step ends with hidden states.
    """

    def __init__(self, verification: str, sampler: Sampler) -> None:
        """Judge by "rejection" or "block"; where nothing is drafted `sampler` chooses."""
        self._judge = JUDGES[verification]
        self._sampler = sampler

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Drafts | None = None
    ) -> SamplerOutput:
        """Choose from `logits`, float32 [N, V]."""
        if drafts is None:
            return self._sampler(logits, sampling)
        shaped = shape_logits(logits, sampling)
        p = probabilities(
            shaped, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p
        )
        tokens, num_accepted = self._judge(
            p, drafts.probabilities, drafts, sampling.seeds, sampling.positions
        )
        logprobs = None
        if sampling.num_logprobs is not None:
            chosen = _of_rows(tokens, drafts.first_rows)
            logprobs = gather_logprobs(logits, chosen, sampling.num_logprobs)
        return SamplerOutput(tokens, num_accepted, logprobs)


def _of_rows(tokens: Tensor, first_rows: list[int]) -> Tensor:
    """Return the token of each row of logits, int64 [N], from those of each request, [R, 1 + k]."""
    places = [
        (request, column)
        for request, (a, b) in enumerate(pairwise(first_rows))
        for column in range(b - a)
    ]
    requests, columns = send(torch.tensor(places).T.contiguous(), tokens.device)
    return tokens[requests, columns]
