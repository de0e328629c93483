"""Tiles of a product that several programs share: each takes some columns, the last adds up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.kernels.runtime import jit, tl

SHORTEST = 64  # outputs of a program, and rows where there are several programs of rows
MOST_ROWS = 512  # of a product whose tiles are shared
# A number of rows of each size that some table of tiles knows (quire.runner.warm_up runs them).
EACH_ROWS = (17, 33, 65, 129, 257, 512, 1024, 1025)


@dataclass(frozen=True)
class Tile:
    """What a program computes, and how many programs share the columns of a tile."""

    rows: int  # of x
    outputs: int
    split: int
    num_warps: int
    num_stages: int


def make_counters(outputs: int, device: torch.device) -> Tensor:
    """Return a counter for each tile, int32, of the parts that are done; 0 between products."""
    most = -(-outputs // SHORTEST) * (MOST_ROWS // SHORTEST)
    return torch.zeros(most, dtype=torch.int32, device=device)


def grid_of(tile: Tile, out: Tensor, most_parts: int) -> tuple[tuple[int, int, int], Tensor]:
    """Return a product's grid, and where the programs that share a tile leave their parts.

    Args:
        out: [rows, N], what the product fills.
        most_parts: into which the columns can be split.
    """
    num_rows, size = out.shape
    split = min(tile.split, most_parts)
    parts = out if split == 1 else out.new_empty(split, num_rows, size, dtype=torch.float32)
    return (-(-size // tile.outputs), -(-num_rows // tile.rows), split), parts


@jit
def finish_tile(
    total,
    bias,
    out,
    parts,
    counters,
    output,
    row,
    num_rows,
    size,
    adds_bias: tl.constexpr,
    split: tl.constexpr,
):
    """Store a tile, float32; of a split one its part, and the last program to end their sum.

    The parts are added in their order, whoever came last, so that a product repeats its bits.
    `output` [O, 1] and `row` [1, R] are the tile's; `num_rows` may be a constant, where it is 1.
    """
    stored = (output < size) & (row < num_rows)
    done = True
    if split > 1:
        mine = row + tl.program_id(2) * num_rows
        tl.store(parts + mine.to(tl.int64) * size + output, total, stored)
        tl.debug_barrier()
        counter = counters + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        done = tl.atomic_add(counter, 1, sem="acq_rel") == split - 1
        if done:
            total = tl.zeros_like(total)
            for part in tl.static_range(split):
                place = parts + (row + part * num_rows).to(tl.int64) * size + output
                total += tl.load(place, stored, other=0.0)
            tl.store(counter, 0)
    if done:
        if adds_bias:
            total += tl.load(bias + output, output < size, other=0.0).to(tl.float32)
        tl.store(out + row.to(tl.int64) * size + output, total.to(out.dtype.element_ty), stored)
