"""The gate of quire-mini-moe: what it must show before it ships, as one record.

The book uses the model to show skewed routing, so a good loss is not enough:

1. Held-out bits per byte below `MAX_BITS`, the figure of quire-mini-draft, which reads about as
   many weights a token.
2. The fullest expert of a layer receives at least `MIN_SKEW` times the mean load, as a mean over
   the layers, on code and on prose.
3. The load on code and the load on prose differ at least `MIN_CONTRAST` times as much as two
   halves of the same sort differ, as means over the layers.

A router that learned nothing passes the second: random weights are uneven too. It fails the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from balance import distance, max_over_mean, tokens_per_expert
from moe_decoder import MoEDecoder

MAX_BITS = 0.80
MIN_SKEW = 1.3
MIN_CONTRAST = 2.0
Documents = Sequence[Sequence[int]]


def gate(
    model: MoEDecoder, heldout_bits_per_byte: float, *, code: Documents, prose: Documents
) -> dict[str, Any]:
    """Returns the loads, the figures that follow from them, and the three verdicts.

    Args:
        code, prose: token ids of the texts of each sort, at least two of each.
    Returns:
        `loads` is the tokens of each expert by sort and layer. `distance_code_prose` is the total
        variation distance a layer; `distance_halves` is that between the texts at even and at odd
        places of one sort, which is what different texts of one sort differ by.
    """
    halves = {
        sort: [tokens_per_expert(model, texts[start::2]) for start in (0, 1)]
        for sort, texts in (("code", code), ("prose", prose))
    }
    loads = {sort: even + odd for sort, (even, odd) in halves.items()}
    skew = {sort: max_over_mean(counts) for sort, counts in loads.items()}
    between = distance(loads["code"], loads["prose"])
    within = {sort: distance(even, odd) for sort, (even, odd) in halves.items()}
    noise = max(float(value.mean()) for value in within.values())
    verdicts = {
        "bits_per_byte": heldout_bits_per_byte < MAX_BITS,
        "skew": all(float(ratio.mean()) >= MIN_SKEW for ratio in skew.values()),
        "code_unlike_prose": float(between.mean()) > MIN_CONTRAST * noise,
    }
    return {
        "passes": all(verdicts.values()),
        "verdicts": verdicts,
        "heldout_bits_per_byte": heldout_bits_per_byte,
        "routed_tokens": {
            sort: int(counts[0].sum()) // model.shape.num_experts_per_tok
            for sort, counts in loads.items()
        },
        "max_over_mean": {sort: _rounded(ratio) for sort, ratio in skew.items()},
        "fullest_expert": {sort: counts.argmax(-1).tolist() for sort, counts in loads.items()},
        "experts_without_tokens": {
            sort: (counts == 0).sum(-1).tolist() for sort, counts in loads.items()
        },
        "distance_code_prose": _rounded(between),
        "distance_halves": {sort: _rounded(value) for sort, value in within.items()},
        "loads": {sort: counts.tolist() for sort, counts in loads.items()},
    }


def _rounded(values: Any) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
