"""Launch settings of the attention kernels: a table a GPU, measured once and checked in.

Nothing is tuned while serving: a search in the middle of a request would stall it, and one
inside a CUDA graph's capture cannot run at all. `python -m quire.bench.tune_attention`
measures the settings again and writes the table.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

TABLES = Path(__file__).parent


@dataclass(frozen=True)
class DecodeTuning:
    """Settings of `paged_decode`."""

    tile: int  # keys a program handles at once
    warps: int
    stages: int  # tiles of keys and values in flight or in use
    programs: int  # programs that fill the GPU: splits are added up to about this many
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
    """The settings of one GPU and head size."""

    decode: DecodeTuning
    prefill: PrefillTuning


def load(table: Path, head_size: int, itemsize: int) -> Tuning:
    """Read the settings for a head size (elements) and element size (bytes).

    A head of twice the bytes halves the tiles, so that shared memory holds as many stages.
    """
    settings = tomllib.loads(table.read_text("utf-8"))
    decode, prefill = DecodeTuning(**settings["decode"]), PrefillTuning(**settings["prefill"])
    return Tuning(decode, prefill)


@cache
def tuning(device: torch.device, head_size: int, itemsize: int) -> Tuning:
    """Return the settings for a device; a GPU without a table gets the default one."""
    name = "interpreter"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).lower().replace(" ", "-")
    table = TABLES / f"{name}.toml"
    return load(table if table.exists() else TABLES / "default.toml", head_size, itemsize)
