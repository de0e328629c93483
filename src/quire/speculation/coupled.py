"""Coupled verification: a guess stands if it is what the step chooses there anyway.

The sampler chooses a token for every row of logits as it always does, with the noise of that
row's own position. A request's first row follows tokens that are known, so its choice is the
token of a run without guesses. If the guess was that token, the second row follows what such a
run would have said, too, and so on: the output is that of the run without guesses, token for
token, whoever guessed.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from quire.sampling.drafts import Drafts


def accept_equal(chosen: Tensor, drafts: Drafts) -> tuple[Tensor, Tensor]:
    """Return each request's tokens, int64 [R, 1 + k], and how many of them count, int64 [R].

    Args:
        chosen: int64 [N], the sampler's choice for every row of logits.
        drafts: the guesses at the positions of these rows.
    """
    bounds = torch.tensor(drafts.first_rows, device=chosen.device)
    counts = bounds.diff()  # 1 + the request's guesses
    column = torch.arange(max(b - a for a, b in pairwise(drafts.first_rows)), device=chosen.device)
    rows = (bounds[:-1, None] + column).clamp(max=len(chosen) - 1)
    tokens = chosen[rows]
    right = (tokens == drafts.tokens[rows]) & (column < counts[:, None] - 1)
    return tokens, 1 + right.long().cumprod(dim=1).sum(dim=1)
