"""`RopeConfig`: what a checkpoint says of its rotary embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from quire.errors import UnsupportedModelError
from quire.models.architectures import ConfigKeys


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: base frequency and, where a model has it, its scaling.

    `kind` is "default", "linear" (positions divided by `factor`), "llama3" (low frequencies
    divided by `factor`, high ones kept, a ramp between) or "yarn" (likewise, with a ramp over
    pairs of dimensions, and queries and keys multiplied by `attention_factor`).
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_position: int = 8_192  # llama3, yarn: the length before scaling, in tokens
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn: turns over the original length, from which on all is kept
    beta_slow: float = 1.0  # yarn: turns below which all is stretched
    truncate: bool = True  # yarn: whether the ramp begins and ends at whole pairs
    attention_factor: float = 1.0  # yarn

    @classmethod
    def from_dict(
        cls, raw: dict[str, Any], max_position: int, default_theta: float = 10_000.0
    ) -> RopeConfig:
        """Translate the keys of a `config.json`; `max_position` is its max_position_embeddings.

        transformers 5 writes one `rope_parameters`; before, it was `rope_theta` and
        `rope_scaling`, which still count where they are. `default_theta` is the architecture's
        base where no key names one.

        Raises:
            CheckpointError: a key that the scaling needs is missing or of another kind.
            UnsupportedModelError: a scaling that quire lacks.
        """
        where = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
        scaling = ConfigKeys(raw, {}).table(where)
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ("default", "linear", "llama3", "yarn"):
            raise UnsupportedModelError(
                f"rope scaling {kind!r} is not supported; quire has 'default', 'linear', "
                "'llama3', 'yarn'"
            )
        if any(isinstance(value, dict) for value in scaling.values()):
            raise UnsupportedModelError(
                f"{where} of its own for each type of layer ({', '.join(scaling)}) is not supported"
            )
        theta = raw.get("rope_theta", default_theta)
        if kind == "default":
            return cls(theta=ConfigKeys(scaling, {"rope_theta": theta}, where).number("rope_theta"))
        partial = scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
        if partial != 1.0:
            raise UnsupportedModelError(
                f"partial_rotary_factor={partial!r} is not supported; quire rotates whole heads"
            )
        # Beside the scaling a length before it counts more than inside.
        inside = scaling.get("original_max_position_embeddings", max_position)
        original = raw.get("original_max_position_embeddings", inside)
        scaling = {**scaling, "original_max_position_embeddings": original}
        keys = ConfigKeys(scaling, {"rope_theta": theta}, where)
        theta = keys.number("rope_theta")
        if kind == "linear":
            return cls(theta, kind, keys.number("factor"))
        original = keys.integer("original_max_position_embeddings")
        if kind == "llama3":
            low, high = keys.number("low_freq_factor"), keys.number("high_freq_factor")
            return cls(theta, kind, keys.number("factor"), original, low, high)
        return cls(theta, kind, original_max_position=original, **_yarn(keys, max_position))


def _yarn(keys: ConfigKeys, max_position: int) -> dict[str, Any]:
    """Return the options of Peng et al. 2023; as in transformers, null or 0 is as if left out."""
    if keys.has("factor") and keys.value("factor") is None:
        factor = max_position / keys.integer("original_max_position_embeddings")
    else:
        factor = keys.number("factor")
    if keys.value("attention_factor") is not None:
        attention_factor = keys.number("attention_factor")
    elif keys.value("mscale") and keys.value("mscale_all_dim"):
        scales = (keys.number("mscale"), keys.number("mscale_all_dim"))
        attention_factor = _sharpening(factor, scales[0]) / _sharpening(factor, scales[1])
    else:
        attention_factor = _sharpening(factor)
    return {
        "factor": factor,
        "attention_factor": attention_factor,
        "beta_fast": keys.number("beta_fast") if keys.value("beta_fast") else 32.0,
        "beta_slow": keys.number("beta_slow") if keys.value("beta_slow") else 1.0,
        "truncate": bool(keys.value("truncate")) if keys.has("truncate") else True,
    }


def _sharpening(factor: float, weight: float = 1.0) -> float:
    """The factor that Peng et al. found to keep attention as sharp over a longer text."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
