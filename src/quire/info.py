"""`quire info MODEL`: what a model weighs, what a token costs, how fast it could be.

Prints the arithmetic of `quire.analysis` for a shipped model, a local folder, a model of
the built-in catalog (no download) or a hub name. Explained in the chapter
"Autoregressive decoding".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from quire.analysis import (
    DTYPE_BYTES,
    Hardware,
    Prediction,
    active_parameters,
    catalog_config,
    catalog_json,
    count_parameters,
    dtype_bytes,
    find_hardware,
    kv_bytes_per_token,
    load_hardware,
    predict,
    short_dtype,
    weight_bytes,
)
from quire.analysis.quantization import SLOWER_FROM
from quire.models.config import ModelConfig
from quire.resources import shipped_models

Row = tuple[str, str, str]  # label, value, remark; a row of one label alone is a heading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `quire info`."""
    parser.add_argument(
        "model",
        help="a shipped model, a folder with a config.json, a hub name, or one of the "
        f"catalog: {', '.join(catalog_json())}",
    )
    parser.add_argument(
        "--hardware",
        default="h200",
        help=f"device to reason about: {', '.join(load_hardware())}, or the start of one "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--data-sheet",
        action="store_true",
        help="use the data sheet's ceilings even where the book measured the device",
    )
    parser.add_argument("--batch", type=int, default=1, help="requests at once (%(default)s)")
    parser.add_argument("--prompt", type=int, default=512, help="prompt tokens (%(default)s)")
    parser.add_argument("--output", type=int, default=256, help="output tokens (%(default)s)")
    dtypes = ", ".join(DTYPE_BYTES)
    parser.add_argument("--dtype", help=f"of the weights: {dtypes} (default: the checkpoint's)")
    parser.add_argument(
        "--kv-dtype", help="of the KV cache (default: the weights', if 16 or 32 bit)"
    )
    parser.add_argument("--mfu", type=float, default=1.0, help="share of peak FLOP/s (%(default)s)")
    parser.add_argument("--mbu", type=float, default=1.0, help="share of bandwidth (%(default)s)")
    parser.add_argument(
        "--overhead-us", type=float, default=0.0, help="extra microseconds a step (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table; return 0, or 2 after one line on stderr when the input is wrong."""
    try:
        config = find_config(args.model)
        hardware = find_hardware(args.hardware)
        if not args.data_sheet:
            hardware = hardware.measured()
        weight_dtype = short_dtype(args.dtype or config.dtype)
        kv_dtype = short_dtype(args.kv_dtype or default_kv_dtype(weight_dtype))
        prediction = predict(
            config,
            hardware,
            batch=args.batch,
            prompt_tokens=args.prompt,
            output_tokens=args.output,
            weight_dtype=weight_dtype,
            kv_dtype=kv_dtype,
            mfu=args.mfu,
            mbu=args.mbu,
            step_overhead_s=args.overhead_us * 1e-6,
        )
    except (ValueError, OSError) as error:  # every error quire raises on purpose is one of them
        print(f"quire info: {error}", file=sys.stderr)
        return 2
    rows = [
        *model_rows(args.model, config, weight_dtype, kv_dtype),
        *memory_rows(prediction, args.batch, args.prompt + args.output, hardware),
        *limit_rows(prediction, args, hardware),
        *format_rows(weight_dtype, find_hardware(args.hardware), args.batch),
    ]
    print(format_table(rows))
    return 0


def find_config(name: str) -> ModelConfig:
    """Return the configuration of `name`: shipped, local folder, catalog, then hub."""
    if name in shipped_models():
        return ModelConfig.from_folder(shipped_models()[name])
    if Path(name).is_dir():
        return ModelConfig.from_folder(name)
    known = catalog_config(name)
    if known is not None:
        return known
    return ModelConfig.from_folder(fetch_config(name))


def fetch_config(name: str) -> Path:
    """Fetch a hub model's `config.json` alone, a few kilobytes, and return its folder.

    Raises:
        ValueError: no such model, or the hub cannot be reached.
    """
    try:
        if "/" not in name:
            raise ValueError("a hub name has the form owner/name")
        from huggingface_hub import snapshot_download  # slow to import, and seldom needed

        return Path(snapshot_download(name, allow_patterns=["config.json"]))
    except Exception as error:  # the hub's client raises many kinds
        raise ValueError(
            f"{name!r} is no shipped model ({', '.join(shipped_models())}), no folder and not in "
            f"the catalog ({', '.join(catalog_json())}), and could not be fetched from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def default_kv_dtype(weight_dtype: str) -> str:
    """Return the weights' dtype, or bf16 when the weights are quantized."""
    return weight_dtype if dtype_bytes(weight_dtype) >= 2 else "bf16"


def model_rows(name: str, config: ModelConfig, weight_dtype: str, kv_dtype: str) -> Iterator[Row]:
    """Yield the rows on sizes, parameters, weight and cache bytes."""
    count = count_parameters(config)
    yield ("model", "", "")
    yield ("name", name, config.architecture)
    yield ("layers × hidden", f"{config.num_layers} × {config.hidden_size:,}", "")
    yield (
        "query / KV heads",
        f"{config.num_heads} / {config.num_kv_heads}",
        f"of {config.head_size}: {config.num_groups} query heads share a KV head",
    )
    yield ("parameters", f"{count.total:,}", "")
    for part in ("embedding", "attention", "mlp", "norm", "head"):
        value = getattr(count, part)
        remark = "shared with the embedding" if part == "head" and not value else ""
        yield (f"  {part}", f"{value:,}", remark or f"{value / count.total:.1%}")
    if (moe := config.moe) is not None:
        active = active_parameters(config)
        yield ("  met by a token", f"{active:,}", f"{active / count.total:.1%}")
        chosen = f"{moe.experts_per_token} of {moe.num_experts}"
        yield (
            "experts a token",
            chosen,
            f"in {len(moe.layers)} layers, {moe.intermediate_size} wide",
        )
    yield ("weights", amount(weight_bytes(config, weight_dtype), "B"), weight_dtype)
    yield ("KV cache a token", amount(kv_bytes_per_token(config, kv_dtype), "B"), kv_dtype)


def memory_rows(
    prediction: Prediction, batch: int, context: int, hardware: Hardware
) -> Iterator[Row]:
    """Yield the memory ledger."""
    memory = prediction.memory
    yield ("memory", "", "")
    yield ("weights", amount(memory.weights, "B"), "")
    yield ("KV cache", amount(memory.kv_cache, "B"), f"{batch} × {context:,} tokens")
    yield ("activations", amount(memory.activations, "B"), "workspace of one step")
    yield ("logits", amount(memory.logits, "B"), "float32")
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    total = amount(memory.total, "B")
    yield ("total", total, f"{verdict} in {amount(memory.capacity, 'B')} of {hardware.name}")
    yield ("largest batch", f"{memory.max_batch:,}", "sequences of this length")


def limit_rows(
    prediction: Prediction, args: argparse.Namespace, hardware: Hardware
) -> Iterator[Row]:
    """Yield times, rates and prices; limits if the ceilings are and no efficiency was given."""
    if args.mfu < 1 or args.mbu < 1 or args.overhead_us > 0:
        kind = "estimate at the given MFU, MBU, overhead"
    elif hardware.key in load_hardware():  # the data sheet's ceilings
        kind = "limits (no engine that does this work is faster)"
    else:
        kind = "estimate (some kernels pass measured ceilings)"
    yield (f"{kind} on {hardware.name}", "", "")
    for label, work, bound in (
        ("prefill", prediction.prefill, prediction.prefill_bound),
        ("last decode step", prediction.decode, prediction.decode_bound),
    ):
        yield (
            label,
            f"{amount(work.flops, 'FLOP')}",
            f"{amount(work.bytes_moved, 'B')} moved: {work.arithmetic_intensity:.3g} FLOP/B, "
            f"bound by {bound}",
        )
    ridge = hardware.ridge_point(prediction.compute_dtype)
    yield ("ridge point", f"{ridge:.3g} FLOP/B", prediction.compute_dtype)
    yield ("TTFT", duration(prediction.ttft_s), f"{args.batch} × {args.prompt:,} prompt tokens")
    yield ("TPOT", duration(prediction.tpot_s), f"mean of {args.output - 1:,} decode steps")
    yield ("request latency", duration(prediction.request_latency_s), "")
    yield ("throughput", f"{prediction.output_tokens_per_s:,.0f} tok/s", "output, whole batch")
    price = prediction.usd_per_million_output_tokens
    yield ("price", f"${price:,.4g}", f"per 10⁶ output tokens at ${hardware.usd_per_hour:.2f}/h")
    energy = prediction.joules_per_output_token
    yield ("energy", f"{energy:.3g} J", f"per output token at {hardware.tdp_watts:g} W")


def format_rows(weight_dtype: str, hardware: Hardware, batch: int) -> Iterator[Row]:
    """Yield where quire's products of four-bit weights lose to 16-bit ones, as it was measured."""
    if weight_dtype != "int4":
        return
    yield ("quire's INT4 products beside bf16", "", "")
    rows = SLOWER_FROM.get(hardware.name, {}).get(weight_dtype)
    if rows is None:
        yield ("slower from", "not measured", f"on {hardware.name}")
        return
    verdict = "slower" if batch >= rows else "faster"
    yield ("slower from", f"{rows} tokens", f"a step; a decode step of {batch:,} is {verdict}")


def amount(value: float, unit: str) -> str:
    """Format with a decimal prefix and three digits: 1.19 GB, 21.0 MB, 115 GFLOP."""
    prefixes = iter("kMGTPEZY")
    prefix = ""
    while value >= 999.5:
        value, prefix = value / 1000, next(prefixes)
    return f"{value:#.3g}".rstrip(".") + f" {prefix}{unit}"


def duration(seconds: float) -> str:
    """Format a time in the unit that suits it: 286 µs, 4.96 ms, 1.94 s."""
    for scale, unit in ((1e-3, "µs"), (1.0, "ms")):
        if seconds * 1e3 < scale * 999.5:
            return f"{seconds * 1e3 / scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def format_table(rows: list[Row]) -> str:
    """Align labels left and values right, remarks after them; a blank line before a heading."""
    body = [row for row in rows if row[1]]
    label_width = max(len(label) for label, _, _ in body)
    value_width = max(len(value) for _, value, _ in body)
    lines: list[str] = []
    for label, value, remark in rows:
        if not value:
            lines += ["", label]
            continue
        lines.append(f"  {label:<{label_width}}  {value:>{value_width}}  {remark}".rstrip())
    return "\n".join(lines).lstrip("\n")
