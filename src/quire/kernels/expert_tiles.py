"""How the kernels of `quire.kernels.experts` cut their products into programs.

One function a decision, so that a sweep can put its results here. Nothing depends on which
experts are chosen, only on the number of tokens: a captured step replays one grid.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_PAIRS = 64  # of token and expert, up to which each is multiplied by itself
MEANS = (12, 32, 96)  # pairs of a group, up to which a tile of `group_tiles` serves
REGISTER_BYTES = 96 * 4  # of a weight that a thread may hold


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


def prefers_pairs(num_tokens: int, top_k: int) -> bool:
    """Whether so few tokens come that hardly two of them share an expert."""
    return num_tokens * top_k <= MOST_PAIRS


def pair_tile(outputs: int, columns: int, itemsize: int) -> PairTile:
    """Return the tile of a product by pairs.

    Args:
        outputs: rows of the weight that a program holds for each output that it computes: 2
            for gate and up, 1 for down.
        columns: of all the weights that an output is a sum over.
        itemsize: bytes of an element.
    """
    depth = 256 if columns % 256 == 0 or columns > 1024 else 64
    padded = -(-columns // depth) * depth
    rows = 2 // outputs if padded * itemsize <= 8192 else 1
    held = rows * outputs * padded * itemsize
    num_warps = 1
    while num_warps < 8 and held > 32 * num_warps * REGISTER_BYTES // 2:
        num_warps *= 2
    return PairTile(rows, depth, num_warps)


def group_tiles(
    num_tokens: int, top_k: int, num_slots: int, itemsize: int
) -> tuple[GroupTile, GroupTile]:
    """Return the tiles of gate and up, and of down, for the pairs of a step in groups.

    A group has `num_tokens · top_k / num_slots` pairs on average. Programs that find none end
    at once; where an expert has more than its programs hold, they take turns.
    """
    mean = -(-num_tokens * top_k // max(num_slots, 1))
    if itemsize > 2:  # no matrix units: larger tiles spill registers
        tile = GroupTile(16, 32, 32, -(-mean // 16), 4, 2)
        return tile, tile
    few, some, many = MEANS
    if mean <= few:
        return GroupTile(16, 64, 64, 1, 4, 5), GroupTile(16, 64, 128, 1, 4, 4)
    if mean <= some:
        return GroupTile(32, 64, 64, 2, 4, 4), GroupTile(32, 64, 128, 2, 4, 3)
    if mean <= many:
        return GroupTile(64, 64, 64, 2, 4, 4), GroupTile(64, 128, 64, 2, 4, 4)
    programs = -(-mean * 3 // (2 * 128))
    return GroupTile(128, 64, 64, programs, 8, 3), GroupTile(128, 128, 64, programs, 8, 3)


def tile_changes(top_k: int, num_slots: int) -> list[int]:
    """Return from how many tokens on each further pair of tiles serves, rising.

    Another tile is another kernel, which has to be compiled before the first request.
    """
    return [MOST_PAIRS // top_k + 1, *(mean * num_slots // top_k + 1 for mean in MEANS)]
