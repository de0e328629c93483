"""`quire bench cache-compression`: what a smaller cache costs in perplexity.

Every variant scores the same held-out text with the same weights; perplexity is counted from
the position on at which the largest window has lost something. Variants that the engine serves
are its own options; the others are components, made to be judged. Fewer tokens are kept at
several precisions, since the two savings multiply and a window at float32 is no fair opponent
of codes, and two caches are compared at equal bytes. Each cost has an interval from a bootstrap
over the texts. What is rotated is judged with several random rotations, and their mean counts.
"""

from __future__ import annotations

import gc
import random
from typing import Any

import torch
from torch import Tensor

from quire.analysis import catalog_config
from quire.bench.cache_variants import BUDGETS, LENGTH, Attention, Variant, variants
from quire.bench.engine import VOCABULARY
from quire.bench.measurement import Row
from quire.bench.perplexity import heldout_texts, nats_per_token, perplexity
from quire.components import Components
from quire.kv.quantized import FORMATS
from quire.llm import LLM
from quire.sampling.params import SamplingParams

NUM_TEXTS = 64
SPEED_MODEL = "Qwen3-0.6B"
RESAMPLES = 10_000
COMPARED = (  # two caches each, whose perplexities a page puts side by side
    ("h2o-512", "window-512"),
    ("h2o-128", "window-128"),
    ("sinks-512", "window-512"),
    ("int8-sinks-542", "int4"),
    ("int8-sinks-542", "int4-rotated"),
    ("int4-sinks-512", "int8-sinks-271"),
    ("int4-rotated-sinks-512", "int8-sinks-271"),
    ("int4-rotated", "int4"),
    ("int3-rotated", "int3"),
)


def run(model: str, device: torch.device, num_texts: int = NUM_TEXTS) -> list[Row]:
    """Judge every variant on `num_texts` texts of 1,024 tokens, in float32.

    On a GPU only what its kernels serve, and how fast a model of real size decodes with it.
    """
    rows: list[Row] = []
    found: dict[str, Tensor] = {}
    texts: list[list[int]] = []
    for variant in _variants_of(model, device):
        each = []
        for attention in (variant.attention, *variant.others):
            llm = _load(model, device, variant.options, attention)
            texts = texts or heldout_texts(llm, num_texts, LENGTH)
            each.append([nats_per_token(llm, [text], max(BUDGETS)) for text in texts])
        runs = torch.tensor(each)  # [num_rotations or 1, num_texts]
        found[variant.case] = nats = runs.mean(0)
        exact = found["float32"]
        low, high = ratio_interval(nats, exact)
        config = llm.model_config
        elements = 2 * config.num_layers * config.num_kv_heads * config.head_size
        num_bytes = variant.tokens * elements * variant.kv_heads * variant.bits / 8
        spread = {
            "rotations": len(runs),
            "lowest": perplexity(float(runs.mean(1).min())),
            "highest": perplexity(float(runs.mean(1).max())),
        }
        rows.append(
            Row(
                variant.case,
                "perplexity",
                perplexity(float(nats.mean())),
                "1",
                {"float32": perplexity(float(exact.mean()))},
                {
                    "bits_per_element": variant.bits,
                    "tokens_kept": variant.tokens,
                    "bytes_per_text": num_bytes,
                    "nats_per_token": float(nats.mean()),
                    "ratio_low": low,  # of the perplexity to float32's: 95 %
                    "ratio_high": high,
                    "texts": num_texts,
                    "text_tokens": LENGTH,
                }
                | (spread if variant.others else {}),
            )
        )
        del llm
    rows += _comparisons(found)
    return rows + speed_rows(device) if device.type == "cuda" else rows


def ratio_interval(nats: Tensor, others: Tensor, seed: int = 0) -> tuple[float, float]:
    """Return where the ratio of two perplexities lies with 95 % confidence, over such texts.

    `nats` and `others` [num_texts] are of the same texts, a token. A bootstrap draws whole
    texts, since the tokens of one are not independent; both caches see the same draw, so that
    what makes a text hard for both cancels.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(nats), (RESAMPLES, len(nats)), generator=generator)
    ratios = (nats - others).double()[drawn].mean(1).exp()
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _comparisons(found: dict[str, Tensor]) -> list[Row]:
    rows = []
    for case, other in COMPARED:
        if case not in found or other not in found:  # on a GPU: not served by its kernels
            continue
        nats, others = found[case], found[other]
        low, high = ratio_interval(nats, others)
        rows.append(
            Row(
                f"{case} to {other}",
                "perplexity_ratio",
                perplexity(float((nats - others).mean())),
                "1",
                {},
                {
                    "low": low,
                    "high": high,
                    "texts": len(nats),
                    "texts_better": int((nats < others).sum()),
                },
            )
        )
    return rows


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


def _load(
    model: str, device: torch.device, options: dict[str, Any], attention: Attention | None
) -> LLM:
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
        components=Components(attention=attention),
        **options,
    )
