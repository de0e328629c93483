"""From finished layers to a checkpoint: weight files, `config.json`, and what is copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from quire.models.config import read_json
from quire.quantization.write import quantization_config, stored_tensors
from quire.quantize.layer import FinishedLayer
from quire.quantize.partial import Partial
from quire.quantize.recipe import Recipe
from quire.quantize.source import Source

MOST_BYTES = 4 << 30  # of a weight file
COPIED = ("*.json", "*.model", "*.txt", "*.jinja")  # tokenizer, chat template, generation
NOT_COPIED = ("config.json", "model.safetensors.index.json")


@dataclass
class Sizes:
    """Of a result."""

    all_bytes: int = 0
    quantized_bytes: int = 0  # values, scales and zeros
    quantized_weights: int = 0


def assemble(source: Source, partial: Partial, recipe: Recipe, ignore: list[str]) -> Sizes:
    """Write the result's files into the partial's folder.

    Args:
        source: of what is not in a decoder layer, and of the other files.
        partial: with all layers finished.
        recipe: by which they were.
        ignore: names of the linear layers that stay as they were.
    """
    folder = partial.new_result()
    layers = (partial.load(i, recipe.scheme) for i in range(source.config.num_layers))
    sizes = Sizes()
    sizes.all_bytes = _write_weights(_all_tensors(source, layers, recipe, sizes), folder)
    config = read_json(source.folder / "config.json")
    config["quantization_config"] = quantization_config(recipe.scheme, ignore)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    for pattern in COPIED:
        for path in source.folder.glob(pattern):
            if path.name not in NOT_COPIED:
                shutil.copyfile(path, folder / path.name)
    return sizes


def _all_tensors(
    source: Source, layers: Iterable[FinishedLayer], recipe: Recipe, sizes: Sizes
) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors; add to the sizes of what is quantized."""
    for name in source.files:
        if not name.startswith("model.layers."):
            yield name, source.tensor(name)
    for layer in layers:
        yield from layer.tensors.items()
        for name, codes in layer.codes.items():
            sizes.quantized_weights += codes.values.numel()
            for last, tensor in stored_tensors(codes, recipe.scheme, source.dtype).items():
                sizes.quantized_bytes += tensor.nbytes if last != "weight_shape" else 0
                yield f"{name}.{last}", tensor


def _write_weights(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> int:
    """Write one file, or several with an index; return the bytes of all tensors."""
    parts: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    total = waiting_bytes = 0

    def write() -> None:
        save_file(waiting, folder / f"{len(parts)}.safetensors", {"format": "pt"})
        parts.append(list(waiting))
        waiting.clear()

    for name, tensor in tensors:
        if waiting and waiting_bytes + tensor.nbytes > MOST_BYTES:
            write()
            waiting_bytes = 0
        waiting[name] = tensor.contiguous()
        waiting_bytes += tensor.nbytes
        total += tensor.nbytes
    write()
    if len(parts) == 1:
        (folder / "0.safetensors").rename(folder / "model.safetensors")
        return total
    places: dict[str, str] = {}
    for i, part in enumerate(parts):
        final = f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
        (folder / f"{i}.safetensors").rename(folder / final)
        places |= dict.fromkeys(part, final)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=1) + "\n", "utf-8")
    return total
