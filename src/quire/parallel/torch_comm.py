"""`TorchComm`: ranks in processes of their own, over torch.distributed: NCCL on GPUs, else gloo."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from quire.parallel.comm import Arrival, Comm, Solo

# A rank that waits longer for the others takes them for lost, and raises.
PATIENCE = timedelta(seconds=60)

# torch 2.13 has a new name for it.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@contextmanager
def world(rank: int, size: int, rendezvous: str, device: torch.device) -> Iterator[None]:
    """Within, this process is rank `rank` of `size`; it should end after an error.

    Args:
        rendezvous: where the ranks find one another: `file://…` on one machine, else
            `tcp://host:port` of rank 0's machine.
    """
    if rendezvous.startswith("file:"):  # all on this machine: nobody else can connect
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=rendezvous,
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
        device_id=device if device.type == "cuda" else None,
    )
    yield
    # Not after an error: NCCL would wait for the others, which wait for this rank, and nobody would
    # hear of it.
    dist.destroy_process_group()


@dataclass(frozen=True)
class _Underway:
    """An `Arrival` that torch's works bring."""

    sent: Tensor  # kept alive until it is gone
    received: Tensor
    works: list[dist.Work]

    def wait(self) -> Tensor:
        """Let NCCL's stream be waited for by the current one; over gloo, wait."""
        for work in self.works:
            work.wait()
        return self.received


class TorchComm:
    """This process's end of a group (`quire.parallel.comm.Comm`)."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        """Be this process's end of a group that it is in."""
        self._group = group
        self.rank = dist.get_rank(self._group)
        self.size = dist.get_world_size(self._group)
        self.graph_safe = dist.get_backend(self._group) == "nccl"

    def all_reduce(self, x: Tensor) -> Tensor:
        """Add up in place."""
        dist.all_reduce(x, group=self._group)
        return x

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        """Join what the ranks have."""
        gathered = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        _all_gather(gathered, x.contiguous(), group=self._group)
        dim %= x.dim()
        return gathered.view(self.size, *x.shape).movedim(0, dim).flatten(dim, dim + 1)

    def all_to_all(self, parts: list[Tensor], sizes: list[int]) -> list[Tensor]:
        """Hand each rank what the others have for it."""
        sent = torch.cat(parts)
        received = sent.new_empty((sum(sizes), *sent.shape[1:]))
        counts = [len(part) for part in parts]
        dist.all_to_all_single(received, sent, sizes, counts, group=self._group)
        return list(received.split(sizes))

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """Hand out what one rank has, in place."""
        dist.broadcast(x, group=self._group, group_src=source)
        return x

    def send(self, x: Tensor, target: int) -> None:
        """Send to a rank that receives."""
        dist.send(x.contiguous(), group=self._group, group_dst=target)

    def receive(self, like: Tensor, source: int) -> Tensor:
        """Receive in place."""
        dist.recv(like, group=self._group, group_src=source)
        return like

    def pass_on(self, x: Tensor, like: Tensor) -> Arrival:
        """Send and receive at once, in one launch of NCCL on a stream of its own."""
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, x, group=self._group, group_peer=after),
                dist.P2POp(dist.irecv, like, group=self._group, group_peer=before),
            ]
        )
        return _Underway(x, like, works)


def join(groups: list[list[int]], make: Callable[[dist.ProcessGroup], Comm] | None = None) -> Comm:
    """Form groups of ranks; return this process's end of that which it is in.

    Every rank of the world must call this, with the same groups. `make` gives the end; None: a
    `TorchComm`.
    """
    own: Comm = Solo()
    for members in groups:
        if len(members) == 1:
            continue
        group = dist.new_group(members)
        if dist.get_rank() in members:
            own = (make or TorchComm)(group)
    return own
