"""`Executor`: carries the scheduler's steps out, on one device or on several.

The engine's host half (tokenizer, scheduler, cache manager) talks to it in messages; behind it
stand the device halves, one `Worker` a rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch

from quire.components import Components
from quire.config import EngineConfig
from quire.errors import QuireError
from quire.kv.spec import CacheLayout
from quire.messages import SchedulerOutput, StepResult
from quire.models.config import ModelConfig
from quire.runner.pending import PendingStep
from quire.runner.worker import Worker
from quire.speculation.costs import RoundCosts
from quire.speculation.factory import DraftSource


class QueuedStep(Protocol):
    """A step that was handed to the devices."""

    output: SchedulerOutput

    @property
    def is_done(self) -> bool:
        """Whether `wait` would return at once, as far as is known."""
        ...

    def wait(self) -> StepResult:
        """Block until the step is done and return what it chose."""
        ...


class Executor(Protocol):
    """What the engine asks of whoever owns the devices."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache, the null block among them: as many as every rank has."""
        ...

    @property
    def round_costs(self) -> RoundCosts | None:
        """What steps with guesses take, if their number may vary."""
        ...

    def execute(self, output: SchedulerOutput) -> QueuedStep:
        """Queue a step without waiting for it. Steps are carried out in the order of the calls."""
        ...

    def settle(self, in_flight: Iterable[Any]) -> None:
        """After a step was lost: let the devices finish, and make the other answers safe."""
        ...

    def shutdown(self) -> None:
        """Let go of the devices; no call may follow."""
        ...


class InlineExecutor:
    """One worker, in the engine's own process and thread."""

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        layout: CacheLayout,
        folder: Path | None,
        components: Components,
        draft: DraftSource | None = None,
    ) -> None:
        """Load the model, decide how many blocks the cache gets, and allocate it."""
        self._device = config.model.device
        with self._current():
            self._worker: Worker | None = Worker(
                config, model_config, layout, folder, components, draft
            )
            self._num_blocks = config.cache.num_blocks or self.worker.most_blocks()
            self.worker.allocate(self._num_blocks)

    @property
    def worker(self) -> Worker:
        """The device half.

        Raises:
            QuireError: after `shutdown`.
        """
        if self._worker is None:
            raise QuireError("the engine was shut down: make a new one")
        return self._worker

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache, the null block among them."""
        return self._num_blocks

    @property
    def round_costs(self) -> RoundCosts | None:
        """What steps with guesses take, if their number may vary."""
        return self.worker.round_costs

    def execute(self, output: SchedulerOutput) -> PendingStep:
        """Queue a step on the worker's device."""
        with self._current():
            return self.worker.runner.execute(output)

    def settle(self, in_flight: Iterable[PendingStep]) -> None:
        """Let the device finish what is queued."""
        self.worker.runner.settle(in_flight)

    def shutdown(self) -> None:
        """Drop the worker, and with it the device's memory."""
        self._worker = None

    def _current(self) -> AbstractContextManager[object]:
        """Make the worker's GPU the current one: Triton launches there, and graphs allocate.

        Each thread has a current GPU of its own, so whoever calls, it is set for the call.
        """
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
