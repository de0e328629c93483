"""The caches that `quire bench cache-compression` judges: fewer bits, fewer tokens, or both.

What the engine serves are its own options; the rest are attention backends that read something
else than what was written. See the chapter's page "A smaller cache".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quire.analysis.heavy_hitters import HeavyHitterAttention
from quire.attention.interface import AttentionBackend
from quire.attention.torch_backend import TorchAttention, TorchMetadata
from quire.kv.layer import LayerKV
from quire.kv.quantized import SCALE_BYTES

LENGTH = 1024  # tokens of a text
SINKS = 4
BUDGETS = (512, 256, 128, 64)  # tokens kept of 1,024
HEAVY_BUDGETS = (512, 128)  # token after token, three times as slow as a window
EQUAL_BUDGETS = (542, 271)  # at 8.5 bits the bytes of 1,024 and of 512 tokens at 4.5 bits
ROTATIONS = 3

Change = Callable[[Tensor], Tensor]  # of keys or values [num_tokens, num_kv_heads, head_size]
Attention = Callable[[], AttentionBackend]


class ChangedCache(TorchAttention):
    """A cache that holds something else than what was written: every key is read changed."""

    writes_by_slot = False

    def __init__(self, change: Change) -> None:
        super().__init__()
        self._change = change

    def write(self, key: Tensor, value: Tensor, kv: LayerKV, metadata: TorchMetadata) -> None:
        """Store what `change` makes of keys and values."""
        super().write(self._change(key), self._change(value), kv, metadata)

    def forward(
        self,
        query: Tensor,
        kv: LayerKV,
        metadata: TorchMetadata,
        scale: float,
        fresh_kv: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend over the cache, never over the step's own keys."""
        return super().forward(query, kv, metadata, scale)


@dataclass(frozen=True)
class Variant:
    """A cache to judge: bits an element with its share of a scale, tokens kept of a text."""

    case: str
    bits: float
    tokens: int = LENGTH
    kv_heads: float = 1.0  # share of the model's
    options: dict[str, Any] = field(default_factory=dict)
    attention: Attention | None = None
    others: tuple[Attention, ...] = ()  # the same with other rotations


def to_codes(x: Tensor, largest: int) -> Tensor:
    """Round vectors to integers of [-largest, largest], one scale each, and back."""
    scale = (x.abs().amax(-1, keepdim=True) / largest).clamp_min(1e-30)
    return (x / scale).round() * scale


def rotated_codes(x: Tensor, largest: int, seed: int = 0) -> Tensor:
    """Round vectors in a basis that `seed` rotates, and rotate back.

    Queries turned the same way would give the same scores, so that an engine rotates both and
    never back (QuaRot, Ashkboos et al. 2024).
    """
    size = x.shape[-1]
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(noise).Q.to(x)
    return to_codes(x @ rotation, largest) @ rotation.T


def _rotations(largest: int) -> tuple[Attention, ...]:
    return tuple(
        partial(ChangedCache, partial(rotated_codes, largest=largest, seed=seed))
        for seed in range(ROTATIONS)
    )


def _to_bfloat16(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def merge_heads(x: Tensor) -> Tensor:
    """Put the mean of all KV heads in place of each."""
    return x.mean(1, keepdim=True).expand_as(x)


def variants(head_size: int, num_kv_heads: int) -> list[Variant]:
    """Return what is compared, for a model of these sizes."""
    scale_bits = 8 * SCALE_BYTES / head_size
    four, *four_again = _rotations(7)
    three, *three_again = _rotations(3)
    full = [
        Variant("float32", 32),
        Variant("bfloat16", 16, attention=lambda: ChangedCache(_to_bfloat16)),
        Variant("int8", 8 + scale_bits, options={"kv_cache_dtype": "int8"}),
        Variant("fp8", 8 + scale_bits, options={"kv_cache_dtype": "fp8"}),
        Variant(
            "fp8-no-scales",
            8,
            attention=lambda: ChangedCache(lambda x: x.to(torch.float8_e4m3fn).to(x.dtype)),
        ),
        Variant("int4", 4 + scale_bits, attention=lambda: ChangedCache(lambda x: to_codes(x, 7))),
        Variant("int3", 3 + scale_bits, attention=lambda: ChangedCache(lambda x: to_codes(x, 3))),
        Variant("int4-rotated", 4 + scale_bits, attention=four, others=tuple(four_again)),
        Variant("int3-rotated", 3 + scale_bits, attention=three, others=tuple(three_again)),
        Variant(
            "kv-heads-merged",
            32,
            kv_heads=1 / num_kv_heads,
            attention=lambda: ChangedCache(merge_heads),
        ),
    ]
    eight = 8 + scale_bits
    equal = [
        Variant(f"int8-sinks-{n}", eight, n, options=_sinks(n) | {"kv_cache_dtype": "int8"})
        for n in (*EQUAL_BUDGETS, *BUDGETS)
    ]
    fewer = [variant for budget in BUDGETS for variant in _fewer_tokens(budget, scale_bits)]
    return full + equal + fewer


def _sinks(tokens: int) -> dict[str, Any]:
    return {"kv_window": tokens - SINKS, "kv_sinks": SINKS}


def _fewer_tokens(budget: int, scale_bits: float) -> list[Variant]:
    """Return the caches that keep `budget` tokens, at several precisions."""
    sinks = _sinks(budget)
    kept = [
        Variant(f"window-{budget}", 32, budget, options={"kv_window": budget}),
        Variant(f"sinks-{budget}", 32, budget, options=sinks),
    ]
    if budget > BUDGETS[-1]:
        changes: dict[str, tuple[float, tuple[Attention, ...]]] = {
            "bfloat16": (16, (partial(ChangedCache, _to_bfloat16),)),
            "int4": (4 + scale_bits, (partial(ChangedCache, partial(to_codes, largest=7)),)),
            "int4-rotated": (4 + scale_bits, _rotations(7)),
        }
        for name, (bits, (first, *others)) in changes.items():
            case = f"{name}-sinks-{budget}"
            kept.append(Variant(case, bits, budget, 1.0, sinks, first, tuple(others)))
    if budget in HEAVY_BUDGETS:
        heavy = partial(HeavyHitterAttention, budget // 2, budget // 2)
        kept.append(Variant(f"h2o-{budget}", 32, budget, attention=heavy))
    return kept
