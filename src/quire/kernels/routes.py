"""What becomes of a router's choice before experts see it: counted, limited, spread over copies.

All of it is torch, in shapes that do not depend on what was chosen: nothing waits for the device,
and a CUDA graph can capture it. A captured step may be padded with rows that belong to nobody;
`num_live` says how many rows, from the first, are a request's.

Where pairs are neither counted nor limited the router's kernel spreads them itself
(`quire.kernels.router`): some five kernels of torch, in every layer, for a look into two tables.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def live_rows(ids: Tensor, num_live: Tensor, first_row: int = 0) -> Tensor:
    """Return which rows of ids [T, k] a request has asked for, bool [T, 1].

    Args:
        num_live: int32 [], how many rows of the step, from the first.
        first_row: the step's number of the first row of ids.
    """
    rows = torch.arange(first_row, first_row + len(ids), device=ids.device)
    return (rows < num_live)[:, None]


def count_pairs(ids: Tensor, live: Tensor, num_experts: int) -> Tensor:
    """Return how many live tokens were sent to each expert, int64 [E].

    Args:
        ids: int32 [T, k], experts; `num_experts` stands for none.
        live: bool [T, 1].
        num_experts: E.
    """
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=ids.device)
    counts.index_add_(0, ids.flatten(), live.expand_as(ids).flatten().long())
    return counts[:num_experts]


def pair_limit(factor: float, num_tokens: Tensor, top_k: int, num_experts: int) -> Tensor:
    """Return ceil(factor · T · k / E), of a step's T tokens: the pairs an expert may have."""
    return torch.ceil(num_tokens.double() * factor * top_k / num_experts)


def limit_pairs(ids: Tensor, live: Tensor, before: Tensor, limit: Tensor) -> Tensor:
    """Return ids in which E, that is none, stands for what goes beyond an expert's limit.

    Of an expert's pairs the first count, in the order of the tokens. Rows that are not live have
    no pairs; they stand behind the others, and take nobody's place.

    Args:
        ids: int32 [T, k], different experts for each token.
        live: bool [T, 1].
        before: int64 [E], pairs that earlier tokens of the step, which are not in ids, have.
        limit: pairs that an expert may have, [].
    """
    num_experts, index = len(before), ids.long()
    chosen = torch.zeros(len(ids), num_experts, dtype=torch.int64, device=ids.device)
    chosen.scatter_(1, index, 1)
    place = before + chosen.cumsum(0) - chosen  # of a token's pair among its expert's, from 0
    kept = live & (place.gather(1, index) < limit)
    return torch.where(kept, ids, num_experts)


class CopyTables(NamedTuple):
    """The slots of the group that hold each expert; the last row is that of none.

    Attributes:
        copies: int32 [E + 1], c of each expert, 1 of none.
        places: int32 [E + 1, max c], the slots of an expert's copies; that of none is S. What
            stands behind the c-th is never looked at.
    """

    copies: Tensor
    places: Tensor


def spread_pairs(ids: Tensor, tables: CopyTables, first_row: int = 0) -> Tensor:
    """Return the slot of the group that serves each pair: of an expert's copies the t mod c-th.

    The token's row in the step decides, which all ranks know: if each rank chose for itself, a
    pair could be served by two of them, and be added twice, or by none. A step of one token, which
    is row 0, is served by first copies only.

    Args:
        ids: int32 [T, k], experts; E stands for none.
        tables: of the experts' copies.
        first_row: the step's number of the first row of ids.

    Returns:
        int32 [T, k].
    """
    index = ids.long()
    rows = torch.arange(first_row, first_row + len(ids), device=ids.device)[:, None]
    return tables.places[index, rows % tables.copies[index]]
