"""Where an engine computes, and in which numbers, unless it is told."""

from __future__ import annotations

import torch

from quire.errors import QuireError
from quire.kernels.runtime import capability


def default_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device asked for, or the GPU if there is one.

    Raises:
        QuireError: neither a CPU nor a CUDA device; torch sees none of that number.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen: torch.device | None
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda") or str(chosen).startswith("cpu:"):
        raise QuireError(
            f"device={device!r}: must be 'cpu', 'cuda' or 'cuda:<number>': quire runs on no other"
        )
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise QuireError(
            f"device={str(device)!r}: torch sees {count or 'no'} CUDA devices; use device='cpu'"
        )
    if chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return chosen


def default_dtype(device: torch.device, dtype: str | torch.dtype | None = None) -> torch.dtype:
    """Return the dtype asked for; None or "auto" asks for what suits the device.

    float32 on a CPU; on a GPU bfloat16 from compute capability 8.0 on and float16 below.
    The capability decides, since torch reports emulated bfloat16 as supported on a T4.

    Raises:
        QuireError: a name that is no floating-point dtype quire runs.
    """
    if dtype is None or dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if capability(device) >= (8, 0) else torch.float16
    by_name = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "half": torch.float16,  # vLLM's names
        "float": torch.float32,
    }
    chosen = by_name.get(dtype) if isinstance(dtype, str) else dtype
    if chosen not in by_name.values():
        raise QuireError(f"dtype={dtype!r}: must be 'auto' or one of {', '.join(by_name)}")
    assert chosen is not None
    return chosen
