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

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from balance import distance, max_over_mean, tokens_per_expert
from moe_decoder import MoEDecoder
from torch import Tensor

MAX_BITS = 0.80
MIN_SKEW = 1.3
MIN_CONTRAST = 2.0
Documents = Sequence[Sequence[int]]


def figures(
    count: Callable[[Documents], Tensor], *, code: Documents, prose: Documents
) -> dict[str, Any]:
    """Returns the loads of a router and the figures that follow from them.

    Args:
        count: texts → tokens of each expert, [layers, experts].
        code, prose: token ids of the texts of each sort, at least two of each.
    Returns:
        `loads` is the tokens of each expert by sort and layer. `distance_code_prose` is the total
        variation distance a layer; `distance_halves` is that between the texts at even and at odd
        places of one sort, which is what different texts of one sort differ by.
    """
    halves = {
        sort: [count(texts[start::2]) for start in (0, 1)]
        for sort, texts in (("code", code), ("prose", prose))
    }
    loads = {sort: even + odd for sort, (even, odd) in halves.items()}
    return {
        "max_over_mean": {sort: _rounded(max_over_mean(counts)) for sort, counts in loads.items()},
        "fullest_expert": {sort: counts.argmax(-1).tolist() for sort, counts in loads.items()},
        "experts_without_tokens": {
            sort: (counts == 0).sum(-1).tolist() for sort, counts in loads.items()
        },
        "distance_code_prose": _rounded(distance(loads["code"], loads["prose"])),
        "distance_halves": {
            sort: _rounded(distance(even, odd)) for sort, (even, odd) in halves.items()
        },
        "loads": {sort: counts.tolist() for sort, counts in loads.items()},
    }


def gate(
    model: MoEDecoder, heldout_bits_per_byte: float, *, code: Documents, prose: Documents
) -> dict[str, Any]:
    """Returns the figures of the model's router and the three verdicts; texts as for `figures`."""
    found = figures(partial(tokens_per_expert, model), code=code, prose=prose)
    noise = max(fmean(values) for values in found["distance_halves"].values())
    verdicts = {
        "bits_per_byte": heldout_bits_per_byte < MAX_BITS,
        "skew": all(fmean(ratios) >= MIN_SKEW for ratios in found["max_over_mean"].values()),
        "code_unlike_prose": fmean(found["distance_code_prose"]) > MIN_CONTRAST * noise,
    }
    return {
        "passes": all(verdicts.values()),
        "verdicts": verdicts,
        "heldout_bits_per_byte": heldout_bits_per_byte,
        "routed_tokens": {
            sort: sum(counts[0]) // model.shape.num_experts_per_tok
            for sort, counts in found["loads"].items()
        },
        **found,
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
