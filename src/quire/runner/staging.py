"""`Staging`: everything a step needs from the host, in one copy.

A step's numbers are written side by side into pinned memory and sent at once: a copy
costs the host about as much for eight bytes as for a megabyte.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

_ALIGNMENT = 16  # bytes; what a vectorised load wants


def make_staging(num_bytes: int, num_buffers: int, device: torch.device) -> Staging | Unstaged:
    """Return what brings at most `num_bytes` a step from the host to the device."""
    return Unstaged() if device.type == "cpu" else Staging(num_bytes, num_buffers, device)


class Unstaged:
    """On a CPU a step's numbers are where the step reads them already."""

    def begin(self) -> None:
        """Nothing to prepare."""

    def put(self, values: ArrayLike, dtype: type[np.generic]) -> Tensor:
        """Return numbers as a tensor of their own."""
        return torch.from_numpy(np.array(values, dtype=dtype))

    def upload(self) -> None:
        """Nothing to send."""


class Staging:
    """Pinned host buffers, used in turn, and the device buffer they are copied to.

    A host buffer is written again `num_buffers` uploads later: as many may be queued, and the
    next one waits until the device has read the oldest. The device's buffer is one, since its
    steps run one after another. On a CPU both are the same memory.
    """

    def __init__(self, num_bytes: int, num_buffers: int, device: torch.device) -> None:
        """Allocate buffers for at most `num_bytes` a step."""
        on_host = device.type == "cpu"
        self._host = [
            torch.empty(num_bytes, dtype=torch.uint8, pin_memory=not on_host)
            for _ in range(1 if on_host else num_buffers)
        ]
        self._device = (
            self._host[0] if on_host else torch.empty(num_bytes, dtype=torch.uint8, device=device)
        )
        self._views = [buffer.numpy() for buffer in self._host]
        self._read = [None if on_host else torch.cuda.Event() for _ in self._host]
        self._turn = 0
        self._used = 0

    def begin(self) -> None:
        """Start a step's upload, once the device has read what lies in its buffer."""
        self._turn = (self._turn + 1) % len(self._host)
        self._used = 0
        read = self._read[self._turn]
        if read is not None:
            read.synchronize()  # at once, before the first upload

    def put(self, values: ArrayLike, dtype: type[np.generic]) -> Tensor:
        """Write numbers and return where on the device they will be after `upload`.

        The same sequence of sizes gives the same places, which a captured graph relies on.
        """
        array: NDArray[np.generic] = np.asarray(values, dtype=dtype)
        begin, end = self._used, self._used + array.nbytes
        self._views[self._turn][begin:end] = array.reshape(-1).view(np.uint8)
        self._used = -(-end // _ALIGNMENT) * _ALIGNMENT
        return self._device[begin:end].view(_TORCH[array.dtype]).view(array.shape)

    def upload(self) -> None:
        """Queue the copy."""
        if len(self._host) > 1 or self._host[0] is not self._device:
            source = self._host[self._turn][: self._used]
            self._device[: self._used].copy_(source, non_blocking=True)
        read = self._read[self._turn]
        if read is not None:
            read.record()


_TORCH = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}
