"""Which layers a quantization config names: three dialects of pattern, and fused layers.

A checkpoint stores q_proj, k_proj and v_proj apart, and most configs name them so. Some name
the layer that their producer had fused, "qkv_proj" (sgl-project/sglang, pull request 35792,
mends an ignore list that was missed for such a reason).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from quire.errors import CheckpointError

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}

Matches = Callable[[str, str], bool]  # (a layer's full name, a pattern)


def names_layer(name: str, pattern: str, matches: Matches) -> bool:
    """Whether a pattern names a layer or the fused layer that it is a part of.

    The fused name counts only where the pattern names no part: ".*up_proj" fits
    "gate_up_proj" too, and means up_proj alone.
    """
    if matches(name, pattern):
        return True
    parent, _, last = name.rpartition(".")
    for fused, parts in FUSED.items():
        if last in parts and matches(f"{parent}.{fused}", pattern):
            return not any(matches(f"{parent}.{part}", pattern) for part in parts)
    return False


def named(name: str, patterns: Iterable[str], matches: Matches) -> bool:
    """Whether any of some patterns names a layer."""
    return any(names_layer(name, pattern, matches) for pattern in patterns)


def whole_or_regex(name: str, pattern: str) -> bool:
    """compressed-tensors': the whole name, or a regular expression behind "re:"."""
    if pattern.startswith("re:"):
        return begins_with(name, pattern.removeprefix("re:"))
    return name == pattern


def contained(name: str, pattern: str) -> bool:
    """AutoAWQ's: any part of the name, "mlp.gate" in "mlp.gate_proj" as well."""
    return pattern in name


def module_or_suffix(name: str, pattern: str) -> bool:
    """transformers': a module, as a regular expression, and all in it; or the end of the name."""
    return begins_with(name, rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))") or name.endswith(pattern)


def begins_with(name: str, expression: str) -> bool:
    """Whether a regular expression fits the beginning of a name.

    Raises:
        CheckpointError: it is none.
    """
    try:
        return re.match(expression, name) is not None
    except re.error as error:
        raise CheckpointError(
            f"quantization_config has the pattern {expression!r}, which is no regular expression "
            f"({error}); correct it in config.json"
        ) from None
