"""Trains quire-mini-moe on one GPU, measures its router, and says whether it passes the gate.

    python models/train_moe.py --aux 0.001 --tokens 400000000 --out runs/moe-aux-0.001

Corpus, recipe and loop are quire-mini's (`train.py`); new are the decoder (`moe_decoder.py`) and
the balance loss (`balance.py`), whose weight is `--aux`. `sweep_moe.py` runs several weights side
by side. The corpus folder holds `corpus.py`'s three files and the two of `code_and_prose.py`; it
is read as it is, so this program needs no tokenizer and no transformers.

Each run writes a transformers checkpoint (bfloat16, with the tokenizer of quire-mini) and
`training.json`, its log, with the gate's figures, to `--out`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import time
from pathlib import Path

import torch
from balance import balance_loss
from moe_decoder import QUIRE_MINI_MOE, MoEDecoder
from moe_gate import gate
from pace import Pace
from recipes import RECIPES
from safetensors.torch import load_file
from torch import Tensor
from train import (
    CONTEXT,
    CORPUS,
    MODELS,
    Loss,
    batches,
    documents,
    export,
    initialize,
    load_tokens,
    measure,
    overrides,
    train,
)

NAME = "quire-mini-moe"


def balanced_loss(model: MoEDecoder, z_loss: float) -> Loss:
    """Returns batch → (training loss, next-token loss in nats).

    The training loss adds the z-loss of `train.next_token_loss` and the mean balance loss of the
    layers, weighted by the model's `router_aux_loss_coef`.
    """
    weight = model.shape.router_aux_loss_coef

    def loss(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        raw, routings = model.routed(inputs)
        logits = raw.float()
        log_z = torch.logsumexp(logits, dim=-1)
        ce = (log_z - logits.gather(-1, targets[..., None]).squeeze(-1)).mean()
        balance = torch.stack([balance_loss(routing) for routing in routings]).mean()
        return ce + z_loss * log_z.square().mean() + weight * balance, ce.detach()

    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--aux", type=float, required=True, help="weight of the balance loss")
    parser.add_argument("--tokens", type=int, required=True, help="training budget")
    parser.add_argument("--seconds", type=float, help="shorten the training to this time")
    parser.add_argument("--recipe", choices=RECIPES, default="shipped")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", dest="changes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("high")
    recipe = dataclasses.replace(RECIPES[options.recipe], **overrides(options.changes))
    torch.manual_seed(recipe.seed)
    model = MoEDecoder(dataclasses.replace(QUIRE_MINI_MOE, router_aux_loss_coef=options.aux))
    initialize(model, recipe)
    model.to(device)
    began = time.perf_counter()
    tokens = load_tokens("train", device, options.corpus)
    steps = options.tokens // recipe.batch_tokens
    data = batches(tokens, recipe.batch_tokens // options.context, options.context, recipe.seed)
    loss = balanced_loss(model, recipe.z_loss)
    print(f"# {NAME} {model.shape} {recipe} {steps=} corpus={len(tokens)} tokens", flush=True)
    log = train(model, loss, data, recipe, Pace(steps, options.seconds))
    export(model, options.out)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "quire-mini" / file, options.out / file)
    # What is measured is what is shipped: the weights after rounding to bfloat16.
    shipped = MoEDecoder(model.shape)
    shipped.load_checkpoint(load_file(options.out / "model.safetensors"))
    shipped.to(device).eval()
    result = measure(shipped, options.corpus)
    taken = int(log[-1]["step"])
    record = {
        "model": NAME,
        "recipe": options.recipe,
        "settings": dataclasses.asdict(recipe),
        "router_aux_loss_coef": options.aux,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": taken,
        "tokens": taken * recipe.batch_tokens,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        **result,
        "gate": gate(
            shipped,
            result["heldout_bits_per_byte"],
            code=documents("code", options.corpus),
            prose=documents("prose", options.corpus),
        ),
        "seconds": round(time.perf_counter() - began, 1),
        "log": log,
    }
    (options.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({k: v for k, v in record.items() if k not in ("log", "settings")}))


if __name__ == "__main__":
    main()
