"""`ExpertPlan`: how the ranks of a stage share experts, and what a router's choice goes through.

Placements are worked out once, by the engine, and sent to all ranks: tables that each rank read or
computed for itself could differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from quire.errors import QuireError
from quire.models.config import ModelConfig
from quire.parallel.expert_loads import ExpertLoads
from quire.parallel.expert_placement import ExpertPlacement, replicated
from quire.parallel.options import ParallelOptions

_LAYER = re.compile(r"\blayers\.(\d+)\.")  # its number, in a checkpoint's names
Placements = Mapping[int, ExpertPlacement]  # by the number of the layer


class LiveRows:
    """How many rows of a step, from the first, are a request's; on the device, as graphs need it.

    Outside `limited` that is all of them, however many there are.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin with no limit."""
        self._all = torch.iinfo(torch.int32).max
        self.number = torch.full((), self._all, dtype=torch.int32, device=device)

    @contextmanager
    def limited(self, number: int) -> Iterator[None]:
        """Within, what is queued on the device sees so many live rows."""
        self.number.fill_(number)
        try:
            yield
        finally:
            self.number.fill_(self._all)


@dataclass(frozen=True)
class ExpertPlan:
    """What the layers of a rank are told about experts."""

    placements: Placements = field(default_factory=dict)  # none for a layer: contiguous
    dispatch: str = "all_reduce"
    capacity_factor: float | None = None
    records_loads: bool = False
    live_rows: LiveRows | None = None  # where rows without a request must be told from others

    @classmethod
    def of(
        cls, options: ParallelOptions, placements: Placements, device: torch.device
    ) -> ExpertPlan:
        """Make the plan of a rank on `device`."""
        factor, records = options.expert_capacity_factor, options.record_expert_loads
        live = LiveRows(device) if records or factor is not None else None
        return cls(placements, options.expert_dispatch, factor, records, live)

    def placement(self, prefix: str) -> ExpertPlacement | None:
        """Return the placement of the layer with this prefix in the checkpoint, if it has one."""
        found = _LAYER.search(prefix)
        return None if found is None else self.placements.get(int(found[1]))


def place_experts(options: ParallelOptions, model: ModelConfig) -> Placements:
    """Return the placement of each layer's experts; none where contiguous ones serve.

    Raises:
        QuireError: an option for experts and a model without; experts that the ranks cannot share
            evenly; a file of loads that cannot be read, or is another model's.
    """
    moe, ranks, spare = model.moe, options.tensor_parallel_size, options.num_redundant_experts
    if moe is None:
        for name in ("expert_loads", "expert_capacity_factor"):
            if getattr(options, name) is not None:
                raise QuireError(
                    f"{name}={getattr(options, name)!r}: {model.architecture} has no experts; "
                    "leave it out"
                )
        if options.record_expert_loads:
            raise QuireError(
                f"record_expert_loads=True: {model.architecture} has no experts; leave it out"
            )
        return {}
    if not options.enable_expert_parallel:
        return {}
    num_slots = moe.num_experts + spare
    if num_slots % ranks or num_slots > moe.num_experts * ranks:
        raise QuireError(
            f"tensor_parallel_size={ranks} with num_redundant_experts={spare}: the model has "
            f"num_experts={moe.num_experts}, and of {num_slots} all ranks must have equally many, "
            f"none twice; choose num_redundant_experts={_nearest(moe.num_experts, ranks, spare)}"
        )
    if options.expert_loads is None:
        return {}
    loads = ExpertLoads.load(options.expert_loads)
    loads.require(moe, options.expert_loads)
    return {layer: replicated(loads.tokens[layer], ranks, num_slots) for layer in moe.layers}


def _nearest(num_experts: int, num_ranks: int, spare: int) -> int:
    """Return the number of redundant experts next to `spare` that ranks can share evenly."""
    choices = range(-num_experts % num_ranks, num_experts * (num_ranks - 1) + 1, num_ranks)
    return min(choices, key=lambda number: (abs(number - spare), number))
