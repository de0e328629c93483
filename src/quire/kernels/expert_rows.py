"""The experts of a mixture over very many tokens, in products that arithmetic comes to bind.

Here pairs are the left operand of `tl.dot`: four warps take 64 of them, and up to 256 outputs at
once as the right one. Tiles of weights come by TMA (in Triton a tensor descriptor): one
instruction copies a tile, and no thread computes addresses. Rows of x are gathered, so each thread
copies its part of them.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from quire.kernels.expert_tiles import GroupTile
from quire.kernels.runtime import HAS_DESCRIPTORS, capability, jit, starts_early, tl

if HAS_DESCRIPTORS:
    from triton.tools.tensor_descriptor import TensorDescriptor


def gate_up_of_rows(
    x: Tensor,
    order: Tensor,
    starts: Tensor,
    gate_up: Tensor,
    out: Tensor,
    top_k: int,
    tile: GroupTile,
) -> None:
    """Write silu(gate · x) · (up · x) of each pair into `out`, [P, I], in the order of the slots.

    The arguments are those of `quire.kernels.expert_groups.tiled_experts`, with the pairs in order;
    rows of `gate_up` are multiples of 16 bytes.
    """
    num_slots, both, hidden = gate_up.shape
    _rows_gate_up_kernel[tile.grid(both // 2, num_slots)](
        x,
        order,
        starts,
        TensorDescriptor.from_tensor(gate_up.flatten(0, 1), [tile.outputs, tile.depth]),
        out,
        hidden=hidden,
        size=both // 2,
        top_k=top_k,
        **_fitted(tile, x).options(starts_early(x)),
    )


def down_of_rows(
    hidden_states: Tensor,
    order: Tensor,
    starts: Tensor,
    weights: Tensor,
    down: Tensor,
    parts: Tensor,
    tile: GroupTile,
) -> None:
    """Write down · hidden of each pair, times its weight, into `parts`, [P, H], by the pair.

    The arguments are as in `gate_up_of_rows`; rows of `down` are multiples of 16 bytes.
    """
    num_slots, hidden, size = down.shape
    _rows_down_kernel[tile.grid(hidden, num_slots)](
        TensorDescriptor.from_tensor(hidden_states, [tile.rows, tile.depth]),
        order,
        starts,
        weights,
        TensorDescriptor.from_tensor(down.flatten(0, 1), [tile.outputs, tile.depth]),
        parts,
        hidden=hidden,
        size=size,
        **_fitted(tile, hidden_states).options(starts_early(hidden_states)),
    )


def _fitted(tile: GroupTile, x: Tensor) -> GroupTile:
    """Return a tile with as many stages as there is room for: an A100 has 163 KB, Hopper 227."""
    if capability(x.device) >= (9, 0):
        return tile
    return replace(tile, num_stages=min(tile.num_stages, 3))


@jit
def _rows_gate_up_kernel(
    x,
    order,
    starts,
    gate_up,  # a descriptor of tiles [block_outputs, block_depth]
    hidden_states,
    hidden: tl.constexpr,
    size: tl.constexpr,
    top_k: tl.constexpr,
    block_rows: tl.constexpr,
    block_outputs: tl.constexpr,
    block_depth: tl.constexpr,
    early: tl.constexpr,
):
    """One program a share of a slot's pairs and `block_outputs` rows each of gate and up."""
    slot = tl.program_id(2)
    first_output = tl.program_id(1) * block_outputs
    output = first_output + tl.arange(0, block_outputs)[None, :]
    k = tl.arange(0, block_depth)[None, :]
    gate_at = slot * 2 * size + first_output
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    begin = tl.load(starts + slot) + tl.program_id(0) * block_rows
    end = tl.load(starts + slot + 1)
    for first in range(begin, end, tl.num_programs(0) * block_rows):
        row = first + tl.arange(0, block_rows)[:, None]
        token = tl.load(order + row, row < end, other=0) // top_k
        values_at = x + token.to(tl.int64) * hidden + k
        gate = tl.zeros((block_rows, block_outputs), tl.float32)
        up = tl.zeros((block_rows, block_outputs), tl.float32)
        for start in range(0, hidden, block_depth):
            gates = gate_up.load([gate_at, start])
            ups = gate_up.load([gate_at + size, start])
            if hidden % block_depth == 0:
                values = tl.load(values_at + start)
            else:  # behind the last column TMA gives zeros, too
                values = tl.load(values_at + start, start + k < hidden, other=0.0)
            gate = tl.dot(values, gates.T, gate)
            up = tl.dot(values, ups.T, up)
        value = gate * tl.sigmoid(gate) * up
        place = hidden_states + row.to(tl.int64) * size + output
        stored = (output < size) & (row < end)
        tl.store(place, value.to(hidden_states.dtype.element_ty), stored)


@jit
def _rows_down_kernel(
    hidden_states,  # a descriptor of tiles [block_rows, block_depth]
    order,
    starts,
    weights,
    down,  # a descriptor of tiles [block_outputs, block_depth]
    parts,
    hidden: tl.constexpr,
    size: tl.constexpr,
    block_rows: tl.constexpr,
    block_outputs: tl.constexpr,
    block_depth: tl.constexpr,
    early: tl.constexpr,
):
    """One program a share of a slot's pairs and `block_outputs` outputs, times their weights.

    A tile's last rows may be another slot's: they are multiplied and not stored.
    """
    slot = tl.program_id(2)
    first_output = tl.program_id(1) * block_outputs
    output = first_output + tl.arange(0, block_outputs)[None, :]
    down_at = slot * hidden + first_output
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    begin = tl.load(starts + slot) + tl.program_id(0) * block_rows
    end = tl.load(starts + slot + 1)
    for first in range(begin, end, tl.num_programs(0) * block_rows):
        row = first + tl.arange(0, block_rows)[:, None]
        total = tl.zeros((block_rows, block_outputs), tl.float32)
        for start in range(0, size, block_depth):
            tile = down.load([down_at, start])
            values = hidden_states.load([first, start])
            total = tl.dot(values, tile.T, total)
        pair = tl.load(order + row, row < end, other=0)
        total *= tl.load(weights + pair, row < end, other=0.0)
        place = parts + pair.to(tl.int64) * hidden + output
        stored = (output < hidden) & (row < end)
        tl.store(place, total.to(parts.dtype.element_ty), stored)
