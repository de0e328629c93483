"""`Lockstep`: the ranks of a group as threads, of which one runs at a time.

Real ranks run at once, and whatever they do wrong shows as a hang or as wrong numbers. Here a
rank runs until it must wait for another one; then the next has its turn, always in the same
order. Runs repeat exactly, a call that does not fit the others' is named, and where all wait
there is an error that says who waits for what. Nothing is computed at once, so nothing is
faster: this is for tests, pages and finding mistakes. See the chapter "Parallelism".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from quire.errors import QuireError
from quire.parallel.comm import Arrival

T = TypeVar("T")


class LockstepError(QuireError):
    """Ranks that wait for what will never come, or whose calls do not fit together."""


@dataclass
class _Call:
    """What a rank asks for and waits in."""

    name: str  # "all_reduce", …
    members: tuple[int, ...]  # ranks that must make the same call
    value: Any
    form: tuple[object, ...]  # must be equal on all members
    finish: Callable[[list[Any]], list[Any]]  # the members' values → what each is answered

    def __str__(self) -> str:
        return f"{self.name}({_text(self.form)})"


@dataclass
class _Rank(Generic[T]):
    """One rank's thread, and where it stands."""

    number: int
    task: Callable[[], T]
    device: int | None  # the GPU of who started it; threads begin with none
    turn: threading.Event = field(default_factory=threading.Event)
    call: _Call | None = None  # it waits in this
    answer: Any = None
    error: BaseException | None = None
    cancelled: bool = False
    finished: bool = False
    result: T | None = None


class Lockstep:
    """A world of `size` ranks. `comm` is a rank's end of it, `run` lets all ranks work."""

    def __init__(self, size: int) -> None:
        """Make a world in which nobody works yet."""
        self.size = size
        self._ranks: list[_Rank[Any]] = []
        self._back = threading.Event()  # a rank has given its turn back

    def comm(self, rank: int, members: Sequence[int] | None = None) -> LockstepComm:
        """Return a rank's end of the group of `members`; None: of all ranks."""
        return LockstepComm(self, rank, tuple(range(self.size) if members is None else members))

    # docs: run begin
    def run(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Carry out one task a rank, a turn each, until all have returned.

        Raises:
            LockstepError: the ranks' calls do not fit together, or nobody can go on.
            BaseException: what a rank raised; the others' tasks are ended.
        """
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._ranks = [_Rank(number, task, device) for number, task in enumerate(tasks)]
        threads = [
            threading.Thread(target=self._work, args=(rank,), name=f"rank {rank.number}")
            for rank in self._ranks
        ]
        for thread in threads:
            thread.start()
        try:
            while any(not rank.finished for rank in self._ranks):
                ready = [r for r in self._ranks if not r.finished and r.call is None]
                if not ready:
                    raise LockstepError(self._standstill())
                for rank in ready:
                    self._give_turn(rank)
                    if rank.error is not None:
                        raise rank.error
                self._answer_calls()
        finally:
            for rank in self._ranks:
                if not rank.finished:
                    rank.cancelled = True
                    self._give_turn(rank)
            for thread in threads:
                thread.join()
        return [cast(T, rank.result) for rank in self._ranks]

    # docs: run end

    def wait_in(self, number: int, call: _Call) -> Any:
        """Called by a rank: wait until the other members have made the same call."""
        rank = self._ranks[number]
        rank.call = call
        self._back.set()
        rank.turn.wait()
        rank.turn.clear()
        if rank.cancelled:
            raise _Cancelled
        return rank.answer

    def _work(self, rank: _Rank[Any]) -> None:
        rank.turn.wait()
        rank.turn.clear()
        try:
            if rank.device is not None:
                torch.cuda.set_device(rank.device)
            if not rank.cancelled:
                rank.result = rank.task()
        except _Cancelled:
            pass
        except BaseException as error:  # raised again by `run`
            rank.error = error
        rank.finished = True
        self._back.set()

    def _give_turn(self, rank: _Rank[Any]) -> None:
        """Let a rank run until it waits or has ended."""
        self._back.clear()
        rank.turn.set()
        self._back.wait()

    def _answer_calls(self) -> None:
        """Carry out every call that all its members have made."""
        for rank in self._ranks:
            call = rank.call
            if call is None or rank.number != call.members[0]:
                continue
            others = [self._ranks[member] for member in call.members]
            calls = [other.call for other in others if other.call is not None]
            if len(calls) < len(others) or any(set(c.members) != set(call.members) for c in calls):
                continue  # some come later, perhaps after a call with others
            for other, its in zip(others, calls, strict=True):
                if (its.name, its.form, its.members) != (call.name, call.form, call.members):
                    raise LockstepError(
                        f"rank {rank.number} is in {call}, rank {other.number} in {its}: all ranks "
                        "of a group make the same calls in the same order"
                    )
            answers = call.finish([its.value for its in calls])
            for other, answer in zip(others, answers, strict=True):
                other.call, other.answer = None, answer

    def _standstill(self) -> str:
        states = [
            f"rank {rank.number} has returned"
            if rank.call is None
            else f"rank {rank.number} waits in {rank.call}"
            for rank in self._ranks
        ]
        return f"nobody can go on: {', '.join(states)}"


class _Cancelled(BaseException):
    """Ends the task of a rank whose world has come to an end."""


class LockstepComm:
    """A rank's end of a group in a `Lockstep` world (`quire.parallel.comm.Comm`)."""

    graph_safe = False

    def __init__(self, world: Lockstep, rank: int, members: tuple[int, ...]) -> None:
        """`rank` and `members` are numbers of the world; `self.rank` is the place among them."""
        self._world = world
        self._number = rank
        self._members = members
        self.rank = members.index(rank)
        self.size = len(members)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Add up in the order of the ranks, so that the sum is always the same."""

        def add(values: list[Tensor]) -> list[Tensor]:
            total = values[0].clone()
            for value in values[1:]:
                total += value
            return [total.clone() for _ in values]

        return self._collective("all_reduce", x, _form(x), add)

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        """Join what the ranks have."""

        def join(values: list[Tensor]) -> list[Tensor]:
            return [torch.cat(values, dim) for _ in values]

        return self._collective("all_gather", x, (*_form(x), dim), join)

    def all_to_all(self, parts: list[Tensor], sizes: list[int]) -> list[Tensor]:
        """Hand each rank what the others have for it."""

        def swap(values: list[list[Tensor]]) -> list[list[Tensor]]:
            return [[own[r].clone() for own in values] for r in range(len(values))]

        first = parts[0]
        form = (str(first.dtype).removeprefix("torch."), list(first.shape[1:]))
        received: list[Tensor] = self._collective("all_to_all", parts, form, swap)
        came = [len(part) for part in received]
        if came != sizes:
            raise LockstepError(
                f"rank {self._number} expected {sizes} rows of the ranks in all_to_all, and they "
                f"sent {came}"
            )
        return received

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """Hand out what one rank has."""

        def copy(values: list[Tensor]) -> list[Tensor]:
            return [values[source].clone() for _ in values]

        return self._collective("broadcast", x, (*_form(x), source), copy)

    def send(self, x: Tensor, target: int) -> None:
        """Wait until the target receives."""
        self._deliver(x, x, self.rank, target)

    def receive(self, like: Tensor, source: int) -> Tensor:
        """Wait until the source sends."""
        return self._deliver(None, like, source, self.rank)

    def pass_on(self, x: Tensor, like: Tensor) -> Arrival:
        """Exchange at the worst moment: `like` is overwritten at once, x is read in the wait."""
        if like.is_floating_point():
            like.fill_(torch.nan)
        return _Awaited(self, x, like)

    def take_turn_in_ring(self, x: Tensor, like: Tensor) -> Tensor:
        """Wait until all ranks of the group wait; fill `like` with what the one before sent."""

        def turn(values: list[Tensor]) -> list[Tensor]:
            return [values[rank - 1].clone() for rank in range(len(values))]

        received: Tensor = self._collective("pass_on", x, _form(x)[:1], turn)
        if _form(received) != _form(like):
            before = self._members[self.rank - 1]
            raise LockstepError(
                f"rank {self._number} expected ({_text(_form(like))}) of rank {before} in pass_on, "
                f"and ({_text(_form(received))}) came"
            )
        return like.copy_(received)

    def _deliver(self, x: Tensor | None, like: Tensor, source: int, target: int) -> Tensor:
        pair = (self._members[source], self._members[target])

        def copy(values: list[Tensor | None]) -> list[Tensor]:
            sent = values[0]
            assert sent is not None, "the first of the pair sends"
            return [sent, sent.clone()]

        form = (*_form(like), f"from {pair[0]} to {pair[1]}")
        return self._world.wait_in(self._number, _Call("send", pair, x, form, copy))

    def _collective(
        self,
        name: str,
        value: Any,
        form: tuple[object, ...],
        finish: Callable[[list[Any]], list[Any]],
    ) -> Any:
        return self._world.wait_in(self._number, _Call(name, self._members, value, form, finish))


@dataclass(frozen=True)
class _Awaited:
    """An `Arrival` whose exchange takes place when it is waited for."""

    comm: LockstepComm
    sent: Tensor
    like: Tensor

    def wait(self) -> Tensor:
        """Wait until all ranks of the group wait."""
        return self.comm.take_turn_in_ring(self.sent, self.like)


def _text(form: tuple[object, ...]) -> str:
    return ", ".join(str(part) for part in form)


def _form(x: Tensor) -> tuple[object, ...]:
    return str(x.dtype).removeprefix("torch."), list(x.shape)
