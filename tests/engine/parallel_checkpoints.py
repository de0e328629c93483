"""Checkpoints that two and four ranks can share, with a vocabulary that leaves a remainder."""

from __future__ import annotations

from dataclasses import replace

import checkpoints

WIDE = {"hidden_size": 128, "num_attention_heads": 8, "vocab_size": 97}


def wide(name: str, **options: object) -> checkpoints.Spec:
    """Return one of `checkpoints.SPECS` with eight query heads, and further options."""
    spec = checkpoints.SPECS[name]
    heads = {"num_key_value_heads": min(spec.options.get("num_key_value_heads", 2), 4)}
    return replace(spec, options={**spec.options, **WIDE, **heads, **options})
