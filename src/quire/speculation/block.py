"""Block verification: how much of a draft stands is decided for the draft as a whole.

Rejection sampling (`quire.speculation.rejection`) ends at the first rejected draft, even if the
target says the next draft much more often than the draft model does. Block verification (Sun et
al. 2024, arXiv 2403.10444) lets a later draft make up for an earlier one. With

    w₀ = 1,   wᵢ = min(1, wᵢ₋₁ · p(xᵢ) / q(xᵢ)),

the first i drafts stand with probability wᵢ. A coin for each i says yes or no, and the longest
beginning with a yes stands; a no in the middle ends nothing. Rejection sampling keeps the first i
drafts with the product of min(1, p/q), which is never larger than wᵢ, so that block verification
keeps at least as many in expectation. If i drafts stand and there were more, the next token is
drawn from max(0, wᵢ·p − q).

The noise needs care. Rejection sampling has not looked at anything behind the first rejected
draft, so the next step may use the keys (seed, position) of those positions again. Block
verification has looked at everything: if i drafts stand, all later coins said no, and the later
drafts were such that they could. A next step with the same coins, or with drafts drawn by the
same noise, would be biased. So the keys of coins *and* drafts also hold the position at which
their step begins (`round_seeds`). A request has no two steps that begin at the same position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels.noise import Purpose, mix, uniform
from quire.sampling.drafts import Drafts
from quire.speculation.rejection import JudgedRows, residual


def accept_or_replace(
    p: Tensor, q: Tensor | None, drafts: Drafts, seeds: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each request's tokens, int64 [R, 1 + k], and how many of them count, int64 [R].

    Arguments, keys and edges are those of `quire.speculation.rejection.accept_or_replace`, save
    for one: drafts that were drawn from q must have been drawn with the seeds of `round_seeds`.
    """
    table = JudgedRows.of(p, q, drafts)
    request = torch.searchsorted(
        table.first_rows, torch.arange(len(p), device=p.device), right=True
    ).sub_(1)  # of each row
    first = table.first_rows[request]
    coin = uniform(round_seeds(seeds, positions[first]), positions, Purpose.ACCEPT, width=1)[:, 0]

    # docs: block begin
    p_draft, q_draft = table.of_drafts(p, q)
    ratios = (p_draft / q_draft)[table.rows]  # 0/0 is NaN, and no beginning with it stands
    weights = [torch.ones_like(ratios[:, 0])]
    for ratio in ratios[:, :-1].unbind(dim=1):
        weights.append((weights[-1] * ratio).clamp(max=1))
    stands = torch.stack(weights, dim=1)  # [R, 1 + k]: wᵢ in column i

    # Longer beginnings have Σ min(wᵢp, q) = wᵢ − left of wᵢ, so that coin i must say yes in a
    # share left / (1 − (wᵢ − left)) of the other cases. Behind the whole there is none longer.
    column = torch.arange(len(p), device=p.device) - first
    left = residual(p * stands[request, column][:, None], q, table.tokens).sum(dim=-1)[table.rows]
    coins = coin[table.rows]
    whole = table.columns == table.num_drafts[:, None]
    passes = torch.where(whole, coins < stands, coins * (left + 1 - stands) < left)
    passes &= table.columns <= table.num_drafts[:, None]
    num_right = (passes * table.columns).amax(dim=1)
    # docs: block end
    weight = stands.gather(1, num_right[:, None])[:, 0]
    return table.answer(p, q, num_right, weight, seeds, positions)


def round_seeds(seeds: Tensor, begins: Tensor) -> Tensor:
    """Return the seeds of a step's coins and drafts, int64 [N]; no two steps share one.

    Args:
        seeds: int64 [N], of each row's request.
        begins: int64 [N], the position of its first row: how many tokens it has.
    """
    return seeds ^ (mix(begins) << 32)  # mix is one to one, and leaves no pattern
