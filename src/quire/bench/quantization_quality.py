"""`quire bench quantization-quality`: what fewer bits cost in bits a byte, and in what else.

Every variant scores the same held-out text, in float32, with the decoder's linear layers
changed; the head is not. The cost is the change of bits a byte, with an interval from a
bootstrap over the texts. An average hides that answers changed where the model was unsure, so
each row has the distance of the two distributions too (KL, its mean and its tail) and the share
of positions whose most probable token stays. Calibration reads other held-out files. Outliers
are planted three times in other channels, and the mean counts: the interval is of texts, the
lowest and the highest are of plantings. See the chapter "Quantization".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from statistics import mean

import torch
from torch import Tensor

from quire.bench.measurement import Row
from quire.bench.perplexity import heldout_texts
from quire.bench.quantization_scores import Judge, Scores
from quire.bench.quantization_variants import (
    Changed,
    Noted,
    Planted,
    Rounding,
    SmallCache,
    by_scheme,
    by_tensor,
    calibrated,
    mxfp4,
    note_inputs,
    nvfp4,
    plain,
    rounded,
    with_fixed_inputs,
)
from quire.errors import QuireError
from quire.llm import LLM
from quire.models.loader import resolve_checkpoint
from quire.quantization.scheme import SCHEMES, Scheme
from quire.quantize.judge import change_interval
from quire.quantize.recipe import Recipe
from quire.quantize.source import Source

NUM_TEXTS = 13
NUM_CALIBRATION_TEXTS = 16
LENGTH = 1024
SEEDS = (0, 1, 2)
MOST_CHANGED_LOGIT = 1e-3  # by planted outliers; the rounding of float32 reaches 1e-4
METRIC = "delta_bits_per_byte_percent"

INT4, INT8, FP8 = Scheme("int", 4), Scheme("int", 8), Scheme("fp8", 8)
INTEGERS = ("int8-channel", "int4-channel", "int4-g128", "int4-g64", "int4-g32", "int3-g128")
WEIGHTS: dict[str, Rounding] = {
    **{f"{name}-rtn": by_scheme(Scheme.named(name)) for name in INTEGERS},
    **{f"{name}-asym-rtn": by_scheme(Scheme.named(f"{name}-asym")) for name in INTEGERS[1:]},
    "int2-g32-asym-rtn": by_scheme(Scheme.named("int2-g32-asym")),
    "int8-tensor-rtn": by_tensor(INT8),
    "int4-tensor-rtn": by_tensor(INT4),
    "fp8-channel-rtn": by_scheme(FP8),
    "fp8-tensor-rtn": by_tensor(FP8),
    "fp8-block-rtn": by_scheme(Scheme("fp8", 8, 128, block_rows=128)),
    "mxfp4-rtn": mxfp4,
    "mxfp4-raised-rtn": partial(mxfp4, next_from=1.75),
    "nvfp4-rtn": nvfp4,
}
G128, G128_ASYM = Scheme.named("int4-g128"), Scheme.named("int4-g128-asym")
METHODS = {
    "int4-g128-gptq": Recipe(G128, "gptq"),
    "int4-g128-gptq-act-order": Recipe(G128, "gptq", act_order=True),
    "int4-g128-awq": Recipe(G128, "awq"),
    "int4-g128-asym-gptq": Recipe(G128_ASYM, "gptq"),
    "int4-g128-asym-awq": Recipe(G128_ASYM, "awq"),  # its authors' grid; they also clip ranges
    "int4-g32-gptq": Recipe(Scheme.named("int4-g32"), "gptq"),
    "int4-channel-gptq": Recipe(Scheme.named("int4-channel"), "gptq"),
    "w8a8-int8-smoothed": Recipe(SCHEMES["int8"], smooth=0.5),
}
INPUTS = {
    "inputs-int8-token": Scheme("int", 8, inputs="token"),
    "inputs-fp8-token": Scheme("fp8", 8, inputs="token"),
}
ONE_SCALE = Scheme("int", 8, inputs="tensor")
BOTH = {
    "w8a8-int8": SCHEMES["int8"],
    "w8a8-fp8": SCHEMES["fp8"],
    "w8a8-fp8-block": SCHEMES["fp8_block"],
}
PLANTED_WEIGHTS = ("int4-g128-rtn",)
PLANTED_METHODS = (
    "int4-g128-gptq",
    "int4-g128-gptq-act-order",
    "int4-g128-awq",
    "w8a8-int8-smoothed",
)
CACHES = ("int8", "fp8")
CACHED_WEIGHTS = {"int8": "w8a8-int8", "int4-g128": "int4-g128-rtn"}  # and their own row
COMPARED = (  # two cases each, which a page puts side by side
    ("int4-g128-gptq", "int4-g128-rtn"),
    ("int4-g128-gptq-act-order", "int4-g128-gptq"),
    ("int4-g128-awq", "int4-g128-rtn"),
    ("int4-g128-asym-gptq", "int4-g128-asym-rtn"),
    ("int4-g128-asym-awq", "int4-g128-asym-rtn"),
    ("int4-g128-gptq", "int4-g32-rtn"),
    ("int4-g32-gptq", "int4-g32-rtn"),
    ("int4-channel-gptq", "int4-channel-rtn"),
    ("int4-g128-asym-rtn", "int4-g128-rtn"),
    ("int4-g32-rtn", "int4-g128-rtn"),
    ("mxfp4-raised-rtn", "mxfp4-rtn"),
    ("mxfp4-raised-rtn", "int4-g32-rtn"),
    ("nvfp4-rtn", "int4-g32-rtn"),
    ("fp8-channel-rtn", "int8-channel-rtn"),
    ("inputs-int8-tensor", "inputs-int8-token"),
    ("planted-int4-g128-awq", "planted-int4-g128-gptq"),
    ("planted-int4-g128-awq", "planted-int4-g128-gptq-act-order"),
    ("planted-w8a8-int8-smoothed", "planted-w8a8-int8"),
    ("planted-w8a8-int8-smoothed", "w8a8-int8"),
)


@torch.no_grad()
def run(
    model: str,
    device: torch.device,
    num_texts: int = NUM_TEXTS,
    num_calibration_texts: int = NUM_CALIBRATION_TEXTS,
    length: int = LENGTH,
) -> list[Row]:
    """Judge every variant of a shipped model on `num_texts` texts of `length` tokens.

    Raises:
        QuireError: `device` is no CPU.
    """
    if device.type != "cpu":
        raise QuireError("bench quantization-quality judges in float32 on a CPU; use --device cpu")
    folder = resolve_checkpoint(model)
    source = Source(folder, device, length)
    llm = LLM(model, device=device, num_blocks=256)  # for its tokenizer
    every = heldout_texts(llm, num_texts + num_calibration_texts, length)
    places = [i * len(every) // num_texts for i in range(num_texts)]  # both sorts spread over all
    calibration = [text for i, text in enumerate(every) if i not in places]
    judged = [every[i] for i in places]
    bench = _Bench(Judge(source, judged), sum(_num_bytes(llm, text) for text in judged))
    noted = note_inputs(source, calibration)

    bench.add("plain", [bench.judge.scores(plain(source))])
    for case, rounding in WEIGHTS.items():
        bench.add(case, [bench.judge.scores(rounded(source, rounding))])
    for case, recipe in METHODS.items():
        bench.add(case, [bench.judge.scores(calibrated(source, recipe, calibration))])
    for case, scheme in INPUTS.items():
        bench.add(case, [bench.judge.scores(plain(source, scheme))])
    fixed = with_fixed_inputs(source, ONE_SCALE, noted)
    bench.add("inputs-int8-tensor", [bench.judge.scores(fixed)])
    for case, scheme in BOTH.items():
        bench.add(case, [bench.judge.scores(rounded(source, by_scheme(scheme), scheme))])

    planted = [Planted(folder, device, length, seed) for seed in SEEDS]
    noted_there = [note_inputs(there, calibration) for there in planted]
    _plant(bench, planted, noted_there, calibration)
    for name in CACHES:
        _cache(bench, SmallCache(folder, device, length, name), name)
    return [
        *bench.rows,
        *(bench.compared(*pair) for pair in COMPARED),
        *_outlier_rows("outliers", [noted]),
        *_outlier_rows("planted-outliers", noted_there),
    ]


def _num_bytes(llm: LLM, token_ids: list[int]) -> int:
    """Return the bytes of the text behind the first token."""
    assert llm.tokenizer is not None
    return len(llm.tokenizer.decode(token_ids[1:]).encode("utf-8", "replace"))


def _plant(
    bench: _Bench, planted: list[Planted], noted: list[Noted], calibration: list[list[int]]
) -> None:
    """Judge with outliers what outliers spoil, and what answers them."""

    def add(case: str, changed: list[Changed]) -> None:
        scores = [
            bench.judge.scores(each, there) for each, there in zip(changed, planted, strict=True)
        ]
        if case == "plain":
            largest = max(score.largest_logit_change for score in scores)
            assert largest < MOST_CHANGED_LOGIT, f"planting moved a logit by {largest}"
        bench.add(f"planted-{case}", scores)

    add("plain", [plain(there) for there in planted])
    for case in PLANTED_WEIGHTS:
        add(case, [rounded(there, WEIGHTS[case]) for there in planted])
    for case in PLANTED_METHODS:
        add(case, [calibrated(there, METHODS[case], calibration) for there in planted])
    for case, scheme in INPUTS.items():
        add(case, [plain(there, scheme) for there in planted])
    fixed = [
        with_fixed_inputs(there, ONE_SCALE, each)
        for there, each in zip(planted, noted, strict=True)
    ]
    add("inputs-int8-tensor", fixed)
    for case in ("w8a8-int8", "w8a8-fp8"):
        add(case, [rounded(there, by_scheme(BOTH[case]), BOTH[case]) for there in planted])


def _cache(bench: _Bench, cached: SmallCache, name: str) -> None:
    """Judge a cache of eight bits with plain and with rounded weights; is the cost the sum?"""
    bench.add(f"kv-{name}-plain", [bench.judge.scores(plain(cached), cached)])
    alone = bench.nats[f"kv-{name}-plain"]
    for scheme, weights in CACHED_WEIGHTS.items():
        case, named = f"kv-{name}-{scheme}", Scheme.named(scheme)
        changed = rounded(cached, by_scheme(named), named)
        bench.add(case, [bench.judge.scores(changed, cached)])
        exact = bench.nats["plain"]
        excess = bench.nats[case] - alone - bench.nats[weights] + exact
        low, high = _interval(exact, exact + excess)
        both = (f"kv-{name}-plain", weights)
        parts = {part: _percent(exact, bench.nats[part]) for part in both}
        value = _percent(exact, exact + excess)
        parameters = {
            "low": low,
            "high": high,
            "kl_mean": bench.kl[case],
            "kl_mean_sum": sum(bench.kl[part] for part in both),
        }
        bench.rows.append(Row(case, "excess_over_sum_percent", value, "%", parts, parameters))


class _Bench:
    """The rows so far."""

    def __init__(self, judge: Judge, num_bytes: int) -> None:
        """`num_bytes` are those of the text that is predicted."""
        self.judge = judge
        self.num_bytes = num_bytes
        self.rows: list[Row] = []
        self.nats: dict[str, Tensor] = {}  # float64 [num_texts], by case
        self.kl: dict[str, float] = {}  # mean, by case

    def add(self, case: str, runs: Sequence[Scores]) -> None:
        """Add a row; several runs of one case differ in where outliers are planted."""
        self.nats[case] = nats = torch.stack([run.nats for run in runs]).mean(0)
        exact, count = self.nats["plain"], sum(len(text) - 1 for text in self.judge.texts)
        low, high = _interval(exact, nats)
        kl = torch.cat([run.kl for run in runs])
        self.kl[case] = float(kl.mean())
        levels = (0.5, 0.9, 0.99, 0.999)
        tail = kl.quantile(torch.tensor(levels, dtype=torch.float64)).tolist()
        worst = kl.sort(descending=True).values[: -(-len(kl) // 100)]
        each = [_percent(exact, run.nats) for run in runs]
        spread = {"plantings": len(runs), "lowest": min(each), "highest": max(each)}
        parameters = {
            "low": low,  # 95 % of such texts
            "high": high,
            "kl_mean": self.kl[case],
            **dict(zip(("kl_p50", "kl_p90", "kl_p99", "kl_p999"), tail, strict=True)),
            "kl_worst_percent_share": float(worst.sum() / kl.sum()) if float(kl.sum()) else 0.0,
            "kept": mean(run.kept for run in runs),
            "improved": mean(run.improved for run in runs),
            "bits_a_weight": runs[0].bits_a_weight,
            "bits_per_byte": float(nats.sum()) / math.log(2) / self.num_bytes,
            "mean_logprob": -float(nats.sum()) / count,
            "largest_logit_change": max(run.largest_logit_change for run in runs),
            "texts": len(nats),
            "text_tokens": len(self.judge.texts[0]),
        }
        parameters |= spread if len(runs) > 1 else {}
        self.rows.append(Row(case, METRIC, _percent(exact, nats), "%", {}, parameters))

    def compared(self, case: str, other: str) -> Row:
        """Return a row of one case's bits a byte against another's, text by text."""
        nats, others = self.nats[case], self.nats[other]
        low, high = _interval(others, nats)
        better = int((nats < others).sum())
        parameters = {"low": low, "high": high, "texts": len(nats), "texts_better": better}
        name, value = f"{case} to {other}", _percent(others, nats)
        return Row(name, "bits_per_byte_against_percent", value, "%", {}, parameters)


def _percent(nats: Tensor, changed: Tensor) -> float:
    """Return by how much nats grow, in percent; bits a byte grow alike, of the same bytes."""
    return 100 * float(changed.sum() / nats.sum() - 1)


def _interval(nats: Tensor, changed: Tensor) -> tuple[float, float]:
    """Return where `_percent` of [num_texts] lies with 95 % confidence, over such texts."""
    low, high = change_interval(torch.stack([nats, changed], 1), range(len(nats)))
    return 100 * low, 100 * high


def _outlier_rows(prefix: str, several: list[Noted]) -> list[Row]:
    """Return the largest input of the largest channel over that of the median channel."""
    rows = []
    for index, by_name in enumerate(several[0]):
        for name in by_name:
            largest = [noted[index][name].largest for noted in several]
            ratios = [float(x.max() / x.median()) for x in largest]
            parameters = {
                "channel": int(largest[0].argmax()),
                "largest": float(largest[0].max()),
                "median": float(largest[0].median()),
                "channels_above_10": mean(int((x > 10 * x.median()).sum()) for x in largest),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
            case = f"{prefix}-{index}-{name}"
            rows.append(Row(case, "largest_to_median", mean(ratios), "1", {}, parameters))
    return rows
