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

from quire.kernels.noise import Purpose, uniform
from quire.kernels.sampling import NO_TOKEN
from quire.sampling.drafts import Drafts
from quire.sending import send


def accept_equal(
    chosen: Tensor, drafts: Drafts, seeds: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each request's tokens, int64 [R, 1 + k], and how many of them count, int64 [R].

    Args:
        chosen: int64 [N], the sampler's choice for every row of logits.
        drafts: the guesses at the positions of these rows.
        seeds, positions: int64 [N], the keys of a coin, should one decide.
    """
    bounds = send(torch.tensor(drafts.first_rows), chosen.device)
    column = torch.arange(max(b - a for a, b in pairwise(drafts.first_rows)), device=chosen.device)
    rows = (bounds[:-1, None] + column).clamp(max=len(chosen) - 1)
    tokens = chosen[rows]
    guesses, num_guesses = drafts.tokens[rows][:, :-1], bounds.diff() - 1
    if drafts.acceptance_rate is not None:
        guesses = toss(tokens, drafts.acceptance_rate, seeds[rows], positions[rows])
    return tokens, num_accepted(tokens, guesses, num_guesses)


# docs: accept begin
def num_accepted(chosen: Tensor, guesses: Tensor, num_guesses: Tensor) -> Tensor:
    """Return how many chosen tokens count: those up to the first that was guessed wrong.

    Args:
        chosen: int64 [R, 1 + k].
        guesses: int64 [R, k], for the first k of these positions.
        num_guesses: [R], how many of a row's guesses are real.
    """
    column = torch.arange(guesses.shape[1], device=chosen.device)
    right = (chosen[:, :-1] == guesses) & (column < num_guesses[:, None])
    return 1 + right.long().cumprod(dim=1).sum(dim=1)


# docs: accept end


def toss(chosen: Tensor, rate: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """Return guesses that are right with a probability: made up, to measure what they would save.

    Args:
        chosen, seeds, positions: int64 [R, 1 + k].
        rate: float32, the probability.
    """
    coins = uniform(seeds.flatten(), positions.flatten(), Purpose.ACCEPT, width=1).view(
        chosen.shape
    )
    return torch.where(coins < rate, chosen, NO_TOKEN)[:, :-1]
