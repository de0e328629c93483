"""`ParallelOptions`: how many ranks an engine has, and which of them belong together."""

from __future__ import annotations

from dataclasses import dataclass

from quire.errors import QuireError
from quire.option_checks import require_counts, require_flags

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
    distributed_executor_backend: str = "mp"

    def __post_init__(self) -> None:
        require_counts(self, "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
        require_flags(self, "enable_expert_parallel")
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
