"""How the kernels of `quire.kernels.experts` cut their products into programs.

The tiles are the best of a sweep on an H200: 128 experts of 2,048 by 768, of which a token meets 8,
the form of Qwen3-30B-A3B. Nothing depends on which experts are chosen, only on the number of
tokens: a captured step replays one grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Pairs of token and expert up to which each is multiplied by itself. With 8 of 128 experts a token,
# 1, 2, 3 and 4 tokens take 22.6, 46.4, 63.2 and 80.1 us by pairs, and 33.7, 48.5, 67.8 and 77.5 in
# groups. With fewer experts tokens share more of them, and pairs read what is shared again: of 8
# experts 12 tokens with 2 each would read 24. So the pairs of several tokens are half as many as
# the experts at most, a cautious bound: with so few experts the two ways were not timed.
MOST_PAIRS = 24
# Pairs up to which their programs find a token's experts themselves, which spares the router's
# kernel: at most MOST_PAIRS, and 0 for never. Choice and products of 1, 2 and 3 tokens take 22.9,
# 41.7 and 59.5 us so, 24.8, 54.7 and 78.6 with a kernel for the choice (experts-h200); no captured
# step has three.
CHOICE_PAIRS = 16
MEANS = (12, 32, 96)  # pairs of a group, up to which a tile of `group_tiles` serves
REGISTER_BYTES = 96 * 4  # of weights that a thread may hold


@dataclass(frozen=True)
class PairTile:
    """A program of a product by pairs: rows of the weight, all of their columns in registers."""

    outputs: int
    depth: int  # columns that one load covers
    num_warps: int


@dataclass(frozen=True)
class GroupTile:
    """A program of a product by groups: the pairs of one expert, some outputs."""

    rows: int  # pairs at once
    outputs: int
    depth: int
    programs: int  # that share an expert's pairs
    num_warps: int
    num_stages: int
    rows_left: bool = False  # by `quire.kernels.expert_rows`: pairs are the left operand

    def grid(self, outputs: int, num_slots: int) -> tuple[int, int, int]:
        """Return the programs of a product of so many outputs an expert."""
        return self.programs, -(-outputs // self.outputs), num_slots

    def options(self, early: bool) -> dict[str, Any]:
        """Return the arguments that all kernels by groups take by name.

        Args:
            early: whether a kernel may begin before the one in front of it has ended.
        """
        return {
            "block_rows": self.rows,
            "block_outputs": self.outputs,
            "block_depth": self.depth,
            "early": early,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "launch_pdl": early,
        }


def prefers_pairs(num_tokens: int, top_k: int, num_experts: int) -> bool:
    """Whether so few tokens come that hardly two of them share an expert.

    Args:
        num_experts: of all ranks together, as the pairs are; those that lie elsewhere read nothing.
    """
    pairs = num_tokens * top_k
    return pairs <= MOST_PAIRS and (num_tokens == 1 or 2 * pairs <= num_experts)


def chooses_in_pairs(num_tokens: int, top_k: int, num_experts: int) -> bool:
    """Whether the products by pairs choose a token's experts as well."""
    return prefers_pairs(num_tokens, top_k, num_experts) and num_tokens * top_k <= CHOICE_PAIRS


def pair_tile(outputs: int, columns: int, itemsize: int) -> PairTile:
    """Return the tile of a product by pairs.

    Args:
        outputs: rows of the weight that a program holds for each output that it computes: 2
            for gate and up, 1 for down.
        columns: of all the weights that an output is a sum over.
        itemsize: bytes of an element.
    """
    depth = 256 if columns % 256 == 0 or columns > 1024 else 64
    if outputs == 2 and columns % 1024 == 0:
        depth = 1024  # all of them are one expert's
    row = -(-columns // depth) * depth * outputs * itemsize
    a_warp = 32 * REGISTER_BYTES // outputs  # gate and up are summed in registers of their own
    rows = 2 // outputs if 2 // outputs * row <= 8 * a_warp else 1
    num_warps = 1
    while num_warps < 8 and rows * row > num_warps * a_warp:
        num_warps *= 2
    return PairTile(rows, depth, num_warps)


def pair_tiles(top_k: int, down: Tensor) -> tuple[PairTile, PairTile]:
    """Return the tiles of gate and up, and of down, [S, H, I], by pairs."""
    _, hidden, size = down.shape
    itemsize = down.dtype.itemsize
    return pair_tile(2, hidden, itemsize), pair_tile(1, top_k * size, itemsize)


def group_tiles(
    num_tokens: int, top_k: int, num_slots: int, itemsize: int, aligned: bool = True
) -> tuple[GroupTile, GroupTile]:
    """Return the tiles of gate and up, and of down, for the pairs of a step in groups.

    A group has `num_tokens · top_k / num_slots` pairs on average. Programs that find none end
    at once; where an expert has more than its programs hold, they take turns. A program with three
    stages needs less than the 163 KB of shared memory that an A100 has.

    Args:
        aligned: whether rows of the weights are multiples of 16 bytes, as TMA asks for.
    """
    mean = -(-num_tokens * top_k // max(num_slots, 1))
    if itemsize > 2:  # no matrix units: larger tiles spill registers
        tile = GroupTile(16, 32, 32, -(-mean // 16), 4, 2)
        return tile, tile
    few, some, many = MEANS
    if mean <= few:
        return GroupTile(16, 64, 128, 1, 4, 3), GroupTile(16, 128, 64, 1, 4, 5)
    if mean <= some:
        return GroupTile(32, 64, 64, 2, 4, 3), GroupTile(32, 64, 64, 2, 4, 4)
    if mean <= many:
        return GroupTile(128, 64, 64, 1, 4, 3), GroupTile(128, 128, 64, 1, 4, 3)
    if aligned:
        programs = -(-mean * 5 // 512)
        first = GroupTile(128, 128, 64, programs, 8, 4, rows_left=True)
        return first, GroupTile(128, 256, 64, programs, 8, 4, rows_left=True)
    programs = -(-mean * 3 // 512)
    return GroupTile(256, 64, 64, programs, 8, 3), GroupTile(128, 256, 64, programs, 8, 3)


def tile_changes(top_k: int, num_slots: int, num_experts: int) -> list[int]:
    """Return from how many tokens on another way, or another pair of tiles, serves, rising.

    The way depends on the experts of all ranks, the tiles on the slots of this one. Either is
    another kernel, which has to be compiled before the first request.
    """
    changes = {mean * num_slots // top_k + 1 for mean in MEANS}
    for serves_pairs in (chooses_in_pairs, prefers_pairs):
        tokens = range(1, MOST_PAIRS // top_k + 2)
        changes.add(next((n for n in tokens if not serves_pairs(n, top_k, num_experts)), 1))
    return sorted(changes)
