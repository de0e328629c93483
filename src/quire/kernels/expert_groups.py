"""The experts of a mixture over many tokens: the pairs of one expert are multiplied together.

Weights are the left operand of `tl.dot`, as in `quire.kernels.skinny_matrix`: an expert often
has few pairs, and the matrix units take the right operand in columns of 8. Where every expert has
many, `quire.kernels.expert_rows` multiplies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels.expert_rows import down_of_rows, gate_up_of_rows
from quire.kernels.expert_tiles import GroupTile, group_tiles
from quire.kernels.grouping import group_pairs_triton
from quire.kernels.runtime import HAS_DESCRIPTORS, jit, starts_early, tl, triton


def grouped_experts(
    x: Tensor, ids: Tensor, weights: Tensor, slots: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """`quire.kernels.experts.apply_experts` by groups of pairs that share an expert."""
    num_tokens, top_k = ids.shape
    itemsize = x.dtype.itemsize
    aligned = HAS_DESCRIPTORS and all(n * itemsize % 16 == 0 for n in down.shape[1:])
    first, second = group_tiles(num_tokens, top_k, len(down), itemsize, aligned)
    return tiled_experts(x, ids, weights, slots, gate_up, down, first, second)


def tiled_experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    slots: Tensor,
    gate_up: Tensor,
    down: Tensor,
    first: GroupTile,
    second: GroupTile,
) -> Tensor:
    """`grouped_experts` with given tiles of gate and up, and of down; all are contiguous."""
    num_tokens, top_k = ids.shape
    num_slots, hidden, size = down.shape
    num_pairs = num_tokens * top_k
    order, starts = group_pairs_triton(ids, slots, num_slots)
    hidden_states = x.new_empty(num_pairs, size)
    parts = x.new_empty(num_pairs, hidden)
    early = starts_early(x)
    if first.rows_left:
        gate_up_of_rows(x, order, starts, gate_up, hidden_states, top_k, first)
    else:
        _group_gate_up_kernel[first.grid(size, num_slots)](
            x,
            order,
            starts,
            gate_up,
            hidden_states,
            hidden=hidden,
            size=size,
            top_k=top_k,
            **first.options(early),
        )
    if second.rows_left:
        down_of_rows(hidden_states, order, starts, weights, down, parts, second)
    else:
        _group_down_kernel[second.grid(hidden, num_slots)](
            hidden_states,
            order,
            starts,
            weights,
            down,
            parts,
            hidden=hidden,
            size=size,
            **second.options(early),
        )
    out = torch.empty_like(x)
    block = min(triton.next_power_of_2(hidden), 1024)
    _sum_kernel[(num_tokens, triton.cdiv(hidden, block))](
        parts,
        ids,
        slots,
        out,
        hidden=hidden,
        num_slots=num_slots,
        top_k=top_k,
        padded_k=triton.next_power_of_2(top_k),
        block=block,
        early=early,
        num_warps=4,
        launch_pdl=early,
    )
    return out


@jit
def _group_gate_up_kernel(
    x,
    order,
    starts,
    gate_up,
    hidden_states,
    hidden: tl.constexpr,
    size: tl.constexpr,
    top_k: tl.constexpr,
    block_rows: tl.constexpr,
    block_outputs: tl.constexpr,
    block_depth: tl.constexpr,
    early: tl.constexpr,
):
    """One program a share of a slot's pairs and `block_outputs` rows each of gate and up.

    The results lie in the order of the pairs' slots, so that the next product reads them as
    they come.
    """
    slot = tl.program_id(2)
    output = tl.program_id(1) * block_outputs + tl.arange(0, block_outputs)[:, None]
    k = tl.arange(0, block_depth)
    gate_at = gate_up + (slot.to(tl.int64) * 2 * size + output) * hidden + k[None, :]
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    begin = tl.load(starts + slot) + tl.program_id(0) * block_rows
    end = tl.load(starts + slot + 1)
    for first in range(begin, end, tl.num_programs(0) * block_rows):
        row = first + tl.arange(0, block_rows)
        token = tl.load(order + row, row < end, other=0) // top_k
        values_at = x + token.to(tl.int64)[None, :] * hidden + k[:, None]
        gate = tl.zeros((block_outputs, block_rows), tl.float32)
        up = tl.zeros((block_outputs, block_rows), tl.float32)
        for start in range(0, hidden, block_depth):
            inside = start + k < hidden
            mask = (output < size) & inside[None, :]
            gates = tl.load(gate_at + start, mask, other=0.0)
            ups = tl.load(gate_at + size * hidden + start, mask, other=0.0)
            mask = (row < end)[None, :] & inside[:, None]
            values = tl.load(values_at + start, mask, other=0.0)
            gate = tl.dot(gates, values, gate, input_precision="ieee")
            up = tl.dot(ups, values, up, input_precision="ieee")
        value = gate * tl.sigmoid(gate) * up
        place = hidden_states + row.to(tl.int64)[None, :] * size + output
        stored = (output < size) & (row < end)[None, :]
        tl.store(place, value.to(hidden_states.dtype.element_ty), stored)


@jit
def _group_down_kernel(
    hidden_states,
    order,
    starts,
    weights,
    down,
    parts,
    hidden: tl.constexpr,
    size: tl.constexpr,
    block_rows: tl.constexpr,
    block_outputs: tl.constexpr,
    block_depth: tl.constexpr,
    early: tl.constexpr,
):
    """One program a share of a slot's pairs and `block_outputs` outputs, times their weights.

    The results lie in the order of the pairs, so that those of a token are neighbours.
    """
    slot = tl.program_id(2)
    output = tl.program_id(1) * block_outputs + tl.arange(0, block_outputs)[:, None]
    k = tl.arange(0, block_depth)
    down_at = down + (slot.to(tl.int64) * hidden + output) * size + k[None, :]
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    begin = tl.load(starts + slot) + tl.program_id(0) * block_rows
    end = tl.load(starts + slot + 1)
    for first in range(begin, end, tl.num_programs(0) * block_rows):
        row = first + tl.arange(0, block_rows)
        values_at = hidden_states + row.to(tl.int64)[None, :] * size + k[:, None]
        total = tl.zeros((block_outputs, block_rows), tl.float32)
        for start in range(0, size, block_depth):
            inside = start + k < size
            mask = (output < hidden) & inside[None, :]
            tile = tl.load(down_at + start, mask, other=0.0)
            mask = (row < end)[None, :] & inside[:, None]
            values = tl.load(values_at + start, mask, other=0.0)
            total = tl.dot(tile, values, total, input_precision="ieee")
        pair = tl.load(order + row, row < end, other=0)
        total *= tl.load(weights + pair, row < end, other=0.0)[None, :]
        place = parts + pair.to(tl.int64)[None, :] * hidden + output
        stored = (output < hidden) & (row < end)[None, :]
        tl.store(place, total.to(parts.dtype.element_ty), stored)


@jit
def _sum_kernel(
    parts,
    ids,
    slots,
    out,
    hidden: tl.constexpr,
    num_slots: tl.constexpr,
    top_k: tl.constexpr,
    padded_k: tl.constexpr,
    block: tl.constexpr,
    early: tl.constexpr,
):
    """One program a token and `block` outputs: the parts of its pairs that have a slot."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    place = tl.arange(0, padded_k)
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    expert = tl.load(ids + token * top_k + place, place < top_k, other=0)
    counts = (tl.load(slots + expert) < num_slots) & (place < top_k)
    rows = parts + (token * top_k + place)[:, None] * hidden + column[None, :]
    values = tl.load(rows, counts[:, None] & (column < hidden)[None, :], other=0.0)
    total = tl.sum(values.to(tl.float32), axis=0)
    tl.store(out + token * hidden + column, total.to(out.dtype.element_ty), column < hidden)
