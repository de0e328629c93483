"""Checkpoints that two and four ranks can share, with a vocabulary that leaves a remainder."""

from __future__ import annotations

from dataclasses import replace

import checkpoints

WIDE = {"hidden_size": 128, "num_attention_heads": 8, "vocab_size": 97}


MOE = {"num_experts_per_tok": 3, "intermediate_size": 80}
MIXTURES = {
    "qwen3-moe": checkpoints.Spec(
        "qwen3_moe",
        {
            **WIDE,
            **MOE,
            "num_experts": 8,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "head_dim": 32,
        },
    ),
    "mixtral": checkpoints.Spec("mixtral", {**WIDE, **MOE, "num_local_experts": 8}),
}


def wide(name: str, **options: object) -> checkpoints.Spec:
    """Return one of `checkpoints.SPECS` with eight query heads, or of `MIXTURES`."""
    if name in MIXTURES:
        return replace(MIXTURES[name], options={**MIXTURES[name].options, **options})
    spec = checkpoints.SPECS[name]
    heads = {"num_key_value_heads": min(spec.options.get("num_key_value_heads", 2), 4)}
    return replace(spec, options={**spec.options, **WIDE, **heads, **options})
