"""`ParallelOptions`: how many ranks an engine has, and which of them belong together."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from quire.errors import QuireError
from quire.option_checks import require_counts, require_flags
from quire.sampling.values import is_number

DISPATCHES = ("all_reduce", "all_to_all")
BACKENDS = ("mp", "external_launcher", "lockstep")


@dataclass(frozen=True)
class ParallelOptions:
    """On how many devices the model runs, and how they share it.

    Args:
        tensor_parallel_size: ranks that share every layer's matrices and heads.
        pipeline_parallel_size: stages that share the layers; as many steps are in flight, of
            different requests. Each stage has `tensor_parallel_size` ranks.
        enable_expert_parallel: a rank of a stage has some experts of a mixture whole, instead of
            a part of each.
        num_redundant_experts: slots of a layer beyond one an expert, for all ranks of a stage
            together; they hold copies of the busiest experts of `expert_loads`.
        expert_loads: path of a file of the tokens that each expert was sent, as
            `LLM.expert_loads().save(path)` writes it; experts are placed so that ranks have nearly
            equal loads (`quire.parallel.expert_placement`). By default by their numbers. Where
            torchrun starts ranks on several machines, each needs the file.
        record_expert_loads: count the tokens that each expert is sent, for `LLM.expert_loads()`.
        expert_dispatch: how tokens reach their experts. "all_reduce": all ranks of a stage have
            all tokens, and add up what their experts make of them; CUDA graphs can capture it.
            "all_to_all": each rank has a part of the tokens, sends them to the ranks of their
            experts and gets the results back; the host reads how many go where, so that nothing is
            captured.
        expert_capacity_factor: an expert takes at most ceil(factor · tokens · k / experts) tokens
            of a step, the earlier ones first; k is the number of experts a token is sent to. A
            token goes without an expert that is full, so that what a request is answered depends
            on who else is in its steps. By default an expert takes all.
        data_parallel_size: replicas of all this, behind a router (`quire.parallel.router`).
        distributed_executor_backend: "mp": a process a rank, on a GPU each where there are GPUs;
            "external_launcher": the ranks that torchrun has started, on one machine or several
            (`quire.parallel.launched`); "lockstep": the ranks take turns in this process, which is
            for tests and for finding faults (`quire.parallel.lockstep`). By default "mp".
    """

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    num_redundant_experts: int = 0
    expert_loads: str | None = None
    record_expert_loads: bool = False
    expert_dispatch: str = "all_reduce"
    expert_capacity_factor: float | None = None
    distributed_executor_backend: str = "mp"

    def __post_init__(self) -> None:
        require_counts(self, "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
        require_flags(self, "enable_expert_parallel", "record_expert_loads")
        self._check_experts()
        if self.distributed_executor_backend not in BACKENDS:
            raise QuireError(
                f"distributed_executor_backend={self.distributed_executor_backend!r}: must be one "
                f"of {', '.join(BACKENDS)}"
            )
        if self.distributed_executor_backend == "external_launcher" and self.data_parallel_size > 1:
            raise QuireError(
                f"data_parallel_size={self.data_parallel_size} with 'external_launcher': torchrun "
                "starts the ranks of one engine; start a program for each replica"
            )

    def _check_experts(self) -> None:
        """Refuse values that make no sense for any model with experts."""
        require_counts(self, "num_redundant_experts", least=0)
        if self.expert_loads is not None:
            if not isinstance(self.expert_loads, str | os.PathLike):
                raise QuireError(f"expert_loads={self.expert_loads!r}: must be the path of a file")
            object.__setattr__(self, "expert_loads", os.fspath(self.expert_loads))
        if self.expert_dispatch not in DISPATCHES:
            raise QuireError(
                f"expert_dispatch={self.expert_dispatch!r}: must be one of {', '.join(DISPATCHES)}"
            )
        factor = self.expert_capacity_factor
        if factor is not None and not (is_number(factor) and 0 < factor < math.inf):
            raise QuireError(
                f"expert_capacity_factor={factor!r}: must be a number above 0, or None for no limit"
            )
        needless = [
            f"{name}={value!r}"
            for name, value, default in (
                ("num_redundant_experts", self.num_redundant_experts, 0),
                ("expert_loads", self.expert_loads, None),
                ("expert_dispatch", self.expert_dispatch, DISPATCHES[0]),
            )
            if value != default
        ]
        if needless and not self.enable_expert_parallel:
            raise QuireError(
                f"{needless[0]} without enable_expert_parallel: each rank has a part of every "
                "expert; set enable_expert_parallel=True"
            )
        if self.num_redundant_experts > 0 and self.expert_loads is None:
            raise QuireError(
                f"num_redundant_experts={self.num_redundant_experts} without expert_loads: nothing "
                "says which experts are busy; record loads first (record_expert_loads=True)"
            )

    @property
    def exchanges_tokens(self) -> bool:
        """Whether tokens are sent from rank to rank, by sizes that the host reads."""
        return self.expert_dispatch == "all_to_all" and self.tensor_parallel_size > 1

    @property
    def num_ranks(self) -> int:
        """Ranks of a replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def tensor_groups(self) -> list[list[int]]:
        """The ranks of each stage, which share its matrices."""
        size = self.tensor_parallel_size
        return [list(range(begin, begin + size)) for begin in range(0, self.num_ranks, size)]

    @property
    def pipeline_groups(self) -> list[list[int]]:
        """The ranks that stand at the same place of their stages, first stage first."""
        return [list(ranks) for ranks in zip(*self.tensor_groups, strict=True)]

    @property
    def output_ranks(self) -> list[int]:
        """The ranks that choose tokens: those of the last stage."""
        return self.tensor_groups[-1]
