"""`DirectComm`: sums over peers' memory, in one shot or two, where NCCL takes longer.

A decode step sums a few rows after every half layer: 8 KB of an 8B model, which NVLink moves in
tens of nanoseconds. What counts is how often the ranks must meet. In one shot every rank reads all
ranks' numbers and adds them up itself. In two it adds up its share of them, and reads the others'
sums then: that moves less, and meets once more. On the way into a norm each rank writes its
numbers to the peers instead, and the norm's kernel adds up (`quire.kernels.summed_norm`). For all
three the numbers lie in memory that the peers can reach (torch's symmetric memory).
"""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symm_mem
from torch import Tensor

from quire.kernels.norm import add_rms_norm
from quire.kernels.runtime import serves
from quire.kernels.summed_norm import Mailbox, summed_add_rms_norm
from quire.parallel.torch_comm import TorchComm

# On two H200s and on four (measurements/collectives-h200-x4.json) one shot is the fastest up to
# 128 KB, and two are from 256 KB on; with the copy back, which takes about 1.3 us, from 512 KB.
ONE_SHOT_BYTES = 256 << 10
# At 8 MB two shots are faster than NCCL on both. At 32 MB they are 11 % faster on two ranks, and
# 5 % slower on four.
MOST_BYTES = 16 << 20
# A sum in a norm sends a count beside every number up to so many rows. 8 rows of 8 KB take 4.3 us
# with either way, one row 3.2 and 3.9, 32 rows 6.5 and 4.9.
FEW_ROWS = 8
MOST_ROWS = 16384  # up to which a sum is made in a norm
# What a rank may send more than two shots would, in a norm. Of two ranks one shot sends no more; of
# four 512 KB take 13.3 us in the norm and 14.2 apart, 1 MB 21.3 and 17.9. Eight were not measured.
SPARED_BYTES = 900_000
MAILBOX_BYTES = 272 << 20  # for peers: 16,384 rows of 8 KB from one; of more, or longer, fewer
_ALIGNMENT = 16  # bytes that a thread loads at once


class DirectComm(TorchComm):
    """Sums of at most `MOST_BYTES` over peers' memory; all else over NCCL."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device, dtype: torch.dtype) -> None:
        """Share a buffer with the peers.

        Raises:
            RuntimeError: the GPUs cannot read one another's memory.
        """
        super().__init__(group)
        self._name, self._device = group.group_name, device
        self._buffer = symm_mem.empty(MOST_BYTES // dtype.itemsize, dtype=dtype, device=device)
        symm_mem.rendezvous(self._buffer, self._name)
        self._mailboxes: dict[int, Mailbox] = {}  # by the length of a row

    def add_rms_norm(
        self, part: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Add up on the way into the norm, in one kernel."""
        num_rows, size = part.shape
        if part.dtype.itemsize != 2 or size % 2 or not serves(part):
            return add_rms_norm(self.all_reduce(part), residual, weight, eps)
        mailbox = self.mailbox(size)
        # Every rank sends all of its rows to each peer, where two shots send 2 / size of them.
        more = part.nbytes * (self.size - 1) * (self.size - 2) // self.size
        if num_rows > mailbox.most_rows or more > SPARED_BYTES:
            return add_rms_norm(self.all_reduce(part), residual, weight, eps)
        return summed_add_rms_norm(part, residual, weight, eps, mailbox)

    def mailbox(self, columns: int) -> Mailbox:
        """Return this rank's mailbox for rows of so many numbers.

        Ranks make it, and share its memory, the first time; all come here in the same step.
        """
        if columns not in self._mailboxes:
            self._mailboxes[columns] = self._new_mailbox(columns)
        return self._mailboxes[columns]

    def _new_mailbox(self, columns: int) -> Mailbox:
        most = min(MOST_ROWS, MAILBOX_BYTES // Mailbox.num_bytes(self.size, 0, 1, columns))
        count = Mailbox.num_bytes(self.size, FEW_ROWS, most, columns)
        memory = symm_mem.empty(count, dtype=torch.uint8, device=self._device).zero_()
        handle = symm_mem.rendezvous(memory, self._name)
        torch.cuda.synchronize(self._device)
        dist.barrier(self._group)  # nobody writes before all have been cleared
        return Mailbox(
            rank=self.rank,
            size=self.size,
            few_rows=FEW_ROWS,
            most_rows=most,
            addresses=torch.tensor(handle.buffer_ptrs, dtype=torch.int64, device=self._device),
            counts=torch.zeros(most, dtype=torch.int32, device=self._device),
            memory=memory,
        )

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
