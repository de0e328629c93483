"""The next token of each row, chosen on the device without a sort and without the host.

A sort of 151,936 logits a row costs more than the model's layers of a small model. Which
tokens stay is a threshold, and a threshold is found by bisection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels.runtime import serves
from quire.sampling.noise import Purpose, exponential
from quire.sampling.processors import apply_min_p, apply_temperature, apply_top_k_top_p


def greedy(logits: Tensor) -> Tensor:
    """Return the id of each row's largest logit, the lowest where several are; int64 [R]."""
    return greedy_torch(logits)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """Draw a token for each row; returns int64 [R].

    Logits are divided by the temperature, then min-p, top-k and top-p remove tokens in this
    order, as in `quire.sampling.processors`; the draw is `quire.sampling.noise`'s race.

    Args:
        logits: [R, V], of any floating dtype; the arithmetic is float32.
        temperature: float32 [R]; 0 takes the largest logit, whatever the rest says.
        top_k: int64 [R], 0 keeps all; of equal logits at the edge the lower ids stay.
        top_p: float32 [R], 1 keeps all.
        min_p: float32 [R], 0 keeps all.
        seeds, positions: int64 [R], the keys of the noise.
    """
    return sample_torch(logits, temperature, top_k, top_p, min_p, seeds, positions)


def greedy_torch(logits: Tensor) -> Tensor:
    """`greedy` in torch."""
    return logits.argmax(dim=-1)


def sample_torch(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """`sample` in torch."""
    largest = logits.argmax(dim=-1)
    scaled = apply_min_p(apply_temperature(logits.float(), temperature), min_p)
    kept = apply_top_k_top_p(scaled, top_k, top_p)
    race = exponential(seeds, positions, Purpose.TOKEN, width=logits.shape[-1])
    # argmax(p / E), in logarithms so that a low temperature cannot underflow.
    drawn = (kept - race.log()).argmax(dim=-1)
    return torch.where(temperature == 0, largest, drawn)
