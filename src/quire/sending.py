"""`send`: numbers that the host knows, on their way to the device.

A step is queued while the device computes the one before it. That ends with the first copy that
waits: from pageable memory, of a Python number that an indexed assignment takes
(`table[rows] = 0`), or into `torch.tensor(..., device=...)`. Each waits until all that is queued
is done, and the next step's kernels are launched into an idle device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host's to the device, without making the host wait."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
