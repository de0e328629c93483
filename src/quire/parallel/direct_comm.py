"""`DirectComm`: sums over peers' memory, in one shot or two, where NCCL takes longer.

A decode step sums a few rows after every half layer: 8 KB of an 8B model, which NVLink moves in
tens of nanoseconds. What counts is how often the ranks must meet. In one shot every rank reads all
ranks' numbers and adds them up itself. In two it adds up its share of them, and reads the others'
sums then: that moves less, and meets once more. For both the numbers lie in memory that the peers
can read (torch's symmetric memory).
"""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symm_mem
from torch import Tensor

from quire.parallel.torch_comm import TorchComm

# On two H200s (measurements/parallel-h200-x2.json): one shot is the fastest to 128 KB, two from 256
# KB on, and at 32 MB two shots and NCCL are 12 % apart.
ONE_SHOT_BYTES = 128 << 10
MOST_BYTES = 16 << 20
_ALIGNMENT = 16  # bytes that a thread loads at once


class DirectComm(TorchComm):
    """Sums of at most `MOST_BYTES` over peers' memory; all else over NCCL."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device, dtype: torch.dtype) -> None:
        """Share a buffer with the peers.

        Raises:
            RuntimeError: the GPUs cannot read one another's memory.
        """
        super().__init__(group)
        self._name = group.group_name
        self._buffer = symm_mem.empty(MOST_BYTES // dtype.itemsize, dtype=dtype, device=device)
        symm_mem.rendezvous(self._buffer, self._name)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Add up in the order of the ranks: every rank has the same bits."""
        fits = x.nbytes <= MOST_BYTES and x.nbytes % (_ALIGNMENT * self.size) == 0
        if not fits or x.dtype != self._buffer.dtype:
            return super().all_reduce(x)
        place = self._buffer[: x.numel()].view(x.shape)
        ops = torch.ops.symm_mem
        if x.nbytes <= ONE_SHOT_BYTES:
            total: Tensor = ops.one_shot_all_reduce_copy(place, x.contiguous(), "sum", self._name)
            return total
        place.copy_(x)
        ops.two_shot_all_reduce_(place, "sum", self._name)
        return x.copy_(place)


def fastest(group: dist.ProcessGroup, device: torch.device, dtype: torch.dtype) -> TorchComm:
    """Return a GPU's end of a group: a `DirectComm` if its GPUs can, else over NCCL alone."""
    try:
        return DirectComm(group, device, dtype)
    except RuntimeError as error:
        warnings.warn(
            f"sums of ranks go over NCCL alone, since {device} cannot read its peers' memory: "
            f"{error}",
            stacklevel=2,
        )
        return TorchComm(group)
