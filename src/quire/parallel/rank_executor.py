"""`RankExecutor`: an engine's steps, carried out by ranks in other processes.

Who started the processes, and how commands reach them, is a `Line`'s business: one to processes of
the engine's own (`quire.parallel.processes`), one to those of torchrun (`quire.parallel.launched`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

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
from quire.speculation.costs import RoundCosts
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


@runtime_checkable
class PatientLine(Line, Protocol):
    """A `Line` on which a command can be begun now and finished later."""

    def begin(self, command: Command) -> int:
        """Send every rank a command; return its number."""
        ...

    def has_answered(self, number: int) -> bool:
        """Whether `finish` would not wait."""
        ...

    def finish(self, number: int, command: Command) -> list[object]:
        """Return the ranks' answers, or raise as `ask` does."""
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
        self._round_costs = cast(RoundCosts | None, costs[0])

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache, the null block among them."""
        return self._num_blocks

    @property
    def round_costs(self) -> RoundCosts | None:
        """What steps with guesses take, if their number may vary."""
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
    _begun: int | None = field(default=None, init=False)  # the number of its `Wait`

    @property
    def is_done(self) -> bool:
        """Whether every rank has answered, as far as can be told.

        From the first call on the ranks wait for the step, and queue nothing behind it any more.
        """
        if not isinstance(self.line, PatientLine):
            return True
        if self._begun is None and self.line.failure is None:
            self._begun = self.line.begin(self._command)
        return self._begun is None or self.line.has_answered(self._begun)

    def wait(self) -> StepResult:
        """Return what the first rank of the last stage chose.

        Raises:
            RankError: a rank has died, or failed alone.
            QuireError: what all ranks raised; another rank chose otherwise.
        """
        if self._begun is None or not isinstance(self.line, PatientLine):
            answers = self.line.ask(self._command)
        else:
            answers = self.line.finish(self._begun, self._command)
        return agreed(answers, self.output_ranks, self.output.step)

    @property
    def _command(self) -> Wait:
        return Wait(self.ticket, self.output.step)
