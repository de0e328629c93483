"""Launch settings of the attention kernels: a table a GPU, measured once and checked in.

Nothing is tuned while serving: a search in the middle of a request would stall it, and one
inside a CUDA graph's capture cannot run at all. `python -m quire.bench.tune_attention`
measures again and writes the table of the GPU it finds.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from quire.errors import QuireError

TABLES = Path(__file__).parent


@dataclass(frozen=True)
class DecodeTuning:
    """Settings of `paged_decode`."""

    tile: int  # keys a program handles at once
    warps: int
    stages: int  # tiles of keys and values in flight or in use
    programs: int  # sequences are split while there are fewer programs than this
    min_keys: int  # a split has at least so many keys


@dataclass(frozen=True)
class PrefillTuning:
    """Settings of `prefill`."""

    rows: int  # pairs of token and query head in a tile
    keys: int  # keys in a tile
    warps: int
    stages: int


@dataclass(frozen=True)
class Tuning:
    """The settings for one GPU, size of elements, and head size."""

    decode: DecodeTuning
    prefill: PrefillTuning


def table_path(device: torch.device) -> Path:
    """Return where the table of a GPU is, or would be."""
    name = torch.cuda.get_device_name(device)
    return TABLES / f"{name.lower().replace(' ', '-')}.toml"


@cache
def tuning(device: torch.device, head_size: int, itemsize: int) -> Tuning:
    """Return the settings for a device; a GPU without a table gets the default one."""
    path = table_path(device)
    return read_table(path if path.exists() else TABLES / "default.toml", head_size, itemsize)


def read_table(path: Path, head_size: int, itemsize: int) -> Tuning:
    """Return a table's settings for a head size, in elements of `itemsize` bytes.

    Raises:
        QuireError: the kernels do not serve the head size.
    """
    rows = tomllib.loads(path.read_text("utf-8"))["settings"]  # in order of head size
    fitting = [r for r in rows if r["itemsize"] == itemsize and r["head_size"] >= head_size]
    if head_size < 16 or head_size & (head_size - 1) or not fitting:
        raise QuireError(
            f"the attention kernels take head sizes 16, 32, 64, 128, 256 and elements of 2 or 4 "
            f"bytes, not {head_size} and {itemsize}: use Components(attention=TorchAttention)"
        )
    row = fitting[0]
    return Tuning(DecodeTuning(**row["decode"]), PrefillTuning(**row["prefill"]))
