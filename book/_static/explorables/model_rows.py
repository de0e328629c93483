"""What the explorables that compute with models know of one: the keys that the arithmetic reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONFIG_KEYS = (
    "architectures",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "decoder_sparse_step",
    "mlp_only_layers",
    "moe_intermediate_size",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "torch_dtype",
    "dtype",
)


def model_rows(models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return those keys of each model's `config.json`."""
    return {
        name: {key: raw[key] for key in CONFIG_KEYS if raw.get(key) is not None}
        for name, raw in models.items()
    }
