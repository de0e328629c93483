"""`RankProcesses`: one process a rank, told what to do and watched.

What a rank does wrong must not leave the others waiting: a rank that dies, or that raises while
others go on, ends them all, and the error names it. Killing a process frees its GPU's memory.
"""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import tempfile
import time
import types
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from quire.errors import QuireError
from quire.parallel import rank_process
from quire.parallel.rank_process import Answer, Command, is_answered

GRACE = 5.0  # seconds that other ranks get to answer once one has raised


class RankError(QuireError):
    """A rank that died or failed, and with it the engine."""


class RankProcesses:
    """The processes of an engine. After a `RankError` they are gone."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        """Start a rank on each device.

        They are forked from a process that has torch loaded already, so that only the first
        engine waits for that.
        """
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([rank_process.__name__])
        self._folder = tempfile.TemporaryDirectory(prefix="quire-")
        rendezvous = f"file://{Path(self._folder.name) / 'ranks'}"
        self._ends: list[connection.Connection] = []
        self._processes: list[ForkServerProcess] = []
        self._number = -1  # of the last command
        # By the number of a command that was begun and not finished, what ranks have answered.
        self._answers: dict[int, dict[int, Answer]] = {}
        self.failure: str | None = None
        for rank, device in enumerate(devices):
            own, its = self._context.Pipe()
            process = self._context.Process(
                target=rank_process.main,
                args=(rank, len(devices), rendezvous, device, its),
                name=f"rank {rank}",
                daemon=True,
            )
            with _without_main():
                process.start()
            its.close()
            self._ends.append(own)
            self._processes.append(process)
        self._stop = weakref.finalize(self, _stop, self._processes, self._ends, self._folder)

    # docs: ask begin
    def ask(self, command: Command) -> list[object]:
        """Have every rank carry out a command; return their answers, none if it has none.

        Raises:
            QuireError: the command holds what cannot be sent to another process.
            RankError: a rank has died, or failed alone.
            Exception: what all ranks have raised alike.
        """
        number = self.begin(command)
        return self.finish(number, command) if is_answered(command) else []

    def begin(self, command: Command) -> int:
        """Send every rank a command; return its number, to `finish` it by if it is answered.

        Raises:
            QuireError: the command holds what cannot be sent to another process.
            RankError: a rank has died.
        """
        if self.failure is not None:
            raise RankError(self.failure)
        try:
            message = pickle.dumps(command)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise QuireError(
                f"cannot be sent to the ranks' processes: {error}. What an engine of several ranks "
                "is given must lie in a module that can be imported, not in a notebook or in a "
                "function; or use distributed_executor_backend='lockstep'"
            ) from None
        self._number += 1
        for rank, end in enumerate(self._ends):
            try:
                end.send_bytes(message)
            except OSError:
                raise self._fail(rank, self._death(rank), command) from None
        if is_answered(command):
            self._answers[self._number] = {}
        return self._number

    def has_answered(self, number: int) -> bool:
        """Whether `finish` would not wait: every rank has said something, or one has died."""
        if self.failure is not None or not all(process.is_alive() for process in self._processes):
            return True
        found = self._answers[number]
        return all(end.poll() for rank, end in enumerate(self._ends) if rank not in found)

    def finish(self, number: int, command: Command) -> list[object]:
        """Wait for every rank's answer to the command of that number; see `ask`."""
        try:
            return self._wait_for_answers(self._answers[number], command)
        finally:
            del self._answers[number]

    def _wait_for_answers(self, found: dict[int, Answer], command: Command) -> list[object]:
        deadline: float | None = None
        while len(found) < len(self._ends):
            if deadline is None and any(answer.error is not None for answer in found.values()):
                deadline = time.monotonic() + GRACE
            missing = [rank for rank in range(len(self._ends)) if rank not in found]
            ready = self._wait_for(missing, deadline)
            if not ready:
                failed = next(rank for rank, answer in found.items() if answer.error is not None)
                raise self._fail(failed, _described(found[failed]), command)
            for rank in ready:
                answer = self._receive(rank, command)
                # Else of a step that was given up.
                if answer.number in self._answers:
                    self._answers[answer.number][rank] = answer
        errors = {rank: answer.error for rank, answer in found.items() if answer.error is not None}
        if len(errors) == len(found):  # all alike: they are where they were before
            raise errors[0]
        for rank in errors:
            raise self._fail(rank, _described(found[rank]), command)
        return [found[rank].value for rank in range(len(self._ends))]

    # docs: ask end

    def close(self) -> None:
        """End all processes. Nothing may be told afterwards."""
        self.failure = self.failure or "the engine was shut down: make a new one"
        self._stop()

    def _wait_for(self, ranks: list[int], deadline: float | None) -> list[int]:
        """Return which of these ranks have answered or died; none if the time is over."""
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        waited: dict[object, int] = {self._ends[rank]: rank for rank in ranks}
        dying = {self._processes[rank].sentinel: rank for rank in range(len(self._ends))}
        ready = connection.wait([*waited, *dying], timeout)  # type: ignore[list-item]
        answered = [waited[thing] for thing in ready if thing in waited]
        # What a rank said before it died comes first.
        return answered or [dying[thing] for thing in ready]  # type: ignore[index]

    def _receive(self, rank: int, command: Command) -> Answer:
        try:
            answer = self._ends[rank].recv()
        except (EOFError, OSError):
            raise self._fail(rank, self._death(rank), command) from None
        assert isinstance(answer, Answer)
        return answer

    def _death(self, rank: int) -> str:
        process = self._processes[rank]
        process.join(GRACE)
        code = process.exitcode
        if code is not None and code < 0:
            return f"was killed by signal {-code}"
        return f"ended with exit status {code}"

    def _fail(self, rank: int, what: str, command: Command) -> RankError:
        """End all ranks; return the error that says which of them failed."""
        self.failure = (
            f"rank {rank} {what} in {_named(command)}; the other ranks were ended, and this engine "
            "is lost: make a new one"
        )
        self._stop()
        return RankError(self.failure)


def _named(command: Command) -> str:
    if isinstance(command, rank_process.Execute):
        return f"step {command.output.step}"
    if isinstance(command, rank_process.Wait):
        return f"step {command.step}"
    return {"Load": "loading the model", "Allocate": "allocating the cache"}.get(
        type(command).__name__, "clearing up"
    )


def _described(answer: Answer) -> str:
    return f"raised {type(answer.error).__name__} ({answer.error})"


def _stop(
    processes: list[ForkServerProcess],
    ends: list[connection.Connection],
    folder: tempfile.TemporaryDirectory[str],
) -> None:
    """Kill what runs: a rank may be waiting in a kernel for one that is gone."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    for end in ends:
        end.close()
    folder.cleanup()


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the program's main module while a process is started.

    A new process would run it again, to find what it is given there; a script without
    `if __name__ == "__main__"` would then start an engine in each rank.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
