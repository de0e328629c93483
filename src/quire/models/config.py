"""What a decoder is made of, read from a checkpoint's `config.json`.

One dataclass covers Llama, Qwen2, Qwen3, Mistral, Mixtral and Qwen3-MoE: they are the same
decoder with other sizes and a few switches (biases, q/k norm, sliding windows, experts). See
the chapter "Autoregressive decoding".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quire.errors import CheckpointError, UnsupportedModelError
from quire.models.architectures import ConfigKeys, find_architecture
from quire.models.moe_config import MoEConfig
from quire.models.rope_config import RopeConfig


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of one decoder.

    Invariants (checked on construction): `num_heads % num_kv_heads == 0`; one entry of
    `sliding_windows` a layer; `head_size` even, since RoPE rotates pairs.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    max_position: int  # longest sequence the model was made for, in tokens
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_windows: tuple[int | None, ...] = ()  # per layer, in tokens; None: full attention
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "float32"  # the checkpoint's own
    moe: MoEConfig | None = None  # None: every layer has a gated MLP of `intermediate_size`
    # The table that `QuantConfig` translates; a dict, which no hash can include.
    quantization: Mapping[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.sliding_windows:
            object.__setattr__(self, "sliding_windows", (None,) * self.num_layers)
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                f"num_attention_heads={self.num_heads} is not a multiple of "
                f"num_key_value_heads={self.num_kv_heads}; fix config.json"
            )
        if len(self.sliding_windows) != self.num_layers:
            raise UnsupportedModelError(
                f"layer_types lists {len(self.sliding_windows)} layers but "
                f"num_hidden_layers={self.num_layers}; fix config.json"
            )
        if self.head_size % 2:
            raise UnsupportedModelError(
                f"head_dim={self.head_size} is odd; rotary embeddings rotate pairs"
            )

    @property
    def num_groups(self) -> int:
        """Query heads that share one KV head (GQA)."""
        return self.num_heads // self.num_kv_heads

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """Read `config.json` and, for the end-of-sequence ids, `generation_config.json`.

        A dtype that `config.json` leaves out is that of the weights, where there are any.

        Raises:
            CheckpointError: no readable `config.json`, or one with a value that makes no sense.
            UnsupportedModelError: an architecture or option that quire lacks.
        """
        folder = Path(folder)
        raw = read_json(folder / "config.json")
        generation_path = folder / "generation_config.json"
        generation = read_json(generation_path) if generation_path.is_file() else {}
        config = cls.from_dict(raw, generation)
        if not _named_dtype(raw) and list(folder.glob("*.safetensors")):
            from quire.models.weight_files import stored_dtype  # torch takes seconds to import

            config = replace(config, dtype=stored_dtype(folder))
        return config

    @classmethod
    def from_dict(
        cls, raw: dict[str, Any], generation: dict[str, Any] | None = None
    ) -> ModelConfig:
        """Translate the keys of a transformers `config.json` as transformers reads them.

        Raises:
            CheckpointError: a value that makes no sense.
            UnsupportedModelError: an architecture or option that quire lacks.
        """
        name, architecture = find_architecture(raw)
        keys = ConfigKeys(raw, architecture.defaults)
        if keys.value("hidden_act") not in ("silu", "swish"):  # two names of one function
            raise UnsupportedModelError(
                f"hidden_act={raw['hidden_act']!r} is not supported; quire has 'silu'"
            )
        hidden_size, num_heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
        max_position = keys.integer("max_position_embeddings")
        rope = RopeConfig.from_dict(raw, max_position, architecture.rope_theta)
        if rope.kind == "yarn":
            max_position = max(max_position, int(rope.original_max_position * rope.factor))
        attention_bias = keys.flag("attention_bias")
        num_layers = keys.integer("num_hidden_layers")
        eos = (generation or {}).get("eos_token_id", keys.value("eos_token_id"))
        return cls(
            architecture=name,
            vocab_size=keys.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=keys.integer("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=keys.optional_integer("num_key_value_heads") or num_heads,
            head_size=keys.optional_integer("head_dim") or hidden_size // num_heads,
            max_position=max_position,
            rms_norm_eps=keys.number("rms_norm_eps"),
            rope=rope,
            tie_word_embeddings=keys.flag("tie_word_embeddings"),
            qkv_bias=architecture.qkv_bias or attention_bias,
            output_bias=attention_bias,
            mlp_bias=keys.flag("mlp_bias"),
            qk_norm=architecture.qk_norm,
            sliding_windows=_sliding_windows(keys, architecture.model_type),
            eos_token_ids=_as_ids(eos),
            dtype=_named_dtype(raw) or "float32",
            moe=MoEConfig.from_keys(keys, architecture.experts, num_layers),
            quantization=_quantization(raw),
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a checkpoint.

    Raises:
        CheckpointError: there is no such file, or it holds no JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; is {path.parent} a checkpoint?") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object; download it again")
    return content


def _as_ids(eos: Any) -> tuple[int, ...]:
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in ids):
        raise CheckpointError(f"eos_token_id={eos!r}: must be a token id or a list of them")
    return tuple(ids)


def _named_dtype(raw: dict[str, Any]) -> str | None:
    """Return the dtype that a `config.json` names, under its new or its old key."""
    name = raw.get("dtype") or raw.get("torch_dtype")
    return str(name).removeprefix("torch.") if name else None


def _quantization(raw: dict[str, Any]) -> Mapping[str, Any] | None:
    """Return how the weights are quantized, under its key or its old one; None: they are not."""
    for key in ("quantization_config", "compression_config"):
        if table := raw.get(key):
            if not isinstance(table, dict):
                raise CheckpointError(f"{key}={table!r}: must be a table")
            return table
    return None


def _sliding_windows(keys: ConfigKeys, model_type: str) -> tuple[int | None, ...]:
    """Return each layer's window: one for all in Mistral and with experts, else some layers'."""
    num_layers = keys.integer("num_hidden_layers")
    if model_type == "llama":
        return (None,) * num_layers
    window = keys.optional_integer("sliding_window")
    if model_type in ("mistral", "mixtral"):
        return (window,) * num_layers
    window = window if keys.flag("use_sliding_window") else None
    if model_type == "qwen3_moe":
        return (window,) * num_layers
    kinds = keys.names("layer_types")
    if kinds is None:
        first = keys.integer("max_window_layers", least=0)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if unknown := set(kinds) - {"full_attention", "sliding_attention", "attention"}:
        raise UnsupportedModelError(f"layer_types {sorted(unknown)} are not supported")
    if "sliding_attention" in kinds and window is None:
        raise UnsupportedModelError(
            "layer_types has 'sliding_attention' without a window: set use_sliding_window to true "
            "and sliding_window to a number of tokens in config.json"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
