"""How evenly a router spreads tokens over experts: as a loss for training, as figures after it.

Fedus, Zoph and Shazeer (2021, "Switch Transformers", arXiv 2101.03961, equations 4 to 6) add
α · N · Σ fᵢ · Pᵢ to the loss for each layer, where N is the number of experts, fᵢ the share of
tokens that expert i receives and Pᵢ the mean probability that the router gives it; they try α from
10⁻⁵ to 10⁻¹ and take 10⁻². Counting has no gradient; Pᵢ has,
so the loss lowers the probability of an expert in proportion to its load. For more than one expert
a token this follows `load_balancing_loss_func` of transformers' Mixtral and Qwen3-MoE: fᵢ counts
every expert that a token takes, so the loss of an even load is k, not 1, and a weight means here
what `router_aux_loss_coef` means there. That function pools the layers before it multiplies, so
that one layer's excess may cancel another's; here each layer has its own loss, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from moe_decoder import MoEDecoder, Routing
from torch import Tensor


def balance_loss(routing: Routing) -> Tensor:
    """Returns N · Σ fᵢ · Pᵢ of one layer over all its tokens, before the weight α."""
    probabilities, chosen = routing
    share = chosen.float().flatten(0, -2).mean(0)  # sums to the experts a token takes
    mean = probabilities.flatten(0, -2).mean(0)
    return share.shape[0] * (share * mean).sum()


@torch.inference_mode()
def tokens_per_expert(
    model: MoEDecoder, documents: Sequence[Sequence[int]], *, window: int = 2048, batch: int = 16
) -> Tensor:
    """Counts on the CPU the tokens that each expert of each layer receives.

    Args:
        documents: token ids of each text; the first id of each is the separator. A text longer
            than `window` tokens is cut into pieces that are read on their own.
        batch: pieces read at once; shorter ones are padded on the right, which a causal model
            cannot see, and the padding is not counted.
    Returns:
        [layers, experts] int64; each row sums to tokens × experts a token.
    """
    device = model.model.norm.weight.device
    pieces = [text[at : at + window] for text in documents for at in range(0, len(text), window)]
    pieces.sort(key=len)
    counts = torch.zeros(model.shape.num_hidden_layers, model.shape.num_experts, dtype=torch.int64)
    for first in range(0, len(pieces), batch):
        group = pieces[first : first + batch]
        ids = torch.zeros(len(group), len(group[-1]), dtype=torch.long)
        real = torch.zeros(len(group), len(group[-1]), 1, dtype=torch.bool)
        for row, piece in enumerate(group):
            ids[row, : len(piece)] = torch.tensor(piece)
            real[row, : len(piece)] = True
        with torch.autocast(device.type, torch.bfloat16):
            _, routings = model.routed(ids.to(device))
        for layer, routing in enumerate(routings):
            counts[layer] += (routing.chosen & real.to(device)).sum((0, 1)).cpu()
    return counts


def max_over_mean(counts: Tensor) -> Tensor:
    """Returns the fullest expert's load over the mean load of each layer; counts: [layers, E]."""
    loads = counts.double()
    return loads.amax(-1) / loads.mean(-1)


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Returns the total variation distance of two loads a layer, 0 (equal) to 1 (disjoint)."""
    shares = [counts.double() / counts.sum(-1, keepdim=True) for counts in (one, other)]
    return 0.5 * (shares[0] - shares[1]).abs().sum(-1)
