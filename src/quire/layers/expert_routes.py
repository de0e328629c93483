"""`ExpertRoutes`: from the experts that a router chose to the slots that serve them.

On the way the pairs of token and expert are counted, where loads are recorded; those beyond an
expert's capacity are taken out, as training does (DeepSpeed, deepspeed/moe/sharded_moe.py, which
scales up the weights that are left to a sum of 1; here they stay); and of an expert's copies one is
chosen. A pair's answer does not depend on the rank that asks.

With a capacity a token's hidden states, and the keys and values that the prefix cache keeps of it,
depend on the tokens in front of it in its step, whoever's they are: the same prompt may get another
answer in another batch. Nothing is dropped unless an engine is told to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels.routes import (
    CopyTables,
    count_pairs,
    limit_pairs,
    live_rows,
    pair_limit,
    spread_pairs,
)
from quire.models.moe_config import MoEConfig
from quire.parallel.expert_placement import ExpertPlacement, contiguous
from quire.parallel.expert_plan import LiveRows
from quire.parallel.place import Place


class ExpertRoutes:
    """A layer's routes, one end a rank.

    What they give for a pair is the number of an expert as long as each expert is in one slot and
    ranks have the same tokens; else that of a slot of the stage, rank r's being the `size` from
    r · `size` on. The number behind the last one stands for none.

    Where experts have copies and nobody counts or limits pairs, the router gives slots at once, by
    `router_tables`, and `__call__` gives them back. A step of one token, whose row is 0, is served
    by first copies: `first_slots` leads from an expert to that copy's slot on this rank, and no
    pair has to be spread.
    """

    held: tuple[int, ...]  # the experts of this rank, in the order of its slots
    num_slots: int  # of all ranks together
    top_k: int  # experts that a token is sent to
    slots: Tensor | None  # the slot here of what the routes give; None: `Experts` knows it
    first_slots: Tensor | None  # int32 [E + 1], where `slots` is of the stage's
    loads: Tensor | None  # int64 [E], where this rank counts

    def __init__(self, config: MoEConfig, prefix: str, device: torch.device, place: Place) -> None:
        """Make the routes of the layer with this prefix in the checkpoint."""
        comm, plan = place.tensor, place.experts
        number, factor, exchanges = config.num_experts, plan.capacity_factor, place.exchanges_tokens
        rank, placement = 0, contiguous(number, 1)
        if place.expert_parallel:
            rank = comm.rank
            placement = plan.placement(prefix) or contiguous(number, comm.size)
        self.held, self.num_slots = placement.slots[rank], placement.num_slots
        self.top_k, self._num_experts = config.experts_per_token, number
        self._comm, self._factor, self._exchanges = comm, factor, exchanges
        self.loads = None
        # Ranks with the same tokens would count each of them once more.
        if plan.records_loads and (exchanges or comm.rank == 0):
            self.loads = torch.zeros(number, dtype=torch.int64, device=device)
        self._live: LiveRows | None = None
        if self.loads is not None or factor is not None:
            self._live = plan.live_rows or LiveRows(device)
        self.slots = self.first_slots = None
        self._copies: CopyTables | None = None
        if exchanges or placement.num_slots > number:
            copies, places = copies_of(placement)
            self._copies = CopyTables(copies.to(device), places.to(device))
            size = len(self.held)
            slots = torch.full((placement.num_slots + 1,), size, dtype=torch.int32)
            slots[rank * size : (rank + 1) * size] = torch.arange(size, dtype=torch.int32)
            self.slots, self.first_slots = slots.to(device), slots[places[:, 0]].to(device)
        elif factor is not None:
            slots = torch.full((number + 1,), len(self.held), dtype=torch.int32)
            slots[list(self.held)] = torch.arange(len(self.held), dtype=torch.int32)
            self.slots = slots.to(device)

    def __call__(self, ids: Tensor, first_row: int = 0, num_tokens: int | None = None) -> Tensor:
        """Return where each pair goes, int32 [T, k].

        Args:
            ids: int32 [T, k], what the router gives.
            first_row: the step's number of the first row of ids, where this rank has a part.
            num_tokens: of the step; None: those of ids.
        """
        if self._live is not None:
            ids = self._take(ids, self._live.number, first_row, num_tokens or len(ids))
        if self._copies is not None and self.router_tables is None:
            ids = spread_pairs(ids, self._copies, first_row)
        return ids

    @property
    def router_tables(self) -> CopyTables | None:
        """By what the router spreads the pairs; None: it gives experts.

        Who counts or limits pairs asks for experts; and in an exchange a rank's first row is not
        the step's.
        """
        return None if self._exchanges or self._live is not None else self._copies

    def asks_nothing(self, num_tokens: int) -> bool:
        """Whether experts may be chosen unseen: nobody counts, and no copy but the first serves."""
        return self._live is None and (self._copies is None or num_tokens == 1)

    def forget(self) -> None:
        """Begin to count anew."""
        if self.loads is not None:
            self.loads.zero_()

    def _take(self, ids: Tensor, num_live: Tensor, first_row: int, num_tokens: int) -> Tensor:
        """Count the pairs; return them without those that are beyond an expert's capacity."""
        number, live = self._num_experts, live_rows(ids, num_live, first_row)
        counts = count_pairs(ids, live, number)
        if self.loads is not None:
            self.loads += counts
        if self._factor is None:
            return ids
        before = torch.zeros_like(counts)
        if self._exchanges:  # earlier ranks have the earlier tokens
            each = self._comm.all_gather(counts, 0).view(self._comm.size, number)
            before = each[: self._comm.rank].sum(0)
        tokens = num_live.clamp(max=num_tokens)
        limit = pair_limit(self._factor, tokens, self.top_k, number)
        return limit_pairs(ids, live, before, limit)


def copies_of(placement: ExpertPlacement) -> CopyTables:
    """Return the tables of the copies of a placement, on the CPU.

    First copies, which serve steps of one token, are on the ranks in turn: all on the lowest rank
    would leave the others idle there.
    """
    size, none, turn = len(placement.slots[0]), placement.num_slots, 0
    rows = []
    for expert, ranks in enumerate(placement.replicas):
        row = [rank * size + placement.slots[rank].index(expert) for rank in ranks]
        first = turn % len(row)
        rows.append(row[first:] + row[:first])
        turn += len(row) > 1
    rows.append([none])
    most = max(len(row) for row in rows)
    places = torch.tensor([row + [none] * (most - len(row)) for row in rows], dtype=torch.int32)
    return CopyTables(torch.tensor([len(row) for row in rows], dtype=torch.int32), places)
