"""`quire bench NAME`: run one benchmark, print its rows, write its measurement file."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from quire.analysis import Hardware, catalog_config, catalog_json, find_hardware
from quire.bench import (
    cache_blocks,
    cache_compression,
    cache_offload,
    cache_prefix,
    collectives,
    decode,
    divergence,
    engine,
    expert_ranks,
    experts,
    kernel_ladders,
    kernels,
    linear,
    load,
    overlap,
    parallel,
    peers,
    pitfalls,
    power,
    quantization_quality,
    quantization_runs,
    quantization_speed,
    ring,
    speculation_acceptance,
    speculation_auto,
    speculation_steps,
    spike,
    steps,
)
from quire.bench.measurement import Measurement, Row
from quire.devices import default_device, default_dtype
from quire.errors import QuireError
from quire.models.config import ModelConfig
from quire.models.loader import resolve_checkpoint

TITLES = {
    "engine": "Whole runs of the engine on random weights of real shapes",
    "kernel-ladders": "One operation after another, a kernel for each idea, beside the limit",
    "kernels": "Kernels against torch's best and a copy of the same size",
    "decode": "Output tokens per second on a CPU, quire against transformers",
    "steps": "Time of a prefill step over prompt length, of a decode step over batch size",
    "linear": "Matrix products of one decoder layer over the number of tokens at once",
    "cache-blocks": "Unused positions and time of decode attention over the size of a block",
    "cache-prefix": "Time to the first token over the share of the prompt in the cache",
    "cache-offload": "Loading a prefix or a preempted request from host memory or computing it",
    "cache-compression": "Perplexity of held-out text over the size of the KV cache",
    "quantization-quality": "Bits a byte of held-out text over the bits of weights and inputs",
    "quantization-runs": "Whole runs of the engine over the format of the weights",
    "quantization-speed": "Products of a layer over the format of the weights",
    "power": "What the GPU draws while it decodes, and the energy of a token",
    "pitfalls": "One matrix-vector product timed rightly and with one mistake at a time",
    "speculation-auto": "Whole runs whose number of guesses the engine chooses, over the batch",
    "speculation-steps": "Steps of several tokens, drafts, and whole runs at chosen acceptance",
    "speculation-acceptance": "Drafts that stand, tokens a round and tokens per second, on a CPU",
    "spike": "The longest gap between tokens when a long prompt arrives, over the step's budget",
    "overlap": "A decode step with the host's work before it, and behind it",
    "peers": "quire and vLLM in turns on one GPU, on the same works",
    "load": "Goodput and latencies under Poisson arrivals, over their rate",
    "collectives": "What GPUs of one machine tell each other, by its size and the number of ranks",
    "parallel": "Whole runs of a model laid out over the GPUs of one machine",
    "ring": "Attention of one long prompt, on one GPU and on rings of several",
    "experts": "A mixture of experts on one GPU: a layer's experts alone, decode steps, whole runs",
    "expert-ranks": "A mixture of experts on several GPUs: its experts cut, placed and copied",
    "divergence": "Greedy outputs that change with the batch a request is in",
}


DEFAULT_MODEL = "quire-mini"
EXPERTS_MODEL = "Qwen/Qwen3-30B-A3B"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `quire bench`."""
    parser.add_argument("name", choices=TITLES, help="what to measure")
    parser.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a shipped model or a folder; for steps, linear, power and engine a model of the "
        f"catalog, with random weights: {', '.join(catalog_json())} (default: %(default)s; "
        f"engine, peers: {' and '.join(engine.MODELS)})",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    parser.add_argument("--tokens", type=int, default=256, help="decode: output tokens")
    parser.add_argument("--out", type=Path, help="folder to write <id>.json to (default: print)")
    parser.add_argument("--id", help="the measurement's id (default: from name and device)")
    parser.add_argument("--max-batch", type=int, default=256, help="steps: largest batch")
    parser.add_argument(
        "--vllm-python", help="peers: the Python of the environment that has vLLM (this one)"
    )
    parser.add_argument(
        "--layouts",
        type=lambda text: tuple(text.split(",")),
        help=f"parallel, of {', '.join(parallel.LAYOUTS)}, and expert-ranks, of "
        f"{', '.join(expert_ranks.LAYOUTS)}: which, with commas between (those for which there "
        "are GPUs)",
    )
    parser.add_argument(
        "--router-spread",
        type=float,
        default=expert_ranks.SPREAD,
        help="expert-ranks: how unevenly the random router chooses; 0: as by chance (%(default)s)",
    )
    parser.add_argument("--commit", help="commit to record (default: asked of git)")


def run(args: argparse.Namespace, command: str) -> int:
    """Measure and report; `command` is recorded as the way to repeat it."""
    device = default_device(args.device)
    torch.set_num_threads(args.threads)
    if args.name == "kernel-ladders":
        rows, unmeasured = kernel_ladders.run(device)
    elif args.name == "peers":
        rows, unmeasured = _measure_peers(args, device)
    else:
        rows, unmeasured = _measure(args, device), ""
    print_rows(rows)
    if args.out is not None:
        measurement_id = args.id or f"{args.name}-{device_label(device)}"
        command = re.sub(r" --(out|commit|vllm-python)[ =]\S+", "", command)  # where, not what
        limits = steps.note(_ceilings(device), default_dtype(device))
        note = limits if args.name == "steps" else unmeasured
        measurement = Measurement(measurement_id, TITLES[args.name], command, rows, note)
        print(f"wrote {measurement.save(args.out, args.commit)}")
    return 1 if unmeasured else 0


def _measure_peers(args: argparse.Namespace, device: torch.device) -> tuple[list[Row], str]:
    models = engine.MODELS if args.model == DEFAULT_MODEL else (args.model,)
    return peers.run(models, device, args.vllm_python)


def _measure(args: argparse.Namespace, device: torch.device) -> list[Row]:
    if args.name == "decode":
        if device.type != "cpu":
            raise QuireError("bench decode compares on a CPU; use --device cpu, or bench engine")
        return decode.run(args.model, args.tokens, args.threads)
    if args.name == "engine":
        models = engine.MODELS if args.model == DEFAULT_MODEL else (args.model,)
        return engine.run(models, device)
    if args.name == "cache-blocks":
        return cache_blocks.run(device)
    if args.name == "cache-prefix":
        return cache_prefix.run(args.model, device)
    if args.name == "cache-offload":
        return cache_offload.run(args.model, device)
    if args.name == "cache-compression":
        return cache_compression.run(args.model, device)
    if args.name == "quantization-quality":
        return quantization_quality.run(args.model, device)
    if args.name == "kernels":
        return kernels.run(device)
    if args.name == "pitfalls":
        if device.type != "cuda":
            raise QuireError("bench pitfalls times a GPU's queue and cache; use --device cuda")
        return pitfalls.run(device)
    if args.name == "divergence":
        dtypes = ("float32", "bfloat16") if device.type == "cuda" else ("float32",)
        return divergence.run(catalog_config(args.model) or args.model, device, dtypes)
    if args.name in ("quantization-speed", "quantization-runs"):
        name = engine.MODELS[1] if args.model == DEFAULT_MODEL else args.model
        config = _catalogued(name)
        if args.name == "quantization-speed":
            return quantization_speed.run(config, device)
        return quantization_runs.run(config, name.rpartition("/")[2].lower(), device)
    if args.name == "parallel":
        name = engine.MODELS[1] if args.model == DEFAULT_MODEL else args.model
        case = name.rpartition("/")[2].lower()
        return parallel.run(_catalogued(name), case, device, args.layouts)
    if args.name == "collectives":
        return collectives.run(device)
    if args.name == "ring":
        name = engine.MODELS[1] if args.model == DEFAULT_MODEL else args.model
        return ring.run(_catalogued(name), device)
    if args.name == "experts":
        name = EXPERTS_MODEL if args.model == DEFAULT_MODEL else args.model
        hardware = _ceilings(device)
        if hardware is None:
            raise QuireError(f"bench experts needs the ceilings of {device}, which quire lacks")
        return experts.run(_catalogued(name), name.rpartition("/")[2].lower(), device, hardware)
    if args.name == "expert-ranks":
        name = EXPERTS_MODEL if args.model == DEFAULT_MODEL else args.model
        case = name.rpartition("/")[2].lower()
        return expert_ranks.run(_catalogued(name), case, device, args.layouts, args.router_spread)
    if args.name in ("speculation-steps", "speculation-auto"):
        return _measure_speculation(args, device)
    if args.name == "speculation-acceptance":
        return speculation_acceptance.run(args.model, device)
    catalogued = catalog_config(args.model)
    if args.name in ("spike", "overlap", "load"):
        return _measure_batching(args.name, catalogued or args.model, device)
    if args.name == "power":
        return power.run(catalogued or args.model, device)
    config = catalogued or ModelConfig.from_folder(resolve_checkpoint(args.model))
    if args.name == "linear":
        layers = 4 if device.type == "cuda" else config.num_layers
        return linear.run(config, device, default_dtype(device), layers)
    model: str | ModelConfig = args.model if catalogued is None else catalogued
    on_gpu = device.type == "cuda"
    largest = args.max_batch if on_gpu else min(args.max_batch, 32)
    return steps.run(
        model,
        config,
        device,
        _ceilings(device),
        tuple(batch for batch in steps.BATCHES if batch <= largest),
        steps.PROMPTS if on_gpu else steps.PROMPTS[:3],
    )


def _measure_speculation(args: argparse.Namespace, device: torch.device) -> list[Row]:
    name = engine.MODELS[1] if args.model == DEFAULT_MODEL else args.model
    model, draft = _catalogued(name), _catalogued(engine.MODELS[0])
    batches = tuple(b for b in speculation_steps.BATCHES if b <= args.max_batch)
    if args.name == "speculation-auto":
        batches = tuple(b for b in speculation_auto.BATCHES if b <= args.max_batch)
        return speculation_auto.run(model, draft, device, batches)
    # A model as small as the draft model gains nothing from it; its steps are measured alone.
    drafting = None if name == engine.MODELS[0] else draft
    return speculation_steps.run(model, drafting, device, batches=batches)


def _catalogued(name: str) -> ModelConfig:
    """Return the configuration of a model of the catalog.

    Raises:
        QuireError: it has none of that name.
    """
    config = catalog_config(name)
    if config is None:
        raise QuireError(f"model {name!r} is not in the catalog: {', '.join(catalog_json())}")
    return config


def _measure_batching(name: str, model: str | ModelConfig, device: torch.device) -> list[Row]:
    """Run a benchmark of the chapter "Batching" at sizes that suit the device."""
    on_gpu = device.type == "cuda"
    if name == "spike" and on_gpu:
        return spike.run(model, device, 32, 8192, (16384, 4096, 2048, 1024, 512, 256))
    if name == "spike":
        return spike.run(model, device, 4, 1024, (2048, 512, 128, 32, 16, 8))
    if name == "overlap":
        return overlap.run(model, device, (1, 16, 64, 256) if on_gpu else (1, 8))
    if on_gpu:
        return load.run(model, device, (4, 8, 16, 24, 32, 40), seconds=8)
    short = [(prompt // 8, output // 8) for prompt, output in load.LENGTHS]
    return load.run(model, device, (5, 20, 40), seconds=3, max_num_seqs=16, lengths=short)


def _ceilings(device: torch.device) -> Hardware | None:
    """Return the GPU with the ceilings that we measured, where we did; None if it is unknown."""
    if device.type == "cpu":
        return None
    try:
        return find_hardware(device_label(device)).measured()
    except ValueError:
        return None


def device_label(device: torch.device) -> str:
    """Return a short name for a device: "cpu", "h200", "t4"."""
    if device.type == "cpu":
        return "cpu"
    words = torch.cuda.get_device_name(device).lower().replace("-", " ").split()
    return next((word for word in words if word not in ("nvidia", "tesla")), "gpu")


def print_rows(rows: list[Row]) -> None:
    """Print one line a row, aligned."""
    width = max(len(row.case) for row in rows)
    for row in rows:
        beside = "  ".join(f"{name} {value:.4g}" for name, value in row.baselines.items())
        print(f"{row.case:<{width}}  {row.metric} {row.value:.4g} {row.unit}  {beside}".rstrip())
