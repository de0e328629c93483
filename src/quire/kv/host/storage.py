"""`HostBlocks`: the host's memory of saved blocks, and the copies to and from it.

A block is small in each layer's tensors and lies in all of them; a copy over PCIe wants to be
large. So a block is one row here, everything it holds in all layers of its group side by
side: blocks are gathered into rows on the device, and rows cross in one piece. Copies are
queued on the stream that computes, which keeps them in order with it and lets nothing overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from quire.errors import QuireError
from quire.kv.storage import KVStorage, machine_memory
from quire.messages import Transfer
from quire.sending import send

STAGING_BYTES = 64 << 20  # rows that are gathered on the device at once


class HostBlocks:
    """Rows of pinned memory [num_host_blocks, words], one tensor a KV group."""

    def __init__(self, storage: KVStorage, groups: Sequence[int], num_host_blocks: int) -> None:
        """`groups[i]` is the KV group of layer i of `storage`.

        Raises:
            QuireError: the machine has less memory than that.
        """
        self._parts: list[list[Tensor]] = [[] for _ in range(max(groups) + 1)]
        for kv, group in zip(storage.layers, groups, strict=True):
            self._parts[group] += [_as_rows(x) for x in kv.tensors]
        words = [sum(part.shape[1] for part in parts) for parts in self._parts]
        _require_memory(num_host_blocks, 8 * sum(words))
        self._device = self._parts[0][0].device
        pinned = self._device.type == "cuda"
        self._rows = [
            torch.empty((num_host_blocks, n), dtype=torch.int64, pin_memory=pinned) for n in words
        ]

    @property
    def num_bytes(self) -> int:
        """Bytes of all groups' rows."""
        return sum(rows.nbytes for rows in self._rows)

    def carry_out(self, transfers: Sequence[Transfer]) -> None:
        """Queue copies, with the effect of one after another in their order."""
        for group, (parts, host) in enumerate(zip(self._parts, self._rows, strict=True)):
            own = [transfer for transfer in transfers if transfer.group == group]
            for run in _runs(own, max(1, STAGING_BYTES // (8 * host.shape[1]))):
                sources, targets = [t.source for t in run], [t.target for t in run]
                if run[0].kind == "save":
                    self._save(parts, host, sources, targets)
                else:
                    self._load(parts, host, sources, targets)

    def _save(self, parts: list[Tensor], host: Tensor, blocks: list[int], slots: list[int]) -> None:
        ids = send(torch.tensor(blocks), self._device)
        rows = torch.cat([part.index_select(0, ids) for part in parts], 1)
        for begin, end in _neighbours(slots):
            first = slots[begin]
            host[first : first + end - begin].copy_(rows[begin:end], non_blocking=True)

    def _load(self, parts: list[Tensor], host: Tensor, slots: list[int], blocks: list[int]) -> None:
        ids = send(torch.tensor(blocks), self._device)
        rows = torch.empty((len(slots), host.shape[1]), dtype=host.dtype, device=self._device)
        for begin, end in _neighbours(slots):
            first = slots[begin]
            rows[begin:end].copy_(host[first : first + end - begin], non_blocking=True)
        for part, columns in zip(parts, rows.split([p.shape[1] for p in parts], 1), strict=True):
            part.index_copy_(0, ids, columns)


def _as_rows(x: Tensor) -> Tensor:
    """View a tensor of blocks as int64 [num_blocks, words], in the order of its memory."""
    contiguous = x if x.is_contiguous() else x.transpose(1, 2)
    return contiguous.view(x.shape[0], -1).view(torch.int64)


def _runs(transfers: list[Transfer], longest: int) -> Iterator[list[Transfer]]:
    """Cut a list where its kind changes, a target comes again, or a run is long enough.

    Copies of a run may then be done in any order: none reads what another writes.
    """
    run: list[Transfer] = []
    targets: set[int] = set()
    for transfer in transfers:
        if run and (
            transfer.kind != run[0].kind or transfer.target in targets or len(run) == longest
        ):
            yield run
            run, targets = [], set()
        run.append(transfer)
        targets.add(transfer.target)
    if run:
        yield run


def _neighbours(slots: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the ranges [begin, end) of a list in which each number is the last one's next."""
    begin = 0
    for end in range(1, len(slots) + 1):
        if end == len(slots) or slots[end] != slots[end - 1] + 1:
            yield begin, end
            begin = end


def _require_memory(num_host_blocks: int, block_bytes: int) -> None:
    memory = machine_memory()
    if num_host_blocks * block_bytes > memory:
        raise QuireError(
            f"num_host_blocks={num_host_blocks}: they take "
            f"{num_host_blocks * block_bytes / 1e9:.1f} GB of host memory and the machine has "
            f"{memory / 1e9:.1f} GB: ask for at most {memory // block_bytes}"
        )
