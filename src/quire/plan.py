"""`quire plan MODEL --gpus N`: which layout for which goal, with times, memory and bottleneck.

Prints what `quire.analysis.planning` forecasts for every layout of so many GPUs: the sorted table,
the layouts that are refused and why, and the best for latency, for throughput and within targets.
Explained in the chapter "Parallelism".
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from quire.analysis.collectives import LINKS, find_link
from quire.analysis.hardware import find_hardware, load_hardware
from quire.analysis.layout_clock import Machine
from quire.analysis.memory import dtype_bytes, short_dtype
from quire.analysis.planning import Forecast, Refusal, Slo, best, plan
from quire.analysis.queueing import Arrival, at_rate, poisson_arrivals
from quire.analysis.rank_memory import BLOCK_SIZE
from quire.analysis.step_parts import reachable
from quire.errors import QuireError
from quire.info import amount, duration, find_config
from quire.models.config import ModelConfig
from quire.quantization.scheme import SCHEMES, Scheme

BOUND = {
    "weights": "reading weights",
    "arithmetic": "arithmetic",
    "cache": "reading the cache",
    "rows": "activations",
    "launches": "kernel launches",
    "exchange": "exchange of ranks",
    "host": "the host",
    "bubble": "waiting for stages",
}
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `quire plan`."""
    parser.add_argument("model", help="as for quire info")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="all are used")
    parser.add_argument(
        "--gpu",
        default="h200",
        help=f"which: {', '.join(load_hardware())}, or the start of one (default: %(default)s)",
    )
    parser.add_argument(
        "--link",
        default="direct",
        help=f"between them: {', '.join(LINKS)} (NVLink 4; direct: as quire adds up, over peers' "
        "memory), or microseconds a call and gigabytes a second, such as 20us:25GBps (default: "
        "%(default)s)",
    )
    parser.add_argument("--prompt", type=int, default=512, help="prompt tokens (%(default)s)")
    parser.add_argument("--output", type=int, default=256, help="output tokens (%(default)s)")
    parser.add_argument(
        "--concurrency", type=int, default=64, help="requests that arrive together (%(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, help="they arrive one by one instead, so many a second on average"
    )
    parser.add_argument(
        "--slo", type=_slo, default=Slo(), help="targets of 99 in 100: tpot=20ms,ttft=500ms"
    )
    parser.add_argument("--quantization", choices=SCHEMES, help="of the layers' weights")
    parser.add_argument("--kv-dtype", default="bf16", help="of the cache: bf16, fp8 or int8")
    parser.add_argument("--max-num-seqs", type=int, default=256, help="%(default)s")
    parser.add_argument("--max-num-batched-tokens", type=int, default=16384, help="%(default)s")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the plan; return 0, or 2 after one line on stderr when the input is wrong."""
    try:
        config = _plain(find_config(args.model), args)
        machine = _machine(args)
        forecasts, refusals = plan(config, args.gpus, _arrivals(args, config), machine)
    except (ValueError, QuireError, OSError) as error:
        print(f"quire plan: {error}", file=sys.stderr)
        return 2
    targets = None if args.slo == Slo() else args.slo
    if args.json:
        print(json.dumps(_as_json(forecasts, refusals, targets, machine), indent=2))
    else:
        print("\n".join(_lines(args, config, forecasts, refusals, targets, machine)))
    return 0


def _plain(config: ModelConfig, args: argparse.Namespace) -> ModelConfig:
    if config.quantization is not None and args.quantization is None:
        raise QuireError(
            f"{args.model} is quantized already: name its format by --quantization, one of "
            f"{', '.join(SCHEMES)}"
        )
    return config


def _machine(args: argparse.Namespace) -> Machine:
    hardware = find_hardware(args.gpu)
    kv_dtype = short_dtype(args.kv_dtype)
    if dtype_bytes(kv_dtype) not in (1, 2):
        raise QuireError(f"kv-dtype={args.kv_dtype!r}: must be bf16, fp16, fp8 or int8")
    for name, least in (("max_num_seqs", 1), ("max_num_batched_tokens", 1)):
        if getattr(args, name) < least:
            raise QuireError(f"{name}={getattr(args, name)}: must be at least {least}")
    return Machine(
        reachable(hardware),
        find_link(args.link, hardware),
        scheme=Scheme.named(args.quantization) if args.quantization else None,
        kv_dtype=kv_dtype,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
    )


def _arrivals(args: argparse.Namespace, config: ModelConfig) -> list[Arrival]:
    for name in ("prompt", "output", "concurrency"):
        if getattr(args, name) < 1:
            raise QuireError(f"{name}={getattr(args, name)}: must be at least 1")
    if args.prompt + args.output > config.max_position:
        raise QuireError(
            f"prompt={args.prompt} and output={args.output}: the model was made for "
            f"{config.max_position} tokens together"
        )
    if args.rate is None:
        return [Arrival(0.0, args.prompt, args.output)] * args.concurrency
    if not args.rate > 0:
        raise QuireError(f"rate={args.rate}: must be above 0, in requests a second")
    return at_rate(poisson_arrivals(args.concurrency, [(args.prompt, args.output)]), args.rate)


def _slo(text: str) -> Slo:
    """Read targets: tpot=20ms,ttft=0.5s."""
    targets: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(ttft|tpot)\s*=\s*(\d+(?:\.\d*)?)\s*(us|ms|s)\s*", part)
        if match is None or f"{match[1]}_s" in targets:
            raise argparse.ArgumentTypeError(
                f"{part!r}: give ttft or tpot, each once, with a unit, such as tpot=20ms,ttft=500ms"
            )
        targets[f"{match[1]}_s"] = float(match[2]) * UNITS[match[3]]
    return Slo(**targets)


def _by_throughput(forecasts: Sequence[Forecast]) -> list[Forecast]:
    return sorted(forecasts, key=lambda forecast: -forecast.tokens_per_s)


def _lines(
    args: argparse.Namespace,
    config: ModelConfig,
    forecasts: Sequence[Forecast],
    refusals: Sequence[Refusal],
    slo: Slo | None,
    machine: Machine,
) -> Iterator[str]:
    """Yield the table, the refusals, the best of each goal, and what was assumed."""
    how = "together" if args.rate is None else f"at {args.rate:g} a second"
    count = "1 request" if args.concurrency == 1 else f"{args.concurrency:,} requests"
    yield (
        f"{args.model} on {args.gpus} x {machine.hardware.name}: {count} of {args.prompt:,} + "
        f"{args.output:,} tokens, {how}"
    )
    if forecasts:
        yield ""
        yield from _table(forecasts, slo)
    if refusals:
        yield ""
        yield from (f"{refusal.layout} is refused: {refusal.reason}" for refusal in refusals)
    yield ""
    yield from _choices(forecasts, slo)
    yield ""
    assumed = [
        *machine.link.assumed,
        "what a command to ranks takes for each request",
        "the bytes that CUDA and NCCL keep",
    ]
    if config.moe is not None:
        assumed.append("an even choice of experts; their products, as others of as many rows")
    yield f"Link: {machine.link.name}. Assumed, not measured: {'; '.join(assumed)}."


def _table(forecasts: Sequence[Forecast], slo: Slo | None) -> Iterator[str]:
    heads = ["layout", "weights", "cache", "TTFT", "TPOT", "TTFT p99", "TPOT p99", "tokens/s"]
    rows = [[*heads, "most of a step", *(["in time"] if slo else [])]]
    for forecast in _by_throughput(forecasts):
        assert forecast.memory is not None
        tokens = (forecast.num_blocks - 1) * BLOCK_SIZE * forecast.layout.data
        row = [
            str(forecast.layout),
            amount(forecast.memory.weights, "B"),
            amount(tokens, "tok"),
            duration(forecast.ttft_alone_s),
            duration(forecast.tpot_alone_s),
            duration(forecast.ttft_p99_s),
            duration(forecast.tpot_p99_s),
            f"{forecast.tokens_per_s:,.0f}",
            BOUND[forecast.decode.bottleneck],
        ]
        rows.append(row + ([("yes" if forecast.meets(slo) else "no")] if slo else []))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(heads)
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
    yield "(weights: a rank's; TTFT, TPOT: of one request alone; p99 and tokens/s: of all)"


def _choices(forecasts: Sequence[Forecast], slo: Slo | None) -> Iterator[str]:
    """Say which layout is the best of each goal, and by how much it leads the next."""
    if not forecasts:
        yield "No layout is possible."
        return
    for goal, chosen in best(forecasts, slo).items():
        if goal == "latency":
            what = f"a request alone takes {duration(chosen.latency_alone_s)}"
            others = [other.latency_alone_s / chosen.latency_alone_s for other in forecasts]
        else:
            what = f"{chosen.tokens_per_s:,.0f} tokens a second"
            among = [other for other in forecasts if goal != "SLO" or other.meets(slo or Slo())]
            others = [chosen.tokens_per_s / other.tokens_per_s for other in among]
        lead = sorted(others)[1:2]
        ahead = f", {lead[0]:.2f} times as good as the next" if lead and lead[0] >= 1.005 else ""
        name = "within the targets" if goal == "SLO" else f"for {goal}"
        yield (
            f"best {name}: {chosen.layout} ({what}{ahead}; a step is mostly "
            f"{BOUND[chosen.decode.bottleneck]})"
        )
    if slo is not None and "SLO" not in best(forecasts, slo):
        yield "within the targets: no layout"


def _as_json(
    forecasts: Sequence[Forecast],
    refusals: Sequence[Refusal],
    slo: Slo | None,
    machine: Machine,
) -> dict[str, Any]:
    return {
        "hardware": machine.hardware.name,
        "link": asdict(machine.link),
        "layouts": [
            {"name": str(forecast.layout), **asdict(forecast)}
            | ({"in_time": forecast.meets(slo)} if slo else {})
            for forecast in _by_throughput(forecasts)
        ],
        "refused": [
            {
                "name": str(refusal.layout),
                "layout": asdict(refusal.layout),
                "reason": refusal.reason,
            }
            for refusal in refusals
        ],
        "best": {goal: str(chosen.layout) for goal, chosen in best(forecasts, slo).items()},
    }
