"""From a name to a loaded `Decoder`: find the checkpoint, hand its tensors to the layers.

Weights go from the mapped file straight into the parameter they belong to, one tensor at a
time, so that a load needs no second copy of the model.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from quire.errors import CheckpointError
from quire.layers.module import Layer
from quire.models.decoder import Decoder
from quire.models.weight_files import open_weights
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
    """Fill a model from the safetensors files of a folder.

    Raises:
        CheckpointError: a file or tensor is missing, unreadable, of the wrong shape or
            unknown; the message names it.
    """
    takers = model.takes()
    missing = {name for name, taker in takers.items() if taker.required}
    for file in open_weights(folder):
        for name in file.names:
            if name in takers:
                try:
                    takers[name].take(file.tensor(name))
                except CheckpointError as error:
                    raise CheckpointError(f"{file.path}: {name}: {error}") from None
                missing.discard(name)
            elif not (_is_redundant(name) or model.lies_elsewhere(name)):
                raise CheckpointError(
                    f"{file.path}: unexpected tensor {name!r}; do config.json and weights belong "
                    "together?"
                )
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors that its config asks for, "
            f"{min(missing)!r} among them; is a weight file missing?"
        )
    try:
        model.finish_load()
    except CheckpointError as error:
        raise CheckpointError(f"{folder} {error}") from None


def initialize_random(model: Layer, seed: int = 0) -> None:
    """Fill a model with random weights, for measurements of speed alone."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    model.fill_random(generator)
    model.finish_load()


def _is_redundant(name: str) -> bool:
    """Whether a tensor may be ignored: frequencies that RoPE computes itself."""
    return name.endswith("rotary_emb.inv_freq")
