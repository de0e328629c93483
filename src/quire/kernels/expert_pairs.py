"""The experts of a mixture over few tokens: each pair of token and expert by itself.

A program holds rows of an expert's weight in registers, all of them in flight at once, as in
`quire.kernels.linear`. The router's choice is its own kernel; or each program finds its token's
experts among the logits, which is a launch less and, in each program, a few maxima more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels.expert_tiles import PairTile
from quire.kernels.router import expert_of, largest_logit, logit_of, ranked_keys, without_key
from quire.kernels.runtime import jit, starts_early, tl, triton


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
    top_k = ids.shape[1]
    return _launch_pairs(x, ids, weights, slots, gate_up, down, first, second, top_k, 0, False)


def routed_pairs(
    x: Tensor,
    logits: Tensor,
    top_k: int,
    renormalize: bool,
    slots: Tensor,
    gate_up: Tensor,
    down: Tensor,
    first: PairTile,
    second: PairTile,
) -> Tensor:
    """`route_experts` by pairs: every program finds its experts among the token's logits."""
    size = logits.shape[1]
    return _launch_pairs(
        x, logits, logits, slots, gate_up, down, first, second, top_k, size, renormalize
    )


def _launch_pairs(
    x: Tensor,
    choices: Tensor,
    weights: Tensor,
    slots: Tensor,
    gate_up: Tensor,
    down: Tensor,
    first: PairTile,
    second: PairTile,
    top_k: int,
    num_experts: int,
    renormalize: bool,
) -> Tensor:
    """Run both products; `num_experts` says how many logits a token has, 0: choices are ids."""
    num_tokens, (num_slots, hidden, size) = len(x), down.shape
    hidden_states = x.new_empty(num_tokens * top_k, size)
    out = torch.empty_like(x)
    early = starts_early(x)
    sizes = {"hidden": hidden, "size": size, "num_slots": num_slots, "top_k": top_k}
    routing = {
        "num_experts": num_experts,
        "block_experts": triton.next_power_of_2(max(num_experts, 1)),
    }
    _pair_gate_up_kernel[(num_tokens * top_k, triton.cdiv(size, first.outputs))](
        x,
        choices,
        slots,
        gate_up,
        hidden_states,
        **sizes,
        **routing,
        block_outputs=first.outputs,
        block_depth=first.depth,
        early=early,
        num_warps=first.num_warps,
        launch_pdl=early,
    )
    _pair_down_kernel[(num_tokens, triton.cdiv(hidden, second.outputs))](
        hidden_states,
        choices,
        weights,
        slots,
        down,
        out,
        **sizes,
        **routing,
        renormalize=renormalize,
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
    choices,
    slots,
    gate_up,
    hidden_states,
    hidden: tl.constexpr,
    size: tl.constexpr,
    num_slots: tl.constexpr,
    top_k: tl.constexpr,
    num_experts: tl.constexpr,
    block_experts: tl.constexpr,
    block_outputs: tl.constexpr,
    block_depth: tl.constexpr,
    early: tl.constexpr,
):
    """One program a pair and `block_outputs` rows each of gate and up, which are all in flight.

    The next kernel may start only when this one has seen the router end, so that it may read
    what the router wrote without waiting. `choices` are the pairs' experts; or, where there are
    `num_experts` logits a token, those, and the program takes the largest until it has its own.
    """
    pair = tl.program_id(0)
    output = tl.program_id(1) * block_outputs + tl.arange(0, block_outputs)
    k = tl.arange(0, block_depth)[None, :]
    if early:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if num_experts == 0:
        expert = tl.load(choices + pair)
    else:
        key, _ = ranked_keys(choices, pair // top_k, num_experts, block_experts)
        best = tl.max(key)
        for _ in range(pair % top_k):
            key = without_key(key, best)
            best = tl.max(key)
        expert = expert_of(best, choices)
    slot = tl.load(slots + expert).to(tl.int64)
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
    choices,
    weights,
    slots,
    down,
    out,
    hidden: tl.constexpr,
    size: tl.constexpr,
    num_slots: tl.constexpr,
    top_k: tl.constexpr,
    num_experts: tl.constexpr,
    block_experts: tl.constexpr,
    renormalize: tl.constexpr,
    block_outputs: tl.constexpr,
    block_depth: tl.constexpr,
    early: tl.constexpr,
):
    """One program a token and `block_outputs` outputs: its experts' rows, summed one by one.

    The weights are in flight before the program waits for what they are multiplied by. What
    the router wrote is read past the first-level cache, which may hold an earlier layer's. Of
    `num_experts` logits a token the program takes the largest, one after the other, and loads
    an expert's rows as soon as it has found it.
    """
    token = tl.program_id(0)
    output = tl.program_id(1) * block_outputs + tl.arange(0, block_outputs)
    k = tl.arange(0, block_depth)[None, :]
    chunks: tl.constexpr = (size + block_depth - 1) // block_depth
    tiles, scales = (), ()
    kept = 1.0  # what a token's scales are divided by
    if num_experts > 0:
        key, logit = ranked_keys(choices, token, num_experts, block_experts)
        largest = largest_logit(logit)
        sum_of_all = tl.sum(tl.exp(logit - largest))
        if renormalize:
            kept = 0.0
    for j in tl.static_range(top_k):
        if num_experts == 0:
            expert = tl.load(choices + token * top_k + j, cache_modifier=".cg")
            scale = tl.load(weights + token * top_k + j, cache_modifier=".cg")
        else:
            best = tl.max(key)
            key = without_key(key, best)
            expert = expert_of(best, choices)
            scale = tl.exp(logit_of(best, choices) - largest) / sum_of_all
            if renormalize:
                kept += scale
        slot = tl.load(slots + expert).to(tl.int64)
        needed = (output < hidden) & (slot < num_slots)
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
    result = tl.sum(total, axis=1) / kept
    place = out + token.to(tl.int64) * hidden + output
    tl.store(place, result.to(out.dtype.element_ty), output < hidden)
