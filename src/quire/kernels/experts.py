"""The experts of a mixture: every token through those that it was sent to, summed by weight.

A step of few tokens is bound by reading the experts that it touches, and hardly two tokens
share one: each pair of token and expert is then a product of its own, as a single row is in
`quire.kernels.linear`. Of more tokens the pairs are put in order of their experts, and those
of one expert are multiplied together, by the matrix units.

No sum depends on the order in which programs end: a token's experts are added in the order in
which the router chose them, whoever else is in the step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.kernels.expert_groups import grouped_experts
from quire.kernels.expert_pairs import paired_experts, routed_pairs
from quire.kernels.expert_tiles import chooses_in_pairs, pair_tiles, prefers_pairs
from quire.kernels.router import choose_experts
from quire.kernels.runtime import serves

FEW_PAIRS = 8  # on a CPU, up to which sorting them costs more than it saves


def apply_experts(
    x: Tensor, ids: Tensor, weights: Tensor, slots: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Return Σ_j weights[t, j] · down_e(silu(gate_e(x[t])) · up_e(x[t])), e = ids[t, j], [T, H].

    Args:
        x: [T, H].
        ids: int32 [T, k], different experts for each token.
        weights: float32 [T, k].
        slots: int32 [E]: expert e has the weights `gate_up[slots[e]]`; S where it has none
            here, and then it adds nothing.
        gate_up: [S, 2 · I, H], the rows of gate, then those of up.
        down: [S, H, I].
    """
    if serves(x):
        return apply_experts_triton(x, ids, weights, slots, gate_up, down)
    return apply_experts_torch(x, ids, weights, slots, gate_up, down)


def apply_experts_torch(
    x: Tensor, ids: Tensor, weights: Tensor, slots: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """`apply_experts` in torch: an expert's tokens are multiplied together, expert by expert.

    It needs the experts' numbers on the host, so no graph can capture it. With 16 experts of
    128 × 64 on two CPU threads, one token took 50 µs pair by pair and 260 µs sorted.
    """
    num_tokens, top_k = ids.shape
    num_slots = len(gate_up)
    slot = slots[ids.flatten()]
    order = None
    if num_tokens * top_k <= FEW_PAIRS:
        groups = [(s, x[i // top_k, None]) for i, s in enumerate(slot.tolist())]
    else:
        order = slot.argsort(stable=True)
        sizes = torch.bincount(slot, minlength=num_slots + 1).tolist()
        groups = list(enumerate(x[order // top_k].split(sizes)))
    parts = [
        _gated_mlp(rows, gate_up[s], down[s]) if s < num_slots else torch.zeros_like(rows)
        for s, rows in groups
        if len(rows)
    ]
    out = torch.cat(parts) if parts else x.new_empty(x.shape)
    if order is not None:
        out = torch.empty_like(out).index_copy_(0, order, out)
    pairs = out.view(num_tokens, top_k, x.shape[1]).float()
    return torch.bmm(weights[:, None], pairs)[:, 0].to(x.dtype)


def _gated_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    size = down.shape[1]
    both = F.linear(x, gate_up)
    return F.linear(F.silu(both.narrow(1, 0, size)).mul_(both.narrow(1, size, size)), down)


def apply_experts_triton(
    x: Tensor, ids: Tensor, weights: Tensor, slots: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """`apply_experts` in two kernels, or with more tokens in four; all are contiguous."""
    num_tokens, top_k = ids.shape
    if not prefers_pairs(num_tokens, top_k, len(slots)):
        return grouped_experts(x, ids, weights, slots, gate_up, down)
    tiles = pair_tiles(top_k, down)
    return paired_experts(x, ids, weights, slots, gate_up, down, *tiles)


def route_experts(
    x: Tensor,
    logits: Tensor,
    top_k: int,
    renormalize: bool,
    slots: Tensor,
    gate_up: Tensor,
    down: Tensor,
) -> Tensor:
    """Return what `choose_experts` and behind it `apply_experts` make of x, [T, H].

    Args:
        x: [T, H].
        logits: [T, E] of the router.
        top_k, renormalize: as `choose_experts` takes them.
        slots, gate_up, down: as `apply_experts` takes them.
    """
    if serves(x) and chooses_in_pairs(len(x), top_k, len(slots)):
        tiles = pair_tiles(top_k, down)
        return routed_pairs(x, logits, top_k, renormalize, slots, gate_up, down, *tiles)
    ids, weights = choose_experts(logits, top_k, renormalize)
    return apply_experts(x, ids, weights, slots, gate_up, down)
