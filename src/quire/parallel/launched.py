"""Ranks that somebody else has started: `torchrun`, on one machine or on several.

Every rank runs the same program. On rank 0 an `LLM` is an `LLM`; on the others its constructor
carries out what the first rank's engine asks for, and ends the program when that is done. torchrun
watches the ranks: where one dies, it ends the others. See the page "Stages, rings, machines".
"""

from __future__ import annotations

import os
import sys
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from quire.components import Components
from quire.config import EngineConfig
from quire.errors import QuireError
from quire.kv.spec import CacheLayout
from quire.models.config import ModelConfig
from quire.parallel.processes import RankError
from quire.parallel.rank_executor import RankExecutor
from quire.parallel.rank_process import Answer, Command, Serving, is_answered
from quire.parallel.torch_comm import PATIENCE, world
from quire.speculation.factory import DraftSource

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class LaunchedExecutor(RankExecutor):
    """`RankExecutor` of rank 0, which carries out every command itself as well."""

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        layout: CacheLayout,
        folder: Path | None,
        components: Components,
        draft: DraftSource | None = None,
    ) -> None:
        """Join the other ranks; on any but the first, never return.

        Raises:
            QuireError: the program was not started by torchrun, or with another number of ranks;
                what all ranks raised.
        """
        rank, device = _started(config)
        joined = ExitStack()
        joined.enter_context(world(rank, config.parallel.num_ranks, "env://", device))
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        serving = Serving(rank, device)
        if rank > 0:
            _follow(serving, control, joined)
        line = _Line(serving, control, joined)
        # The others wait for the next command until there can be none: at the latest when the
        # program ends.
        weakref.finalize(self, line.close)
        super().__init__(line, config, model_config, layout, folder, components, draft)


class _Line:
    """From rank 0 to the others: commands go out, answers come back."""

    def __init__(self, serving: Serving, control: dist.ProcessGroup, joined: ExitStack) -> None:
        self._serving, self._control, self._joined = serving, control, joined
        self.failure: str | None = None

    def ask(self, command: Command) -> list[object]:
        """Have every rank carry out a command; return their answers, if it has any.

        Raises:
            RankError: a rank cannot be reached, or failed alone.
            Exception: what all ranks raised.
        """
        if self.failure is not None:
            raise RankError(self.failure)
        try:
            dist.broadcast_object_list([command], src=0, group=self._control)
            own = _carry_out(self._serving, command)
            if not is_answered(command):
                return []
            answers: list[Any] = [None] * dist.get_world_size(self._control)
            dist.gather_object(own, answers, dst=0, group=self._control)
        except RuntimeError as error:  # gloo's: a connection is gone
            self.failure = (
                f"a rank was lost in {type(command).__name__} ({error}); torchrun says which one. "
                "This engine is lost: start the program again"
            )
            raise RankError(self.failure) from None
        errors = {rank: a.error for rank, a in enumerate(answers) if a.error is not None}
        if len(errors) == len(answers):
            raise errors[0]
        if errors:
            rank, raised = next(iter(errors.items()))
            self.failure = (
                f"rank {rank} raised {type(raised).__name__} ({raised}); this engine is lost: "
                "start the program again"
            )
            raise RankError(self.failure)
        return [answer.value for answer in answers]

    def close(self) -> None:
        """Tell the others that there will be no more commands."""
        if self.failure is None:
            self.failure = "the engine was shut down: make a new one"
            dist.broadcast_object_list([None], src=0, group=self._control)
            self._joined.close()


def _follow(serving: Serving, control: dist.ProcessGroup, joined: ExitStack) -> NoReturn:
    """Carry out commands until there are no more, and end the program."""
    while True:
        box: list[Any] = [None]
        dist.broadcast_object_list(box, src=0, group=control)
        (command,) = box
        if command is None:
            joined.close()
            sys.exit(0)
        answer = _carry_out(serving, command)
        if is_answered(command):
            dist.gather_object(answer, None, dst=0, group=control)


def _carry_out(serving: Serving, command: Command) -> Answer:
    try:
        return Answer(0, serving.carry_out(command))
    except Exception as error:  # told to the engine, which knows about the other ranks
        return Answer(0, error=error)


def _started(config: EngineConfig) -> tuple[int, torch.device]:
    """Return this process's rank and device, as torchrun's variables say.

    Raises:
        QuireError: they are not there, or tell of another number of ranks.
    """
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise QuireError(
            "distributed_executor_backend='external_launcher' outside torchrun "
            f"({', '.join(missing)} not set): start the program by torchrun --nproc-per-node "
            f"{config.parallel.num_ranks}, or choose 'mp'"
        )
    size = int(os.environ["WORLD_SIZE"])
    if size != config.parallel.num_ranks:
        raise QuireError(
            f"torchrun started {size} ranks, and tensor_parallel_size * pipeline_parallel_size = "
            f"{config.parallel.num_ranks}: make them equal"
        )
    device = config.model.device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return int(os.environ["RANK"]), device
