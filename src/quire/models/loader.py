"""From a name to a loaded `Decoder`: find the checkpoint, read its safetensors.

Weights go from the memory-mapped file straight into the parameter they belong to, one
tensor at a time, so that a load needs no second copy of the model.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from quire.errors import CheckpointError, UnsupportedModelError
from quire.layers.linear import Linear
from quire.layers.norm import HeadNorm, RMSNorm
from quire.models.decoder import Decoder
from quire.resources import shipped_models

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def resolve_checkpoint(name: str | Path) -> Path:
    """Return the folder of a checkpoint: shipped, local, or fetched from the hub.

    Args:
        name: "quire-mini", a folder, or a hub name such as "Qwen/Qwen3-0.6B".

    Raises:
        CheckpointError: nothing of that name; the message lists what there is.
    """
    shipped = shipped_models()
    if str(name) in shipped:
        return shipped[str(name)]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(name, Path) or not _HUB_NAME.fullmatch(name):
        raise CheckpointError(
            f"no checkpoint {str(name)!r}: it is neither a shipped model "
            f"({', '.join(shipped)}), nor a folder, nor a hub name like 'Qwen/Qwen3-0.6B'"
        )
    from huggingface_hub import snapshot_download  # slow to import, and seldom needed

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's client raises many kinds
        raise CheckpointError(
            f"could not fetch {name!r} from the hub ({type(error).__name__}: {error}); "
            f"check the name and the network, or use a local folder or a shipped model "
            f"({', '.join(shipped)})"
        ) from error


def load_weights(model: Decoder, folder: Path) -> None:
    """Fill a `Decoder` from the safetensors files of a folder.

    Raises:
        CheckpointError: a file or tensor is missing, unreadable, of the wrong shape or
            unknown; the message names it.
    """
    takers = _destinations(model)
    missing = set(takers)
    for path, name, tensor in _checkpoint_tensors(folder):
        if name in takers:
            try:
                takers[name](tensor)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {name}: {error}") from None
            missing.discard(name)
        elif not _is_redundant(name, model):
            raise CheckpointError(
                f"{path}: unexpected tensor {name!r}; do config.json and weights belong together?"
            )
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors that its config asks for, "
            f"{min(missing)!r} among them; is a weight file missing?"
        )
    _finish(model)


def initialize_random(model: Decoder, seed: int = 0) -> None:
    """Fill a `Decoder` with random weights, for measurements of speed alone."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.ones_(parameter)
        else:
            parameter.normal_(0.0, 0.02, generator=generator)
    _finish(model)


def _finish(model: Decoder) -> None:
    """Let every linear layer transform its weights, now that they are all there."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.method.finish_load(module)


def _destinations(model: Decoder) -> dict[str, Callable[[Tensor], None]]:
    """Map the checkpoint's name of every tensor a model needs to what takes it."""
    takers: dict[str, Callable[[Tensor], None]] = {}
    for module_name, module in model.named_modules():
        parent = module_name.rpartition(".")[0]
        prefix = f"model.{parent}." if parent else ""  # lm_head stands outside `model`
        if module is model.lm_head and model.config.tie_word_embeddings:
            continue  # the embedding fills it
        if isinstance(module, Linear):
            kinds = ["weight", "bias"] if module.has_bias else ["weight"]
            for shard, kind in itertools.product(module.shard_rows, kinds):
                takers[f"{prefix}{shard}.{kind}"] = partial(
                    module.method.load_shard, module, kind, shard
                )
        elif isinstance(module, HeadNorm):
            for kind in module.shards:
                takers[f"{prefix}{kind}.weight"] = partial(
                    _fill, module.shard(kind), broadcast=True
                )
        elif isinstance(module, RMSNorm):
            takers[f"model.{module_name}.weight"] = partial(_fill, module.weight)
    takers["model.embed_tokens.weight"] = partial(_fill, model.embed_tokens)
    return takers


def _fill(parameter: Tensor, tensor: Tensor, *, broadcast: bool = False) -> None:
    """Copy a tensor into a parameter of its shape, or into each row of it."""
    expected = parameter.shape[1:] if broadcast else parameter.shape
    if expected != tensor.shape:
        raise CheckpointError(
            f"shape {list(tensor.shape)} where the config asks for {list(expected)}"
        )
    parameter.copy_(tensor)


def _is_redundant(name: str, model: Decoder) -> bool:
    """Whether a tensor may be ignored: a tied head, or frequencies that RoPE recomputes."""
    tied_head = name == "lm_head.weight" and model.config.tie_word_embeddings
    return tied_head or name.endswith("rotary_emb.inv_freq")


def _checkpoint_tensors(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    yield path, name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); download it again") from error


def _weight_files(folder: Path) -> list[Path]:
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
