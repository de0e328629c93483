"""Trains quire-mini and its draft on one GPU.

    python models/train.py --recipe baseline --tokens 131072000 --out runs/baseline
    python models/train.py --recipe shipped --tokens 131072000 --out runs/shipped
    python models/train.py --model quire-mini-draft --teacher runs/shipped --out runs/draft ...

`--tokens` is the budget; the number of steps is the budget over the recipe's batch. With
`--teacher` the model learns from another checkpoint's distribution (`distill.py`) in place of
the next token alone. The corpus comes from `models/corpus/` (`corpus.py` makes it). Each run
writes a transformers checkpoint (bfloat16) and `training.json`, its log, to `--out`.

The same command gives the same batches in the same order; the weights agree to the rounding of
the GPU's kernels, which is not fixed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import lzma
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoder import SHAPES, Decoder
from optim import build
from pace import Pace
from recipes import RECIPES, Recipe
from safetensors.torch import load_file, save_file
from scoring import bits_per_byte, nats
from torch import Tensor, nn

MODELS = Path(__file__).resolve().parent
CORPUS = MODELS / "corpus"
CONTEXT = 2048
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def load_tokens(split: str, device: torch.device, corpus: Path = CORPUS) -> Tensor:
    """Returns the ids of one split as int32, on the device."""
    path = corpus / f"{split}.bin.xz"
    ids = np.frombuffer(lzma.decompress(path.read_bytes()), dtype="<u2")
    return torch.from_numpy(ids.astype(np.int32)).to(device)


def documents(split: str, corpus: Path = CORPUS) -> list[list[int]]:
    """Returns the ids of each text of one split; each begins with the separator, id 0."""
    ids = load_tokens(split, torch.device("cpu"), corpus).numpy()
    return [text.tolist() for text in np.split(ids, np.flatnonzero(ids == 0)[1:])]


def batches(tokens: Tensor, rows: int, length: int, seed: int) -> Iterator[Tensor]:
    """Yields [rows, length + 1] ids: each epoch cuts the corpus at a new offset and shuffles."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.arange(length + 1, device=tokens.device)
    while True:
        offset = int(torch.randint(length, (1,), generator=generator))
        count = (len(tokens) - offset - 1) // length
        order = torch.randperm(count, generator=generator).to(tokens.device)
        for at in range(0, count - rows + 1, rows):
            starts = order[at : at + rows] * length + offset
            yield tokens[starts[:, None] + steps].long()


def schedule(recipe: Recipe, step: float, steps: int) -> float:
    """Returns the factor on the peak learning rate at `step` of `steps`."""
    warmup = max(1.0, recipe.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - step) / max(1.0, recipe.decay * steps)
    if left >= 1:
        return 1.0
    height = 0.5 - 0.5 * math.cos(math.pi * left) if recipe.cosine else left
    return recipe.floor + (1 - recipe.floor) * height


def initialize(model: Decoder, recipe: Recipe) -> None:
    generator = torch.Generator().manual_seed(recipe.seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        noise = torch.randn(parameter.shape, generator=generator) * recipe.init_std
        if recipe.zero_output and ("o_proj" in name or "down_proj" in name):
            noise.zero_()
        parameter.data.copy_(noise)


def next_token_loss(model: Decoder, z_loss: float) -> Loss:
    """Returns batch → (training loss, next-token loss in nats)."""

    def loss(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(inputs).float()
        log_z = torch.logsumexp(logits, dim=-1)
        picked = logits.gather(-1, targets[..., None]).squeeze(-1)
        ce = (log_z - picked).mean()
        return ce + z_loss * log_z.square().mean(), ce.detach()

    return loss


def train(
    model: nn.Module,
    loss: Loss,
    data: Iterator[Tensor],
    recipe: Recipe,
    pace: Pace,
    *,
    compiles: bool = True,
) -> list[dict[str, float]]:
    """Runs the recipe; returns a log of step, loss and seconds.

    compiles: compile `loss` on a GPU, unless it does so itself.
    """
    device = next(model.parameters()).device
    optimizers = build(
        model,
        matrix_lr=recipe.matrix_lr,
        lr=recipe.lr,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        matrix_weight_decay=recipe.matrix_weight_decay,
    )
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    if compiles and device.type == "cuda":
        loss = torch.compile(loss, dynamic=False)
    log: list[dict[str, float]] = []
    recent: list[Tensor] = []
    began = time.perf_counter()
    while not pace.ended:
        factor = schedule(recipe, pace.at, pace.steps)
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * factor
        batch = next(data)
        with torch.autocast(device.type, torch.bfloat16):
            total, ce = loss(batch[:, :-1], batch[:, 1:])
        total.backward()
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent.append(ce)
        pace.advance()
        step = pace.done
        if step % 100 == 0 or step in (1, 10) or pace.ended:
            value = float(torch.stack(recent).mean())
            if not math.isfinite(value):
                raise FloatingPointError(f"loss {value} at step {step}: lower the learning rate")
            log.append({"step": step, "loss": value, "seconds": time.perf_counter() - began})
            recent = []
            print(f"{step:6d} {value:.4f} {log[-1]['seconds']:7.1f} s", flush=True)
    return log


def measure(model: Decoder, corpus: Path = CORPUS) -> dict[str, float]:
    """Bits per byte on the validation and the held-out files; bfloat16 products on a GPU.

    Raises:
        ValueError: a split is not the one of `corpus.json`, whose bytes the figure is divided by.
    """
    device = model.model.norm.weight.device
    record = json.loads((MODELS / "corpus.json").read_text())

    def logits(ids: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            output: Tensor = model(ids.to(device))
            return output

    result: dict[str, float] = {}
    for split in ("validation", "heldout"):
        texts = documents(split, corpus)
        found, recorded = sum(map(len, texts)), record["tokens"][split]
        if found != recorded:
            raise ValueError(
                f"{split} in {corpus} has {found:,} tokens, corpus.json records {recorded:,}: "
                "make the corpus again with corpus.py"
            )
        total = sum(nats(logits, texts, batch=16))
        size = record["splits"][split]["bytes"]
        result[f"{split}_bits_per_byte"] = bits_per_byte(total, size)
    return result


def export(model: Decoder, folder: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors (bfloat16)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.checkpoint().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.shape.config(), indent=2) + "\n")
    generation = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def load_decoder(name: str, folder: Path, device: torch.device) -> Decoder:
    model = Decoder(SHAPES[name])
    model.load_checkpoint(load_file(folder / "model.safetensors"))
    return model.to(device).eval()


def overrides(pairs: list[str]) -> dict[str, Any]:
    """Reads `--set key=value` pairs; values are Python literals written as JSON."""
    return {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="quire-mini")
    parser.add_argument("--recipe", choices=RECIPES, default="shipped")
    parser.add_argument("--tokens", type=int, required=True, help="training budget")
    parser.add_argument("--teacher", type=Path, help="checkpoint of quire-mini to distil from")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", dest="changes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("high")
    recipe = dataclasses.replace(RECIPES[options.recipe], **overrides(options.changes))
    torch.manual_seed(recipe.seed)
    model = Decoder(SHAPES[options.model])
    initialize(model, recipe)
    model.to(device)
    began = time.perf_counter()
    tokens = load_tokens("train", device)
    steps = options.tokens // recipe.batch_tokens
    rows = recipe.batch_tokens // options.context
    data = batches(tokens, rows, options.context, recipe.seed)
    if options.teacher is None:
        loss = next_token_loss(model, recipe.z_loss)
    else:
        from distill import distillation_loss, mixed_batches

        teacher = load_decoder("quire-mini", options.teacher, device)
        loss = distillation_loss(model, teacher)
        data = mixed_batches(teacher, tokens, data, options.context, recipe.seed)
    print(f"# {options.model} {recipe} steps={steps} corpus={len(tokens)} tokens", flush=True)
    log = train(model, loss, data, recipe, Pace(steps, seconds=None))
    # What is measured is what is shipped: the weights after rounding to bfloat16.
    export(model, options.out)
    result = measure(load_decoder(options.model, options.out, device))
    record = {
        "model": options.model,
        "recipe": options.recipe,
        "settings": dataclasses.asdict(recipe),
        "distilled": options.teacher is not None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "tokens": steps * recipe.batch_tokens,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - began, 1),
        **result,
        "log": log,
    }
    (options.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({k: v for k, v in record.items() if k not in ("log", "settings")}))


if __name__ == "__main__":
    main()
