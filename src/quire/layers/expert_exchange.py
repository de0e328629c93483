"""`ExpertExchange`: tokens travel to the ranks of their experts, and the results travel back.

A rank routes its part of the step's tokens, sends a row for each pair of token and expert to the
rank that has the expert, and adds up what comes back; a gather gives all ranks all tokens again,
which attention's heads need (so does DeepSpeed, deepspeed/moe/sharded_moe.py, where ranks share
attention's matrices). How many rows go where is known only when the router has chosen: the host
waits for the device in every layer, and no CUDA graph can capture that. See the chapter
"Parallelism".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quire.layers.expert_routes import ExpertRoutes
from quire.parallel.comm import Comm
from quire.parallel.part import padded_part
from quire.sending import send


class ExpertExchange:
    """One rank's end; all ranks of the stage call it with the same tokens."""

    def __init__(
        self,
        router: Callable[[Tensor], tuple[Tensor, Tensor]],
        experts: Callable[[Tensor, Tensor, Tensor], Tensor],
        routes: ExpertRoutes,
        comm: Comm,
    ) -> None:
        """Exchange rows for a layer's `Router` and `Experts` (`quire.layers.moe`)."""
        self._router, self._experts, self._routes, self._comm = router, experts, routes, comm

    # docs: exchange begin
    def __call__(self, x: Tensor) -> Tensor:
        """Return for x [T, H] what the layer makes of it, [T, H], on every rank.

        A rank that has no tokens of a small step, or gets none, makes the same calls as the
        others: they wait for it.
        """
        rank, size = self._comm.rank, self._comm.size
        part = padded_part(len(x), rank, size)
        own = part.of(x)
        ids, weights = self._choose(own)
        first = min(part.begin, len(x))
        places = self._routes(ids, first, len(x)).flatten()  # of each pair: a slot of the stage

        none = self._routes.num_slots
        counts = torch.bincount(places, minlength=none + 1)[:none]
        # [from rank, to rank, slot]: the one wait for the device
        table = self._comm.all_gather(counts, 0).view(size, size, -1).cpu()
        sent, arriving = table[rank].sum(-1).tolist(), table[:, rank].sum(-1).tolist()
        order = places.argsort(stable=True)[: sum(sent)]  # by slot; pairs without one come last
        rows = own[order // ids.shape[1]]
        arrived = torch.cat(self._comm.all_to_all(list(rows.split(sent)), arriving))
        done = self._apply(arrived, table[:, rank])
        back = torch.cat(self._comm.all_to_all(list(done.split(arriving)), sent))

        pairs = x.new_zeros(len(places), x.shape[1])
        pairs[order] = back
        summed = torch.bmm(weights[:, None], pairs.view(*ids.shape, x.shape[1]).float())[:, 0]
        padded = x.new_zeros(part.size, x.shape[1])
        padded[: len(own)] = summed.to(x.dtype)
        return self._comm.all_gather(padded, 0)[: len(x)]

    # docs: exchange end

    def _choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Route x [T, H], which may have no rows: kernels are launched for one at least."""
        if len(x) > 0:
            return self._router(x)
        empty = x.new_empty(0, self._routes.top_k)
        return empty.int(), empty.float()

    def _apply(self, arrived: Tensor, counts: Tensor) -> Tensor:
        """Let each row meet its expert: of each rank, so many rows a slot, in their order."""
        if len(arrived) == 0:
            return arrived
        num_ranks, num_slots = counts.shape
        slots = torch.arange(num_slots, dtype=torch.int32).repeat(num_ranks)
        slots += self._comm.rank * num_slots
        ids = send(slots.repeat_interleave(counts.flatten())[:, None], arrived.device)
        weights = torch.ones(ids.shape, device=arrived.device)
        return self._experts(arrived, ids, weights)
