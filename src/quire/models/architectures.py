"""Which keys of a `config.json` each architecture reads, and what they are when left out.

The meaning of a `config.json` is transformers': its configuration classes have a default for
every key, and a key that an architecture's class and code do not know changes nothing, even
where another architecture reads it (`attention_bias` in a Mistral).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

from quire.errors import CheckpointError, UnsupportedModelError

_COMMON: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "head_dim": None,  # hidden_size / num_attention_heads
}
_LLAMA_2 = {**_COMMON, "vocab_size": 32_000, "eos_token_id": 2}
_QWEN: dict[str, Any] = {
    **_COMMON,
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "eos_token_id": None,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}


@dataclass(frozen=True)
class ExpertNames:
    """How an architecture with experts calls its keys and tensors; by default as Qwen3-MoE does.

    A layer stores `{block}.gate.weight` and `{block}.experts.{e}.{part}.weight`.
    """

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    count_keys: tuple[str, ...] = ("num_local_experts", "num_experts")  # the first present counts
    size_key: str = "moe_intermediate_size"
    chooses_layers: bool = True  # whether keys say which layers have experts; else all have
    always_renormalizes: bool = False


@dataclass(frozen=True)
class Architecture:
    """One of transformers' decoders: its keys with their defaults, and what has no key."""

    model_type: str
    defaults: dict[str, Any]
    qkv_bias: bool = False  # whatever the keys say
    qk_norm: bool = False
    experts: ExpertNames | None = None
    rope_theta: float = 10_000.0  # where the keys name none


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(
        "llama",
        {
            **_LLAMA_2,
            "intermediate_size": 11_008,
            "num_key_value_heads": None,  # num_attention_heads
            "max_position_embeddings": 2048,
            "attention_bias": False,
            "mlp_bias": False,
        },
    ),
    "MistralForCausalLM": Architecture(
        "mistral",
        {
            **_LLAMA_2,
            "intermediate_size": 14_336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "sliding_window": 4096,
        },
    ),
    "Qwen2ForCausalLM": Architecture("qwen2", _QWEN, qkv_bias=True),
    "Qwen3ForCausalLM": Architecture(
        "qwen3", {**_QWEN, "head_dim": 128, "attention_bias": False}, qk_norm=True
    ),
    "MixtralForCausalLM": Architecture(
        "mixtral",
        {
            **_LLAMA_2,
            "intermediate_size": 14_336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "num_experts_per_tok": 2,
            "num_local_experts": 8,
        },
        experts=ExpertNames(
            block="block_sparse_moe",
            gate="w1",
            up="w3",
            down="w2",
            count_keys=("num_experts", "num_local_experts"),
            size_key="intermediate_size",
            chooses_layers=False,
            always_renormalizes=True,
        ),
        rope_theta=1e6,
    ),
    "Qwen3MoeForCausalLM": Architecture(
        "qwen3_moe",
        {
            **_COMMON,
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 24,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32_768,
            "eos_token_id": None,
            "attention_bias": False,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "decoder_sparse_step": 1,
            "mlp_only_layers": None,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
        },
        qk_norm=True,
        experts=ExpertNames(),
    ),
}


def find_architecture(raw: dict[str, Any]) -> tuple[str, Architecture]:
    """Return the architecture that a `config.json` names, by `architectures` or `model_type`.

    Raises:
        UnsupportedModelError: quire lacks it, or the two keys contradict each other.
    """
    model_type = raw.get("model_type")
    known = [name for name, a in ARCHITECTURES.items() if a.model_type == model_type]
    name = (ConfigKeys(raw, {}).names("architectures") or known or [str(model_type or "missing")])[
        0
    ]
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"architecture {name!r} is not supported; quire has {', '.join(sorted(ARCHITECTURES))}"
        )
    if known and known != [name]:
        raise UnsupportedModelError(
            f"config.json has architectures={raw['architectures']!r} and model_type="
            f"{model_type!r}, which is {known[0]}: correct one of them"
        )
    return name, ARCHITECTURES[name]


class ConfigKeys:
    """A dictionary of a `config.json`, each value checked when it is read.

    Every method raises CheckpointError for a value of another kind, naming key and value.
    """

    def __init__(self, raw: dict[str, Any], defaults: dict[str, Any], where: str = "") -> None:
        """`where` tells in errors which dictionary inside the file this is."""
        self._raw = raw
        self._defaults = defaults
        self._where = where

    def has(self, key: str) -> bool:
        """Whether the file has the key, be it null."""
        return key in self._raw

    def value(self, key: str) -> Any:
        """Return a key's value, its default where it is left out; None where it has neither."""
        return self._raw.get(key, self._defaults.get(key))

    def integer(self, key: str, least: int = 1) -> int:
        """Return an integer of at least `least`."""
        value = self.value(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self._error(key, f"an integer of at least {least}")
        return value

    def optional_integer(self, key: str) -> int | None:
        """Return an integer of at least 1, or None where the value is null."""
        return None if self.value(key) is None else self.integer(key)

    def number(self, key: str) -> float:
        """Return a number above 0."""
        value = self.value(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < inf:
            raise self._error(key, "a number above 0")
        return float(value)

    def names(self, key: str) -> list[str] | None:
        """Return a list of strings, or None where the value is null."""
        value = self.value(key)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(name, str) for name in value)
        ):
            raise self._error(key, "a list of names")
        return value

    def integers(self, key: str) -> list[int]:
        """Return a list of integers, empty where the value is null."""
        value = self.value(key)
        if value is not None and not (
            isinstance(value, list)
            and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
        ):
            raise self._error(key, "a list of integers")
        return value or []

    def table(self, key: str) -> dict[str, Any]:
        """Return a dictionary, empty where the value is null."""
        value = self.value(key)
        if value is not None and not isinstance(value, dict):
            raise self._error(key, "a table of keys and values")
        return value or {}

    def flag(self, key: str) -> bool:
        """Return true or false; false where the key is not one of the architecture's."""
        value = self.value(key) if key in self._defaults else False
        if not isinstance(value, bool):
            raise self._error(key, "true or false")
        return value

    def _error(self, key: str, wanted: str) -> CheckpointError:
        name = f"{self._where}.{key}" if self._where else key
        if key not in self._raw and key not in self._defaults:
            return CheckpointError(f"config.json lacks {name!r}; is the checkpoint complete?")
        return CheckpointError(
            f"config.json has {name}={self.value(key)!r}: must be {wanted}; fix config.json"
        )
