"""Rejection sampling: a draft stands with probability min(1, p/q), and what p has left replaces it.

p is the target's distribution at a position and q the one that the draft x was drawn from. Where
q gives a token more than p does, the draft would say it too often: it is rejected with the
probability 1 − p(x)/q(x). The rejected mass goes to the tokens that q gives too little, each in
proportion to what it lacks, max(0, p − q). A token then has min(p, q) by acceptance and
max(0, p − q) by replacement, in all p, whatever q is. After Leviathan et al. 2023
(arXiv 2211.17192) and Chen et al. 2023 (arXiv 2302.01318).

A draft stands with probability Σ min(p, q) = 1 − TV(p, q). No exact rule can keep it more often,
since a token x that stands is a draft and an output, with probabilities of at most q(x) and p(x).
The price: the text has the target's law, but which text it is depends on the drafts, as it does
not under `quire.speculation.coupled`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from quire.kernels.noise import Purpose, exponential, uniform
from quire.kernels.sampling import NO_TOKEN
from quire.sampling.drafts import Drafts
from quire.sending import send


def accept_or_replace(
    p: Tensor, q: Tensor | None, drafts: Drafts, seeds: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each request's tokens, int64 [R, 1 + k], and how many of them count, int64 [R].

    These are the accepted drafts and one token more: the replacement of the first rejected draft
    or, if there is none, a draw from p. Every draw has its own key (seed, position, purpose): a
    coin ACCEPT, the replacement RESIDUAL, the token behind all drafts TOKEN, as in a step without
    drafts. A draft must have been drawn with other noise, that of `Purpose.DRAFT`. What lies
    behind the first rejected draft decides nothing, so the next step may use its keys again.

    Args:
        p: float32 [N, V], the target's distribution in each row, after temperature and cutoffs;
            a greedy row holds a single 1.
        q: float32 [N, V], what each draft was drawn from; a request's last row is not read.
            None: the drafts were not drawn, as if q were 1 at the draft.
        drafts: the tokens to judge.
        seeds, positions: int64 [N], the keys of the noise.

    A draft with q(x) = 0 cannot have been drawn from q; it is accepted if p(x) > 0. A request's
    drafts end before one that is outside the vocabulary, and before a row in which p or q is
    NaN or all 0. If p is, and all drafts above are accepted, the token is `NO_TOKEN`.
    """
    table = JudgedRows.of(p, q, drafts)
    coins = uniform(seeds, positions, Purpose.ACCEPT, width=1)[:, 0]
    p_draft, q_draft = table.of_drafts(p, q)
    # docs: accept begin
    accepted = coins * q_draft < p_draft  # coin < p/q, where q may be 0
    right = accepted[table.rows] & (table.columns < table.num_drafts[:, None])
    num_right = right.long().cumprod(dim=1).sum(dim=1)
    # docs: accept end
    weight = torch.ones_like(num_right, dtype=p.dtype)
    return table.answer(p, q, num_right, weight, seeds, positions)


@dataclass
class JudgedRows:
    """N rows of a step as a table: column i of request r is the row that judges its draft i.

    The column behind a request's drafts is the row that follows them all. Further columns, which
    a request with fewer drafts than others has, hold any row.
    """

    rows: Tensor  # int64 [R, 1 + k]
    columns: Tensor  # int64 [1 + k]: 0, 1, …, k
    num_drafts: Tensor  # int64 [R]: the drafts that can be judged
    first_rows: Tensor  # int64 [R + 1]
    tokens: Tensor  # int64 [N], the drafts, brought into the vocabulary

    @classmethod
    def of(cls, p: Tensor, q: Tensor | None, drafts: Drafts) -> JudgedRows:
        """Lay out the rows, and end each request's drafts before the first without p or q."""
        num_rows, vocab_size = p.shape
        bounds = send(torch.tensor(drafts.first_rows), p.device)
        columns = torch.arange(max(b - a for a, b in pairwise(drafts.first_rows)), device=p.device)
        rows = (bounds[:-1, None] + columns).clamp(max=num_rows - 1)
        tokens = drafts.tokens.clamp(0, vocab_size - 1)
        sound = (tokens == drafts.tokens) & (p.sum(dim=-1) > 0)  # no NaN is greater
        if q is not None:
            sound &= q.sum(dim=-1) > 0
        judged = sound[rows] & (columns < bounds.diff()[:, None] - 1)
        num_drafts = judged.long().cumprod(dim=1).sum(dim=1)
        return cls(rows, columns, num_drafts, bounds, tokens)

    def of_drafts(self, p: Tensor, q: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return p and q of the draft of each row, float32 [N]."""
        places = self.tokens[:, None]
        p_draft = p.gather(-1, places)[:, 0]
        return p_draft, torch.ones_like(p_draft) if q is None else q.gather(-1, places)[:, 0]

    def answer(
        self,
        p: Tensor,
        q: Tensor | None,
        num_right: Tensor,
        weight: Tensor,
        seeds: Tensor,
        positions: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Put a drawn token behind the accepted drafts; return tokens and counts.

        Args:
            num_right: int64 [R], how many drafts are accepted.
            weight: float32 [R], what multiplies p in the residual.
        """
        place = num_right[:, None]
        row = self.rows.gather(1, place)[:, 0]
        keys = seeds[row], positions[row]
        behind_all = draw(p[row], *keys, Purpose.TOKEN)
        left = residual(p[row] * weight[:, None], None if q is None else q[row], self.tokens[row])
        # Where p is q but for rounding, a rejection may leave nothing to draw from.
        left = torch.where(left.amax(dim=-1, keepdim=True) > 0, left, p[row])
        drawn = torch.where(
            num_right < self.num_drafts, draw(left, *keys, Purpose.RESIDUAL), behind_all
        )
        tokens = self.tokens[self.rows].scatter(1, place, drawn[:, None])
        return tokens, 1 + num_right


def residual(p: Tensor, q: Tensor | None, tokens: Tensor) -> Tensor:
    """Return max(0, p − q) of each row, float32 [N, V]; q is 1 at `tokens`, int64 [N], if None."""
    if q is None:
        return p.scatter(-1, tokens[:, None], 0.0)
    return (p - q).clamp(min=0)


def draw(weights: Tensor, seeds: Tensor, positions: Tensor, purpose: Purpose) -> Tensor:
    """Draw a token from each row of weights, [R, V], which need not add up to 1; int64 [R].

    `quire.kernels.noise`'s race. A row of zeros or with NaN gives `NO_TOKEN`.
    """
    best, tokens = (weights / exponential(seeds, positions, purpose, weights.shape[-1])).max(-1)
    return torch.where(best > 0, tokens, NO_TOKEN)
