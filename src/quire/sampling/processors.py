"""The steps that reshape a distribution before a token is drawn from it.

Each takes logits [R, V] and returns logits [R, V]; a removed token has -inf. They are
pure: the argument is left as it was. Their order is `SamplingParams`'s.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.sampling.tensors import Penalties


def apply_penalties(logits: Tensor, penalties: Penalties) -> Tensor:
    """Make tokens that were seen before less likely (or, with values reversed, more).

    The repetition penalty looks at prompt and output and scales (Keskar et al. 2019,
    with the sign case, since dividing a negative logit would raise it); presence and
    frequency penalties look at the output only and subtract.
    """
    seen = (penalties.prompt_counts > 0) | (penalties.output_counts > 0)
    scaled = torch.where(logits > 0, logits / penalties.repetition, logits * penalties.repetition)
    logits = torch.where(seen, scaled, logits)
    logits = logits - penalties.frequency * penalties.output_counts
    return logits - penalties.presence * (penalties.output_counts > 0)


def apply_temperature(logits: Tensor, temperature: Tensor) -> Tensor:
    """Divide each row by its temperature [R]; greedy rows (0) are left alone."""
    # Below 1e-30 a quotient may overflow to inf, the same for several tokens; at it,
    # any two float32 logits that differ are already worlds apart.
    divisor = torch.where(temperature == 0, 1.0, temperature.clamp(min=1e-30))
    return logits / divisor[:, None]


# docs: truncation begin
def apply_min_p(logits: Tensor, min_p: Tensor) -> Tensor:
    """Keep tokens with p ≥ min_p · max p; in logits, a distance of log(min_p) from the top."""
    threshold = logits.amax(dim=-1, keepdim=True) + torch.log(min_p)[:, None]
    return logits.masked_fill(logits < threshold, -torch.inf)


def apply_top_k_top_p(logits: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> Tensor:
    """Keep each row's `top_k` largest logits, then the smallest set that holds `top_p`.

    One sort serves both. Ties at the edge of the top k are broken by token id, so that
    exactly k tokens stay. A row's own neutral value (0 or 1) keeps everything.
    """
    ordered, token_ids = logits.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k is not None:
        rank = torch.arange(ordered.shape[-1], device=logits.device)
        keep &= (rank < top_k[:, None]) | (top_k == 0)[:, None]
        ordered = ordered.masked_fill(~keep, -torch.inf)
    if top_p is not None:
        probabilities = ordered.softmax(dim=-1)
        # The mass before a token decides. The first always stays, even where a tiny
        # top_p is 0 in float32.
        mass_before = probabilities.cumsum(dim=-1) - probabilities
        keep &= (mass_before < top_p[:, None]) | (top_p >= 1)[:, None]
        keep[:, 0] = True
    keep_by_id = torch.zeros_like(keep).scatter_(-1, token_ids, keep)
    return logits.masked_fill(~keep_by_id, -torch.inf)


# docs: truncation end
