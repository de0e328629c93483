"""What a decoder is made of, read from a checkpoint's `config.json`.

One dataclass covers Llama, Qwen2, Qwen3 and Mistral: they are the same decoder with
other sizes and four switches (QKV bias, output bias, q/k norm, sliding window). See the
chapter "Autoregressive decoding".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire.errors import CheckpointError, UnsupportedModelError
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

        Raises:
            CheckpointError: no readable `config.json`, or a key the sizes need is missing.
            UnsupportedModelError: an architecture or option that quire lacks.
        """
        folder = Path(folder)
        raw = _read_json(folder / "config.json")
        generation_path = folder / "generation_config.json"
        generation = _read_json(generation_path) if generation_path.is_file() else {}
        return cls.from_dict(raw, generation)

    @classmethod
    def from_dict(
        cls, raw: dict[str, Any], generation: dict[str, Any] | None = None
    ) -> ModelConfig:
        """Translate the keys of a transformers `config.json`."""
        architecture = (raw.get("architectures") or ["missing"])[0]
        if architecture not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"architecture {architecture!r} is not supported; quire has "
                f"{', '.join(sorted(ARCHITECTURES))}"
            )
        if raw.get("hidden_act", "silu") != "silu":
            raise UnsupportedModelError(
                f"hidden_act={raw['hidden_act']!r} is not supported; quire has 'silu'"
            )
        if raw.get("quantization_config"):
            raise UnsupportedModelError(
                "a checkpoint with a quantization_config is not supported; load its "
                "unquantized original"
            )
        switches = ARCHITECTURES[architecture]
        attention_bias = raw.get("attention_bias", False)
        eos = (generation or {}).get("eos_token_id", raw.get("eos_token_id"))
        try:
            return cls(
                architecture=architecture,
                vocab_size=raw["vocab_size"],
                hidden_size=raw["hidden_size"],
                intermediate_size=raw["intermediate_size"],
                num_layers=raw["num_hidden_layers"],
                num_heads=raw["num_attention_heads"],
                num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
                head_size=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
                max_position=raw["max_position_embeddings"],
                rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
                rope=_rope_config(raw),
                tie_word_embeddings=raw.get("tie_word_embeddings", False),
                qkv_bias=switches.qkv_bias or attention_bias,
                output_bias=attention_bias,
                mlp_bias=raw.get("mlp_bias", False),
                qk_norm=switches.qk_norm,
                sliding_windows=_sliding_windows(raw, switches),
                eos_token_ids=_as_ids(eos),
                dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
            )
        except KeyError as missing:
            raise CheckpointError(
                f"config.json lacks {missing.args[0]!r}; is the checkpoint complete?"
            ) from None


@dataclass(frozen=True)
class _Switches:
    qkv_bias: bool = False
    qk_norm: bool = False
    windowed_by_default: bool = False  # a `sliding_window` key holds for every layer


ARCHITECTURES: dict[str, _Switches] = {
    "LlamaForCausalLM": _Switches(),
    "MistralForCausalLM": _Switches(windowed_by_default=True),
    "Qwen2ForCausalLM": _Switches(qkv_bias=True),
    "Qwen3ForCausalLM": _Switches(qk_norm=True),
}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; is {path.parent} a checkpoint?") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again") from None
    return content


def _as_ids(eos: int | list[int] | None) -> tuple[int, ...]:
    if eos is None:
        return ()
    return (eos,) if isinstance(eos, int) else tuple(eos)


def _rope_config(raw: dict[str, Any]) -> RopeConfig:
    # transformers 5 writes one `rope_parameters`; before, `rope_theta` and `rope_scaling`.
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = scaling.get("rope_theta", raw.get("rope_theta", 10_000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise UnsupportedModelError(
            f"rope scaling {kind!r} is not supported; quire has 'default', 'linear', 'llama3'"
        )
    if kind == "default":
        return RopeConfig(theta=theta)
    return RopeConfig(
        theta=theta,
        kind=kind,
        factor=scaling["factor"],
        low_freq_factor=scaling.get("low_freq_factor", 1.0),
        high_freq_factor=scaling.get("high_freq_factor", 4.0),
        original_max_position=scaling.get(
            "original_max_position_embeddings", raw["max_position_embeddings"]
        ),
    )


def _sliding_windows(raw: dict[str, Any], switches: _Switches) -> tuple[int | None, ...]:
    num_layers, window = raw["num_hidden_layers"], raw.get("sliding_window")
    layer_types = raw.get("layer_types")
    if layer_types:
        unknown = set(layer_types) - {"full_attention", "sliding_attention"}
        if unknown:
            raise UnsupportedModelError(f"layer_types {sorted(unknown)} are not supported")
        return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
    if switches.windowed_by_default:
        return (window,) * num_layers
    if raw.get("use_sliding_window") and window:
        first = raw.get("max_window_layers", 0)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    return (None,) * num_layers
