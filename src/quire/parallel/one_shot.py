"""`OneShotComm`: small sums over peers' memory, where NCCL takes several times as long.

A decode step sums a few rows after every half layer: 8 KB of an 8B model, which NVLink moves in
tens of nanoseconds. What counts is how often the ranks must meet. NCCL's ring needs several rounds;
in one shot every rank reads every other's numbers and adds them up itself, in a single kernel. For
that the numbers lie in memory that the peers can read (torch's symmetric memory).
"""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symm_mem
from torch import Tensor

from quire.parallel.torch_comm import TorchComm

# Every rank reads all numbers of all ranks: from some size on a ring moves less.
MOST_BYTES = 512 << 10
_ALIGNMENT = 16  # bytes that a thread loads at once


class OneShotComm(TorchComm):
    """Sums of at most `MOST_BYTES` in one shot; all else over NCCL."""

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
        total: Tensor = torch.ops.symm_mem.one_shot_all_reduce_copy(
            place, x.contiguous(), "sum", self._name
        )
        return total


def fastest(group: dist.ProcessGroup, device: torch.device, dtype: torch.dtype) -> TorchComm:
    """Return a GPU's end of a group: in one shot if all its GPUs can, else over NCCL alone."""
    try:
        return OneShotComm(group, device, dtype)
    except RuntimeError as error:
        warnings.warn(
            f"sums of ranks go over NCCL alone, since {device} cannot read its peers' memory: "
            f"{error}",
            stacklevel=2,
        )
        return TorchComm(group)
