"""How the values of an engine's options are checked: by name, with what may be given.

Most take a group of options (`quire.config`) and the names of the fields that they look at.
"""

from __future__ import annotations

import torch

from quire.errors import QuireError
from quire.kv.storage import machine_memory
from quire.sampling.values import is_int, is_number


def require_counts(group: object, *names: str, least: int = 1) -> None:
    """Raise QuireError unless each is an integer of at least `least`; True is no integer."""
    for name in names:
        value = getattr(group, name)
        if not is_int(value) or value < least:
            raise QuireError(f"{name}={value!r}: must be an integer of at least {least}")


def require_flags(group: object, *names: str) -> None:
    """Raise QuireError unless each is True or False: text such as "no" would count as true."""
    for name in names:
        value = getattr(group, name)
        if not isinstance(value, bool):
            raise QuireError(f"{name}={value!r}: must be True or False")


def require_share(group: object, name: str, *, zero: bool, one: bool) -> None:
    """Raise QuireError unless it is a number between 0 and 1; `zero`, `one`: may it be that?"""
    value = getattr(group, name)
    if not is_number(value):
        raise QuireError(f"{name}={value!r}: must be a number")
    if not (0 < value < 1 or (zero and value == 0) or (one and value == 1)):
        raise QuireError(
            f"{name}={value!r}: must lie in {'[' if zero else '('}0, 1{']' if one else ')'}"
        )


def require_rows(
    max_num_seqs: int, max_model_len: int, max_blocks: int, device: torch.device
) -> None:
    """Raise QuireError for more rows than memory holds: all are made at the start.

    A row is the ids of its tokens (int64), its blocks (int32) and its sampling parameters.
    """
    row = 8 * (max_model_len + 1) + 4 * max_blocks + 64  # bytes
    memory = machine_memory()
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    most = memory // 2 // row  # the model and its cache need the rest
    if max_num_seqs > most:
        raise QuireError(
            f"max_num_seqs={max_num_seqs}: rows of max_model_len={max_model_len} tokens take "
            f"{max_num_seqs * row / 1e9:.1f} GB, and half of the memory of {device.type!r} is "
            f"{memory / 2e9:.1f} GB: lower max_num_seqs to at most {most}, or max_model_len"
        )
