"""`LockstepExecutor`: all ranks of an engine in its own process, a turn each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quire.components import Components
from quire.config import EngineConfig
from quire.errors import QuireError
from quire.kv.spec import CacheLayout
from quire.messages import SchedulerOutput, StepResult
from quire.models.config import ModelConfig
from quire.parallel.comm import Comm, Solo
from quire.parallel.lockstep import Lockstep
from quire.parallel.place import Place
from quire.runner.pending import PendingStep
from quire.runner.worker import Worker
from quire.speculation.costs import RoundCosts
from quire.speculation.factory import DraftSource


class LockstepExecutor:
    """A `Worker` a rank, on one device (`quire.executor.Executor`)."""

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        layout: CacheLayout,
        folder: Path | None,
        components: Components,
        draft: DraftSource | None = None,
    ) -> None:
        """Load every rank's part of the model, and allocate as many blocks as all have room for."""
        self._world = Lockstep(config.parallel.num_ranks)

        self._output_ranks = config.parallel.output_ranks

        def worker(rank: int) -> Worker:
            place = Place.of(
                config.parallel,
                config.expert_placements,
                self._end(rank, config.parallel.tensor_groups),
                self._end(rank, config.parallel.pipeline_groups),
                config.model.device,
            )
            return Worker(config, model_config, layout, folder, components, draft, place)

        ranks = range(self._world.size)
        self.workers = self._world.run([partial(worker, rank) for rank in ranks])
        self._num_blocks = config.cache.num_blocks or min(
            self._world.run([worker.most_blocks for worker in self.workers])
        )
        self._world.run([partial(worker.allocate, self._num_blocks) for worker in self.workers])

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache, the null block among them."""
        return self._num_blocks

    @property
    def round_costs(self) -> RoundCosts | None:
        """What steps with guesses take, if their number may vary."""
        return self._require_workers()[0].round_costs

    def expert_loads(self) -> list[dict[int, list[int]]]:
        """Return what each rank has counted."""
        return [worker.expert_loads() for worker in self._require_workers()]

    def execute(self, output: SchedulerOutput) -> LockstepStep:
        """Let every rank queue the step."""
        workers = self._require_workers()
        pending = self._world.run([partial(w.runner.execute, output) for w in workers])
        return LockstepStep(output, pending, self._world, self._output_ranks)

    def settle(self, in_flight: Iterable[LockstepStep]) -> None:
        """Let every rank's device finish what is queued."""
        steps = list(in_flight)
        for rank, worker in enumerate(self._require_workers()):
            worker.runner.settle(step.ranks[rank] for step in steps)

    def shutdown(self) -> None:
        """Drop the workers."""
        self.workers = []

    def _end(self, rank: int, groups: list[list[int]]) -> Comm:
        """Return a rank's end of that of these groups which it is in."""
        (members,) = [group for group in groups if rank in group]
        return Solo() if len(members) == 1 else self._world.comm(rank, members)

    def _require_workers(self) -> list[Worker]:
        if not self.workers:
            raise QuireError("the engine was shut down: make a new one")
        return self.workers


@dataclass
class LockstepStep:
    """A step that every rank has queued."""

    output: SchedulerOutput
    ranks: Sequence[PendingStep]
    world: Lockstep
    output_ranks: list[int]

    @property
    def is_done(self) -> bool:
        """Whether every rank's device has got so far."""
        return all(pending.is_done for pending in self.ranks)

    def wait(self) -> StepResult:
        """Return what the first rank of the last stage chose.

        Raises:
            QuireError: another rank chose otherwise; it is named.
        """
        results = self.world.run([pending.wait for pending in self.ranks])
        chooser, *others = self.output_ranks
        first = results[chooser]
        for rank in others:
            if results[rank].token_ids != first.token_ids:
                raise QuireError(
                    f"step {self.output.step}: rank {rank} chose {results[rank].token_ids}, rank "
                    f"{chooser} {first.token_ids}: the ranks' weights, messages or sums differ"
                )
        return first
