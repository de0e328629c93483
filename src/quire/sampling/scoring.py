"""Log-probabilities of given tokens at many positions, without all of their logits at once.

The logits of a prompt are far larger than its hidden states: 2,000 positions over a vocabulary
of 151,936 are 1.2 GB in float32, and every pass over them may take as much again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quire.sampling.sampler import TokenLogprobs, gather_logprobs

# Float32 logits looked at together; the peak is about three times as much. Few enough to be no
# part of a GPU's memory, and so many that reading the head's weights again for each chunk takes
# no longer than the passes over the logits: 311 MB for Qwen3-0.6B, against five times 67 MB.
CHUNK_BYTES = 64 << 20


def score_tokens(
    compute_logits: Callable[[Tensor], Tensor],
    hidden: Tensor,
    token_ids: Tensor,
    num_top: int,
    vocab_size: int,
) -> TokenLogprobs:
    """Return the log-probabilities of `token_ids` and of the `num_top` best at each position.

    Args:
        compute_logits: from hidden states [n, hidden_size] to logits [n, vocab_size].
        hidden: [N, hidden_size], of the positions that predict the tokens; N is at least 1.
        token_ids: int64 [N].
    """
    rows = max(1, CHUNK_BYTES // (4 * vocab_size))
    chunks = [
        gather_logprobs(compute_logits(states).float(), targets, num_top)
        for states, targets in zip(hidden.split(rows), token_ids.split(rows), strict=True)
    ]
    return TokenLogprobs(
        chosen=torch.cat([chunk.chosen for chunk in chunks]),
        rank=torch.cat([chunk.rank for chunk in chunks]),
        top_ids=torch.cat([chunk.top_ids for chunk in chunks]),
        top_values=torch.cat([chunk.top_values for chunk in chunks]),
    )
