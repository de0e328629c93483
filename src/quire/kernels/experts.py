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
from quire.kernels.expert_tiles import PairTile, pair_tile, prefers_pairs
from quire.kernels.runtime import jit, serves, starts_early, tl, triton

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
    if not prefers_pairs(*ids.shape):
        return grouped_experts(x, ids, weights, slots, gate_up, down)
    size, itemsize = down.shape[2], x.dtype.itemsize
    return paired_experts(
        x,
        ids,
        weights,
        slots,
        gate_up,
        down,
        pair_tile(2, x.shape[1], itemsize),
        pair_tile(1, ids.shape[1] * size, itemsize),
    )


def paired_experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    slots: Tensor,
    gate_up: Tensor,
    down: Tensor,
    first: PairTile,
    second: PairTile,
) -> Tensor:
    """`apply_experts` by pairs: gate and up with one tile, down with another."""
    num_tokens, top_k = ids.shape
    num_slots, hidden, size = down.shape
    hidden_states = x.new_empty(num_tokens * top_k, size)
    out = torch.empty_like(x)
    early = starts_early(x)
    _pair_gate_up_kernel[(num_tokens * top_k, triton.cdiv(size, first.outputs))](
        x,
        ids,
        slots,
        gate_up,
        hidden_states,
        hidden=hidden,
        size=size,
        num_slots=num_slots,
        top_k=top_k,
        block_outputs=first.outputs,
        block_depth=first.depth,
        early=early,
        num_warps=first.num_warps,
        launch_pdl=early,
    )
    _pair_down_kernel[(num_tokens, triton.cdiv(hidden, second.outputs))](
        hidden_states,
        ids,
        weights,
        slots,
        down,
        out,
        hidden=hidden,
        size=size,
        num_slots=num_slots,
        top_k=top_k,
        block_outputs=second.outputs,
        block_depth=second.depth,
        early=early,
        num_warps=second.num_warps,
        launch_pdl=early,
    )
    return out


@jit
def _pair_gate_up_kernel(
    x,
    ids,
    slots,
    gate_up,
    hidden_states,
    hidden: tl.constexpr,
    size: tl.constexpr,
    num_slots: tl.constexpr,
    top_k: tl.constexpr,
    block_outputs: tl.constexpr,
    block_depth: tl.constexpr,
    early: tl.constexpr,
):
    """One program a pair and `block_outputs` rows each of gate and up, which are all in flight.

    The next kernel may start only when this one has seen the router end, so that it may read
    what the router wrote without waiting.
    """
    pair = tl.program_id(0)
    output = tl.program_id(1) * block_outputs + tl.arange(0, block_outputs)
    k = tl.arange(0, block_depth)[None, :]
    if early:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    slot = tl.load(slots + tl.load(ids + pair)).to(tl.int64)
    needed = (output < size) & (slot < num_slots)
    gate_at = gate_up + (slot * 2 * size + output)[:, None] * hidden + k
    up_at = gate_at + size * hidden
    gates, ups = (), ()
    for start in tl.static_range(0, hidden, block_depth):
        mask = needed[:, None] & (start + k < hidden)
        gate = tl.load(gate_at + start, mask, other=0.0, eviction_policy="evict_first")
        up = tl.load(up_at + start, mask, other=0.0, eviction_policy="evict_first")
        gates += (gate,)  # type: ignore[assignment]
        ups += (up,)  # type: ignore[assignment]
    gate_sum = tl.zeros((block_outputs, block_depth), tl.float32)
    up_sum = tl.zeros((block_outputs, block_depth), tl.float32)
    row = x + (pair // top_k).to(tl.int64) * hidden
    for i in tl.static_range(len(gates)):
        column = i * block_depth + k
        values = tl.load(row + column, column < hidden, other=0.0).to(tl.float32)
        gate_sum += gates[i].to(tl.float32) * values
        up_sum += ups[i].to(tl.float32) * values
    gate = tl.sum(gate_sum, axis=1)
    value = gate * tl.sigmoid(gate) * tl.sum(up_sum, axis=1)
    place = hidden_states + pair.to(tl.int64) * size + output
    tl.store(place, value.to(hidden_states.dtype.element_ty), output < size)


@jit
def _pair_down_kernel(
    hidden_states,
    ids,
    weights,
    slots,
    down,
    out,
    hidden: tl.constexpr,
    size: tl.constexpr,
    num_slots: tl.constexpr,
    top_k: tl.constexpr,
    block_outputs: tl.constexpr,
    block_depth: tl.constexpr,
    early: tl.constexpr,
):
    """One program a token and `block_outputs` outputs: its experts' rows, summed one by one.

    The weights are in flight before the program waits for what they are multiplied by. What
    the router wrote is read past the first-level cache, which may hold an earlier layer's.
    """
    token = tl.program_id(0)
    output = tl.program_id(1) * block_outputs + tl.arange(0, block_outputs)
    k = tl.arange(0, block_depth)[None, :]
    chunks: tl.constexpr = (size + block_depth - 1) // block_depth
    tiles, scales = (), ()
    for j in tl.static_range(top_k):
        expert = tl.load(ids + token * top_k + j, cache_modifier=".cg")
        slot = tl.load(slots + expert).to(tl.int64)
        needed = (output < hidden) & (slot < num_slots)
        scale = tl.load(weights + token * top_k + j, cache_modifier=".cg")
        scales += (tl.where(slot < num_slots, scale, 0.0),)  # type: ignore[assignment]
        row = down + (slot * hidden + output)[:, None] * size + k
        for i in tl.static_range(chunks):
            mask = needed[:, None] & (i * block_depth + k < size)
            tile = tl.load(row + i * block_depth, mask, other=0.0, eviction_policy="evict_first")
            tiles += (tile,)  # type: ignore[assignment]
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    total = tl.zeros((block_outputs, block_depth), tl.float32)
    for j in tl.static_range(top_k):
        part = tl.zeros((block_outputs, block_depth), tl.float32)
        place = hidden_states + (token * top_k + j).to(tl.int64) * size
        for i in tl.static_range(chunks):
            column = i * block_depth + k
            values = tl.load(place + column, column < size, other=0.0).to(tl.float32)
            part += tiles[j * chunks + i].to(tl.float32) * values
        total += part * scales[j]
    result = tl.sum(total, axis=1)
    place = out + token.to(tl.int64) * hidden + output
    tl.store(place, result.to(out.dtype.element_ty), output < hidden)
