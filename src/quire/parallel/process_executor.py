"""`ProcessExecutor`: an engine's ranks in processes of their own, on a GPU each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from quire.components import Components
from quire.config import EngineConfig
from quire.errors import QuireError
from quire.kv.spec import CacheLayout
from quire.messages import SchedulerOutput, StepResult
from quire.models.config import ModelConfig
from quire.parallel.processes import RankProcesses
from quire.parallel.rank_process import Allocate, Command, Execute, Load, Settle, Wait, agreed
from quire.speculation.factory import DraftSource


class ProcessExecutor:
    """Sends every rank the same commands, and lets the first answer (`quire.executor.Executor`).

    The engine's own process holds no tensors: while a step runs and the next one is launched
    over there, it schedules.
    """

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        layout: CacheLayout,
        folder: Path | None,
        components: Components,
        draft: DraftSource | None = None,
    ) -> None:
        """Start the ranks; load the model; allocate as many blocks as all have room for.

        Raises:
            QuireError: there are fewer GPUs than ranks; what all ranks raised.
            RankError: a rank died, or failed alone.
        """
        self._ranks = RankProcesses(_devices(config))
        self._output_ranks = config.parallel.output_ranks
        self._tickets = 0
        # What the engine itself uses need not lie in a module that the ranks can import.
        theirs = replace(components, scheduler=None, block_pool=None, kv_cache_manager=None)
        load = Load(config, model_config, layout, folder, theirs, draft)
        self._num_blocks = min(cast(list[int], self._ask(load)))
        costs = self._ask(Allocate(self._num_blocks))
        self._round_costs = cast(Mapping[tuple[int, int], float], costs[0])

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache, the null block among them."""
        return self._num_blocks

    @property
    def round_costs(self) -> Mapping[tuple[int, int], float]:
        """Seconds of a step with k guesses of each request, by (requests, k), if k may vary."""
        return self._round_costs

    def execute(self, output: SchedulerOutput) -> RemoteStep:
        """Let every rank queue the step."""
        self._tickets += 1
        self._ranks.tell(Execute(self._tickets, output))
        return RemoteStep(output, self._tickets, self._ranks, self._output_ranks)

    def settle(self, in_flight: Iterable[RemoteStep]) -> None:
        """Let every rank's device finish what is queued."""
        if self._ranks.failure is None:
            self._ranks.tell(Settle(tuple(step.ticket for step in in_flight)))

    def shutdown(self) -> None:
        """End the ranks' processes."""
        self._ranks.stop()

    def _ask(self, command: Command) -> list[object]:
        try:
            return self._ranks.answers(self._ranks.tell(command), command)
        except BaseException:
            self._ranks.stop()
            raise


@dataclass
class RemoteStep:
    """A step that every rank has been told of."""

    output: SchedulerOutput
    ticket: int
    ranks: RankProcesses
    output_ranks: list[int]

    def wait(self) -> StepResult:
        """Return what the first rank of the last stage chose.

        Raises:
            RankError: a rank has died, or failed alone.
            QuireError: what all ranks raised; another rank chose otherwise.
        """
        command = Wait(self.ticket, self.output.step)
        answers = self.ranks.answers(self.ranks.tell(command), command)
        return agreed(answers, self.output_ranks, self.output.step)


def _devices(config: EngineConfig) -> list[torch.device]:
    """Return each rank's device.

    Raises:
        QuireError: there are fewer GPUs than ranks.
    """
    size = config.parallel.num_ranks
    if config.model.device.type == "cpu":
        return [config.model.device] * size
    first, count = config.model.device.index or 0, torch.cuda.device_count()
    if first + size > count:
        raise QuireError(
            f"{size} ranks (tensor_parallel_size * pipeline_parallel_size) from device "
            f"{config.model.device} on: torch sees {count} CUDA devices, and each rank needs one "
            "of its own; use fewer ranks"
        )
    return [torch.device("cuda", first + rank) for rank in range(size)]
