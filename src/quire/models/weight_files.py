"""The safetensors files of a checkpoint, mapped into memory: a tensor is a view of its file.

A mapping that is shared with the file costs no memory of its own: its pages are the kernel's
cache of the file, read when they are touched and dropped when memory is short. (The
library's own tensors lie in a private mapping, which counts as memory in full under a limit
on a process's data.) A slice is a view as well, so whoever copies a part of a tensor reads
that part alone.
"""

from __future__ import annotations

import json
import mmap
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quire.errors import CheckpointError, UnsupportedModelError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class WeightFile:
    """One safetensors file. Its tensors keep the mapping alive."""

    def __init__(self, path: Path) -> None:
        """Read the header and map the file.

        Raises:
            CheckpointError: the file cannot be read, or is no whole safetensors file.
        """
        self.path = path
        try:
            with safe_open(path, framework="numpy"):
                pass  # the library checks the header, and that the file holds what it says
            with path.open("rb") as file:
                (size,) = struct.unpack("<Q", file.read(8))
                self._header = json.loads(file.read(size))
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); download it again") from error
        self._header.pop("__metadata__", None)
        self._begin = 8 + size

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in the order of their bytes."""
        return sorted(self._header, key=lambda name: self._header[name]["data_offsets"])

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype.

        Raises:
            UnsupportedModelError: one that torch or quire lacks.
        """
        stored = self._header[name]["dtype"]
        if stored not in _DTYPES:
            raise UnsupportedModelError(
                f"{self.path}: {name} is stored as {stored}; quire reads {', '.join(_DTYPES)}"
            )
        return _DTYPES[stored]

    def tensor(self, name: str) -> Tensor:
        """Return a tensor as a view of the file. Nobody may write to it.

        Raises:
            UnsupportedModelError: a dtype that torch or quire lacks.
        """
        shape, dtype = self._header[name]["shape"], self.dtype(name)
        begin, end = self._header[name]["data_offsets"]
        if begin == end:
            return torch.empty(shape, dtype=dtype)
        with warnings.catch_warnings():  # torch warns that the bytes are read-only
            warnings.simplefilter("ignore", UserWarning)
            view = torch.frombuffer(
                self._map,
                dtype=dtype,
                count=(end - begin) // dtype.itemsize,
                offset=self._begin + begin,
            )
        return view.view(shape)


def open_weights(folder: Path) -> Iterator[WeightFile]:
    """Open a checkpoint's files one after another.

    Raises:
        CheckpointError: a file is missing or cannot be read.
        UnsupportedModelError: the weights are in another format.
    """
    for path in _weight_paths(folder):
        yield WeightFile(path)


def stored_dtype(folder: Path) -> str:
    """Return the name of a checkpoint's own dtype: that of its first floating-point tensor.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    dtypes = (file.dtype(name) for file in open_weights(folder) for name in file.names)
    first = next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)
    return str(first).removeprefix("torch.")


def _weight_paths(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{index} lists no weight files ({error!r}); download it again"
            ) from None
    elif (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    elif list(folder.glob("*.bin")):
        raise UnsupportedModelError(
            f"{folder} has only .bin weights; quire reads safetensors: save the model with "
            "transformers' save_pretrained first"
        )
    else:
        raise CheckpointError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json"
        )
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name} is missing; {index.name} lists it: download it again"
            )
    return [folder / name for name in names]
