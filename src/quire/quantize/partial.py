"""`Partial`: what is finished of a quantization, so that a run that was stopped can go on.

Each layer has a file, written whole or not at all, and a manifest says of what and how. Nothing
else of a run is kept: the hidden states that enter a layer are computed again.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quire.errors import QuireError
from quire.quantization.codes import Codes
from quire.quantization.scheme import Scheme
from quire.quantize.layer import FinishedLayer

NAME = ".partial"
VERSION = 1  # of these files


class Partial:
    """The folder `.partial` in the folder of a result.

    Args:
        out: the folder of the result, made if it is not there.
        manifest: JSON values on which the codes depend, by name.

    Raises:
        QuireError: `out` holds something else, or a run with another manifest.
    """

    def __init__(self, out: Path, manifest: dict[str, Any]) -> None:
        self.out = out
        self.folder = out / NAME
        self.result = self.folder / "result"  # files on their way to `out`
        manifest = json.loads(json.dumps({"version": VERSION, **manifest}))
        path = self.folder / "manifest.json"
        if out.exists() and not out.is_dir():
            raise QuireError(f"--out {out} is a file; name a folder that is not there yet")
        if path.is_file():
            self._compare(json.loads(path.read_text("utf-8")), manifest)
        elif out.is_dir() and any(out.iterdir()):
            raise QuireError(
                f"--out {out} is not empty and no quantization that was stopped; name a folder "
                "that is not there yet"
            )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_whole(path, json.dumps(manifest, indent=1))
        others = {entry.name for entry in out.iterdir()} - {NAME}
        if others and not self.result.is_dir():  # once there is a result, files of it may be there
            raise QuireError(
                f"--out {out} holds {min(others)} beside a quantization that was stopped: move "
                "it away"
            )

    def _compare(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        for key in {**found, **wanted}:
            if found.get(key) != wanted.get(key):
                raise QuireError(
                    f"--out {self.out} has a quantization that was stopped, with "
                    f"{key}={found.get(key)!r} where this one has {wanted.get(key)!r}: give the "
                    f"same, or another folder, or remove {self.folder}"
                )

    def _path(self, index: int) -> Path:
        return self.folder / f"layer-{index:05}.safetensors"

    def has(self, index: int) -> bool:
        """Whether a layer is finished."""
        return self._path(index).is_file()

    def save(self, index: int, layer: FinishedLayer) -> None:
        """Keep a finished layer."""
        tensors = {f"plain/{name}": x.contiguous() for name, x in layer.tensors.items()}
        for name, codes in layer.codes.items():
            on_cpu = codes.to(torch.device("cpu"))
            tensors |= {f"values/{name}": on_cpu.values, f"scale/{name}": on_cpu.scale}
            if on_cpu.zero is not None:
                tensors[f"zero/{name}"] = on_cpu.zero
        path = self._path(index)
        unfinished = path.with_suffix(".tmp")
        save_file(tensors, unfinished, {"errors": json.dumps(layer.errors)})
        os.replace(unfinished, path)

    def load(self, index: int, scheme: Scheme) -> FinishedLayer:
        """Return a finished layer.

        Raises:
            QuireError: its file cannot be read.
        """
        parts: dict[str, dict[str, Tensor]] = {"plain": {}, "values": {}, "scale": {}, "zero": {}}
        try:
            with safe_open(self._path(index), framework="pt") as file:
                for key in file.keys():  # noqa: SIM118, a file is no dictionary
                    part, _, name = key.partition("/")
                    parts[part][name] = file.get_tensor(key)
                errors = json.loads(file.metadata()["errors"])
        except (SafetensorError, OSError) as error:
            raise QuireError(f"{self._path(index)} cannot be read ({error}); remove it") from None
        codes = {
            name: Codes(
                values,
                parts["scale"][name],
                parts["zero"].get(name),
                scheme.bits,
                scheme.group_size,
            )
            for name, values in parts["values"].items()
        }
        return FinishedLayer(codes, parts["plain"], errors)

    def new_result(self) -> Path:
        """Return an empty folder for the result's files."""
        if self.result.is_dir():
            shutil.rmtree(self.result)
        self.result.mkdir()
        return self.result

    def move_into_place(self) -> None:
        """Move the result to where it belongs, `config.json` last, and remove the rest."""
        files = sorted(self.result.iterdir(), key=lambda path: path.name == "config.json")
        for path in files:
            os.replace(path, self.out / path.name)
        shutil.rmtree(self.folder)


def _write_whole(path: Path, text: str) -> None:
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text, "utf-8")
    os.replace(unfinished, path)
