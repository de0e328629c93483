"""`RankExecutor`: an engine's steps, carried out by ranks in other processes.

Who started the processes, and how commands reach them, is a `Line`'s business: one to processes of
the engine's own (`quire.parallel.processes`), one to those of torchrun (`quire.parallel.launched`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

from quire.components import Components
from quire.config import EngineConfig
from quire.kv.spec import CacheLayout
from quire.messages import SchedulerOutput, StepResult
from quire.models.config import ModelConfig
from quire.parallel.rank_process import (
    Allocate,
    Command,
    CountedLoads,
    Execute,
    Load,
    Settle,
    Wait,
    agreed,
)
from quire.speculation.factory import DraftSource


class Line(Protocol):
    """From the engine to its ranks."""

    failure: str | None  # why no command can be sent any more

    def ask(self, command: Command) -> list[object]:
        """Have every rank carry out a command; return their answers, none if it has none.

        Raises:
            RankError: a rank has died, or failed alone.
            Exception: what all ranks have raised alike.
        """
        ...

    def close(self) -> None:
        """Let the ranks end; no command may follow."""
        ...


class RankExecutor:
    """Sends every rank the same commands, and lets one answer (`quire.executor.Executor`).

    Where the ranks have processes of their own the engine's holds no tensors: while a step runs and
    the next one is launched over there, it schedules.
    """

    def __init__(
        self,
        line: Line,
        config: EngineConfig,
        model_config: ModelConfig,
        layout: CacheLayout,
        folder: Path | None,
        components: Components,
        draft: DraftSource | None,
    ) -> None:
        """Load the model; allocate as many blocks as all ranks have room for.

        Raises:
            QuireError: what all ranks raised.
            RankError: a rank died, or failed alone.
        """
        self._line = line
        self._output_ranks = config.parallel.output_ranks
        self._tickets = 0
        # What the engine itself uses need not lie in a module that the ranks can import.
        theirs = replace(components, scheduler=None, block_pool=None, kv_cache_manager=None)
        load = Load(config, model_config, layout, folder, theirs, draft)
        try:
            self._num_blocks = min(cast(list[int], line.ask(load)))
            costs = line.ask(Allocate(self._num_blocks))
        except BaseException:
            line.close()
            raise
        self._round_costs = cast(Mapping[tuple[int, int], float], costs[0])

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache, the null block among them."""
        return self._num_blocks

    @property
    def round_costs(self) -> Mapping[tuple[int, int], float]:
        """Seconds of a step with k guesses of each request, by (requests, k), if k may vary."""
        return self._round_costs

    def expert_loads(self) -> list[dict[int, list[int]]]:
        """Return what each rank has counted."""
        return cast(list[dict[int, list[int]]], self._line.ask(CountedLoads()))

    def execute(self, output: SchedulerOutput) -> RemoteStep:
        """Let every rank queue the step."""
        self._tickets += 1
        self._line.ask(Execute(self._tickets, output))
        return RemoteStep(output, self._tickets, self._line, self._output_ranks)

    def settle(self, in_flight: Iterable[RemoteStep]) -> None:
        """Let every rank's device finish what is queued."""
        if self._line.failure is None:
            self._line.ask(Settle(tuple(step.ticket for step in in_flight)))

    def shutdown(self) -> None:
        """Let the ranks end."""
        self._line.close()


@dataclass
class RemoteStep:
    """A step that every rank has been told of."""

    output: SchedulerOutput
    ticket: int
    line: Line
    output_ranks: list[int]
    is_done = True  # as far as the engine knows: ranks answer in their turn

    def wait(self) -> StepResult:
        """Return what the first rank of the last stage chose.

        Raises:
            RankError: a rank has died, or failed alone.
            QuireError: what all ranks raised; another rank chose otherwise.
        """
        answers = self.line.ask(Wait(self.ticket, self.output.step))
        return agreed(answers, self.output_ranks, self.output.step)
