"""`quire bench cache-compression`: what a smaller cache costs in perplexity.

Every variant scores the same held-out text with the same weights; perplexity is counted from
the position on at which the smallest window has lost something. Variants that the engine
serves are its own options; the others are components, made to be judged.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quire.analysis import catalog_config
from quire.analysis.heavy_hitters import HeavyHitterAttention
from quire.attention.interface import AttentionBackend
from quire.attention.torch_backend import TorchAttention, TorchMetadata
from quire.bench.engine import VOCABULARY
from quire.bench.measurement import Row
from quire.bench.perplexity import heldout_texts, nats_per_token, perplexity
from quire.components import Components
from quire.kv.layer import LayerKV
from quire.kv.quantized import FORMATS, SCALE_BYTES
from quire.llm import LLM
from quire.sampling.params import SamplingParams

LENGTH = 1024  # tokens of a text
NUM_TEXTS = 16
SINKS = 4
SPEED_MODEL = "Qwen3-0.6B"
BUDGETS = (512, 256, 128, 64)  # tokens kept of 1,024

Change = Callable[[Tensor], Tensor]  # of keys or values [num_tokens, num_kv_heads, head_size]


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
    attention: Callable[[], AttentionBackend] | None = None


def to_codes(x: Tensor, largest: int) -> Tensor:
    """Round vectors to integers of [-largest, largest], one scale each, and back."""
    scale = (x.abs().amax(-1, keepdim=True) / largest).clamp_min(1e-30)
    return (x / scale).round() * scale


def merge_heads(x: Tensor) -> Tensor:
    """Put the mean of all KV heads in place of each."""
    return x.mean(1, keepdim=True).expand_as(x)


def variants(head_size: int, num_kv_heads: int) -> list[Variant]:
    """Return what is compared, for a model of these sizes."""
    scale_bits = 8 * SCALE_BYTES / head_size
    full = [
        Variant("float32", 32),
        Variant("bfloat16", 16, attention=lambda: ChangedCache(lambda x: x.bfloat16().to(x.dtype))),
        Variant("int8", 8 + scale_bits, options={"kv_cache_dtype": "int8"}),
        Variant("fp8", 8 + scale_bits, options={"kv_cache_dtype": "fp8"}),
        Variant(
            "fp8-no-scales",
            8,
            attention=lambda: ChangedCache(lambda x: x.to(torch.float8_e4m3fn).to(x.dtype)),
        ),
        Variant("int4", 4 + scale_bits, attention=lambda: ChangedCache(lambda x: to_codes(x, 7))),
        Variant("int3", 3 + scale_bits, attention=lambda: ChangedCache(lambda x: to_codes(x, 3))),
        Variant(
            "kv-heads-merged",
            32,
            kv_heads=1 / num_kv_heads,
            attention=lambda: ChangedCache(merge_heads),
        ),
    ]
    for budget in BUDGETS:
        full += [
            Variant(f"window-{budget}", 32, budget, options={"kv_window": budget}),
            Variant(
                f"sinks-{budget}",
                32,
                budget,
                options={"kv_window": budget - SINKS, "kv_sinks": SINKS},
            ),
            Variant(
                f"h2o-{budget}",
                32,
                budget,
                attention=lambda half=budget // 2: HeavyHitterAttention(half, half),  # type: ignore[misc]
            ),
        ]
    return full


def run(model: str, device: torch.device, num_texts: int = NUM_TEXTS) -> list[Row]:
    """Judge every variant on `num_texts` texts of 1,024 tokens, in float32.

    On a GPU only what its kernels serve, and how fast a model of real size decodes with it.
    """
    rows: list[Row] = []
    exact: float | None = None
    texts: list[list[int]] = []
    for variant in _variants_of(model, device):
        llm = _load(model, device, variant)
        texts = texts or heldout_texts(llm, num_texts, LENGTH)
        nats = nats_per_token(llm, texts, max(BUDGETS))
        exact = nats if exact is None else exact
        config = llm.model_config
        elements = 2 * config.num_layers * config.num_kv_heads * config.head_size
        num_bytes = variant.tokens * elements * variant.kv_heads * variant.bits / 8
        rows.append(
            Row(
                variant.case,
                "perplexity",
                perplexity(nats),
                "1",
                {"float32": perplexity(exact)},
                {
                    "bits_per_element": variant.bits,
                    "tokens_kept": variant.tokens,
                    "bytes_per_text": num_bytes,
                    "nats_per_token": nats,
                    "texts": num_texts,
                    "text_tokens": LENGTH,
                },
            )
        )
        del llm
    return rows + speed_rows(device) if device.type == "cuda" else rows


def speed_rows(device: torch.device) -> list[Row]:
    """Tokens per second of 64 sequences of 4,096 tokens that decode at once, random weights."""
    batch, prompt, num_tokens, timed = 64, 4096, 160, 96
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    generator = random.Random(0)
    prompts = [[generator.randrange(VOCABULARY) for _ in range(prompt)] for _ in range(batch)]
    rates = {}
    for name in (None, *FORMATS):
        llm = LLM(
            catalog_config(SPEED_MODEL) or SPEED_MODEL,
            device=device,
            kv_cache_dtype=name,
            max_model_len=prompt + num_tokens,
            max_num_seqs=batch,
            max_num_batched_tokens=16384,
        )
        outputs = llm.generate(prompts, params, use_tqdm=False)
        metrics = outputs[-1].metrics
        assert metrics is not None
        times = metrics.token_times  # at the end of the last one all decode
        rates[name or "bfloat16"] = batch * timed / (times[-1] - times[-1 - timed])
        del llm
        gc.collect()
        torch.cuda.empty_cache()
    return [
        Row(
            f"{SPEED_MODEL.lower()}-{name}",
            "decode_tokens_per_second",
            rate,
            "tokens/s",
            {"bfloat16": rates["bfloat16"]},
            {"batch": batch, "prompt_tokens": prompt, "output_tokens": num_tokens},
        )
        for name, rate in rates.items()
    ]


def _variants_of(model: str, device: torch.device) -> list[Variant]:
    config = LLM(model, device=device, num_blocks=256, cuda_graphs=False).model_config
    every = variants(config.head_size, config.num_kv_heads)
    return [v for v in every if device.type == "cpu" or v.attention is None]


def _load(model: str, device: torch.device, variant: Variant) -> LLM:
    return LLM(
        model,
        device=device,
        dtype="float32",
        max_num_seqs=1,
        max_model_len=LENGTH + 16,
        max_num_batched_tokens=LENGTH,
        num_blocks=2 * LENGTH // 16,
        enable_prefix_caching=False,
        cuda_graphs=False,
        components=Components(attention=variant.attention),
        **variant.options,
    )
