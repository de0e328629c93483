"""The sampling that a model's makers advise, from its `generation_config.json`."""

from __future__ import annotations

from pathlib import Path

from quire.errors import CheckpointError, InvalidRequestError, QuireError
from quire.models.config import read_json
from quire.sampling.params import SamplingParams

# The values that vLLM takes from the file, and what its parameters call them.
_NAMES = {
    "repetition_penalty": "repetition_penalty",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "max_new_tokens": "max_tokens",
}


def default_sampling_params(
    folder: Path | None, generation_config: str | Path = "auto"
) -> SamplingParams:
    """Return the parameters of a request that gives none.

    Args:
        folder: the checkpoint, or None for a model without one.
        generation_config: "auto" reads the checkpoint's `generation_config.json`, if it has
            one; "vllm" reads nothing, so that vLLM's neutral values hold; anything else is a
            folder to read the file from. The names are vLLM's.

    Raises:
        CheckpointError: the folder named has no such file, it is no JSON object, or a value there
            is none that `SamplingParams` takes.
        QuireError: `generation_config` is no name.
    """
    if not isinstance(generation_config, str | Path) or generation_config == "":
        raise QuireError(
            f"generation_config={generation_config!r}: must be 'auto' for the checkpoint's own, "
            "'vllm' for none, or a folder that holds one"
        )
    if generation_config == "vllm" or (generation_config == "auto" and folder is None):
        return SamplingParams()
    named = generation_config != "auto"
    path = Path(generation_config if named else folder or "") / "generation_config.json"
    if not path.is_file():
        if named:
            raise CheckpointError(
                f"generation_config={generation_config!r}: there is no {path}; give a folder that "
                "holds one, 'auto' for the checkpoint's own, or 'vllm' for none"
            )
        return SamplingParams()
    found = read_json(path)
    try:
        return SamplingParams(
            **{name: found[key] for key, name in _NAMES.items() if found.get(key) is not None}
        )
    except InvalidRequestError as error:
        raise CheckpointError(
            f"{path} advises {error}; mend it, or say generation_config='vllm' to leave it aside"
        ) from None
