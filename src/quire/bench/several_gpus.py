"""What the benchmarks of several GPUs check before they measure anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from quire.errors import QuireError


def count_gpus(bench: str, device: torch.device) -> int:
    """Return how many GPUs there are for `quire bench <bench>`.

    Raises:
        QuireError: fewer than two.
    """
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if count < 2:
        raise QuireError(f"bench {bench} needs two GPUs, and torch sees {count}")
    return count


def check_layouts(labels: Iterable[str], needed: Mapping[str, int], count: int) -> None:
    """Refuse layouts that there are not, or not with so many GPUs.

    Args:
        labels: those that are asked for.
        needed: the GPUs of each that there is.
        count: GPUs of this machine.

    Raises:
        QuireError: it names the first one that cannot be measured.
    """
    for label in labels:
        if label not in needed:
            raise QuireError(f"layout {label!r}: must be one of {', '.join(needed)}")
        if needed[label] > count:
            raise QuireError(f"layout {label!r} needs {needed[label]} GPUs, torch sees {count}")
