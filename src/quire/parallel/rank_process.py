"""What a rank's own process does: it carries out the engine's commands, in their order.

The engine sends every rank the same commands. Answers carry the number of the command that they
answer, so that one which nobody waits for any more can be told from the next.
"""

from __future__ import annotations

import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from multiprocessing import connection, parent_process
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from quire.components import Components
from quire.config import EngineConfig
from quire.errors import QuireError
from quire.kv.spec import CacheLayout
from quire.messages import ScheduledEntry, SchedulerOutput, StepResult
from quire.models.config import ModelConfig
from quire.parallel.place import Place
from quire.parallel.torch_comm import join, world
from quire.runner.pending import PendingStep
from quire.runner.worker import Worker
from quire.speculation.factory import DraftSource


@dataclass(frozen=True)
class Load:
    """Load the rank's part of the model; answered by the number of blocks there is room for."""

    config: EngineConfig
    model_config: ModelConfig
    layout: CacheLayout
    folder: Path | None
    components: Components
    draft: DraftSource | None


@dataclass(frozen=True)
class Allocate:
    """Allocate the cache; answered by the worker's `round_costs`."""

    num_blocks: int


_fields = attrgetter(*(field.name for field in fields(ScheduledEntry)))


@dataclass(frozen=True)
class Execute:
    """Queue a step; not answered."""

    ticket: int  # names the step in the commands that follow
    output: SchedulerOutput

    def __reduce__(self) -> tuple[Callable[..., Execute], tuple[object, ...]]:
        """Be pickled with entries field by field: of 256 that takes a quarter of the time."""
        columns = tuple(zip(*map(_fields, self.output.entries), strict=True))
        return _execute, (self.ticket, replace(self.output, entries=()), columns)


def _execute(ticket: int, output: SchedulerOutput, columns: tuple[tuple[Any, ...], ...]) -> Execute:
    entries = map(ScheduledEntry, *columns) if columns else ()
    return Execute(ticket, replace(output, entries=tuple(entries)))


@dataclass(frozen=True)
class Wait:
    """Wait for a step; answered by its result, or on all ranks but one by the tokens' digest."""

    ticket: int
    step: int  # the scheduler's number of it


@dataclass(frozen=True)
class Settle:
    """Let the device finish, and forget all steps but these; not answered."""

    tickets: tuple[int, ...]


@dataclass(frozen=True)
class CountedLoads:
    """Tell how many tokens the rank's experts were sent; answered as `Worker.expert_loads` is."""


Command = Load | Allocate | Execute | Wait | Settle | CountedLoads


@dataclass(frozen=True)
class Answer:
    """What came of a command: a value, or what was raised."""

    number: int
    value: object = None
    error: BaseException | None = None


def digest(result: StepResult) -> int:
    """Return a number that differs, all but surely, for different tokens."""
    return zlib.crc32(repr(list(result.token_ids.items())).encode())


def is_answered(command: Command) -> bool:
    """Whether the engine waits for what comes of a command."""
    return not isinstance(command, Execute | Settle)


def agreed(answers: Sequence[object], output_ranks: Sequence[int], step: int) -> StepResult:
    """Return what the ranks answered to `Wait`: the result, if those that choose tokens agree.

    Raises:
        QuireError: one of them chose otherwise; it is named.
    """
    chooser, *others = output_ranks
    result = answers[chooser]
    assert isinstance(result, StepResult)
    for rank in others:
        if answers[rank] != digest(result):
            raise QuireError(
                f"step {step}: rank {rank} chose other tokens than rank {chooser}: the ranks' "
                "weights, messages or sums differ; distributed_executor_backend='lockstep' shows "
                "where"
            )
    return result


def main(
    rank: int, size: int, rendezvous: str, device: torch.device, end: connection.Connection
) -> None:
    """Be rank `rank` of `size` until the engine closes its end of the pipe, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the engine's business
    threading.Thread(target=_end_with_the_engine, daemon=True).start()
    if device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // size))
    with world(rank, size, rendezvous, device):
        serve = Serving(rank, device)
        for number, command in enumerate(_commands(end)):
            try:
                value = serve.carry_out(command)
            except Exception as error:  # told to the engine, which knows about the other ranks
                end.send(Answer(number, error=error))
                continue
            if is_answered(command):
                end.send(Answer(number, value))


class Serving:
    """A worker and the steps that it has queued."""

    _worker: Worker  # from `Load` on
    _answers_in_full: bool

    def __init__(self, rank: int, device: torch.device) -> None:
        """Be this rank, on this device, with nothing loaded yet."""
        self._rank, self._device = rank, device
        self._pending: dict[int, PendingStep] = {}
        self._errors: dict[int, Exception] = {}  # of steps that could not be queued

    def carry_out(self, command: Command) -> object:
        """Do what a command says; return the answer, if it has one."""
        if isinstance(command, Execute):
            try:
                step = self._worker.runner.execute(command.output)
            except Exception as error:  # raised where the step is waited for
                self._errors[command.ticket] = error
            else:
                self._pending[command.ticket] = step
            return None
        if isinstance(command, Wait):
            if command.ticket in self._errors:
                raise self._errors.pop(command.ticket)
            result = self._pending.pop(command.ticket).wait()
            return result if self._answers_in_full else digest(result)
        if isinstance(command, Settle):
            self._errors = {}
            self._pending = {t: self._pending[t] for t in command.tickets if t in self._pending}
            self._worker.runner.settle(self._pending.values())
            return None
        if isinstance(command, CountedLoads):
            return self._worker.expert_loads()
        if isinstance(command, Allocate):
            self._worker.allocate(command.num_blocks)
            return self._worker.round_costs
        config = replace(command.config, model=replace(command.config.model, device=self._device))
        sums = None  # gloo's on a CPU
        if self._device.type == "cuda":
            from quire.parallel.direct_comm import fastest  # needs CUDA

            sums = partial(fastest, device=self._device, dtype=config.model.dtype)
        place = Place.of(
            config.parallel,
            config.expert_placements,
            join(config.parallel.tensor_groups, sums),
            join(config.parallel.pipeline_groups),
            self._device,
        )
        self._answers_in_full = self._rank == config.parallel.output_ranks[0]
        self._worker = Worker(
            config,
            command.model_config,
            command.layout,
            command.folder,
            command.components,
            command.draft,
            place,
        )
        return config.cache.num_blocks or self._worker.most_blocks()


def _commands(end: connection.Connection) -> Iterator[Command]:
    """Yield what comes through the pipe until it is closed."""
    while True:
        try:
            yield end.recv()
        except (EOFError, ConnectionError):
            return


def _end_with_the_engine() -> None:
    """Exit when the engine's process has ended, even from within a collective."""
    engine = parent_process()
    assert engine is not None
    connection.wait([engine.sentinel])
    os._exit(1)
