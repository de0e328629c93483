"""`Comm`: how the ranks of a group talk, whatever carries it.

The collectives are those of MPI and NCCL: every rank of the group calls the same one, in the same
order, with tensors of the same shape and dtype. See the chapter "Parallelism".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


class Arrival(Protocol):
    """A tensor on its way to this rank, while the rank computes."""

    def wait(self) -> Tensor:
        """Return it once it is here, and what this rank sent is on its way no more.

        On a GPU the current stream waits, not the host.
        """
        ...


class Comm(Protocol):
    """Swap point: one rank's end of a group."""

    rank: int  # of this end, in [0, size)
    size: int  # ranks of the group
    graph_safe: bool  # whether a CUDA graph may capture the collectives

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of all ranks' x; x may be overwritten."""
        ...

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        """Return all ranks' x, one behind the other along a dimension, in the order of ranks."""
        ...

    def all_to_all(self, parts: list[Tensor], sizes: list[int]) -> list[Tensor]:
        """Send `parts[r]` to rank r; return what each rank sent here.

        Args:
            parts: one a rank, equal but for their number of rows.
            sizes: rows that will come from each rank.
        """
        ...

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """Return rank `source`'s x; the others' x gives shape and dtype and may be overwritten."""
        ...

    def send(self, x: Tensor, target: int) -> None:
        """Send x to a rank that receives it."""
        ...

    def receive(self, like: Tensor, source: int) -> Tensor:
        """Return what a rank sends, of the shape and dtype of `like`, which may be overwritten."""
        ...

    def pass_on(self, x: Tensor, like: Tensor) -> Arrival:
        """Begin to send x to the next rank in the ring and to receive the one before's.

        After the last rank comes the first one. Every rank of the group calls this, and computes
        what it likes before it waits for the arrival. Until then x must not be changed, and `like`
        must not be used.

        Args:
            x: what goes out, contiguous.
            like: contiguous, of the shape and dtype that come in; may be overwritten.
        """
        ...


@runtime_checkable
class NormingComm(Protocol):
    """A `Comm` that sums on the way into a norm."""

    def add_rms_norm(
        self, part: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the norm of residual and the sum of all ranks' parts, and that sum.

        Both are [num_tokens, size]; weight is [size]. The residual may be overwritten.
        """
        ...


@dataclass(frozen=True)
class PartialSum:
    """A rank's part of a sum over a group, which nobody has added up yet.

    Row-parallel products and split tables give one. A norm follows, and whoever computes it may do
    both at once.
    """

    part: Tensor
    comm: Comm

    def total(self) -> Tensor:
        """Return the sum of all ranks' parts; the part may be overwritten."""
        return self.comm.all_reduce(self.part)


def total(x: Tensor | PartialSum) -> Tensor:
    """Return x, or what the ranks' parts of it add up to."""
    return x.total() if isinstance(x, PartialSum) else x


@dataclass(frozen=True)
class Arrived:
    """An `Arrival` that is here."""

    tensor: Tensor

    def wait(self) -> Tensor:
        """There is nothing to wait for."""
        return self.tensor


class Solo:
    """A group of one: nobody to talk to."""

    rank = 0
    size = 1
    graph_safe = True

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of one."""
        return x

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        """What this rank has."""
        return x

    def all_to_all(self, parts: list[Tensor], sizes: list[int]) -> list[Tensor]:
        """What this rank sends itself."""
        return parts

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """What this rank has."""
        return x

    def send(self, x: Tensor, target: int) -> None:
        """Nobody is there."""
        raise ValueError(f"a group of one has no rank {target} to send to")

    def receive(self, like: Tensor, source: int) -> Tensor:
        """Nobody is there."""
        raise ValueError(f"a group of one has no rank {source} to receive from")

    def pass_on(self, x: Tensor, like: Tensor) -> Arrival:
        """What this rank has: it is its own neighbour."""
        return Arrived(x)
