"""Trains heads that draft for quire-mini from its hidden states, on one GPU.

    python models/corpus.py                       # corpus and tokenizer
    python models/train_head.py --pack runs/head-tokens.npy          # a part of it, once
    python models/train_head.py --tokens runs/head-tokens.npy --out runs/heads

A head (`head.py`) learns the target's distribution, as the draft does (`distill.py`), and the
target's hidden state, as EAGLE does. It learns them for the first `UNROLL` places of a round: at
the first it reads the target's states, and behind that its own outputs, as EAGLE-3's does. What it
will continue is the target's own text, so three quarters of the rows are that: prompts of the
corpus continued by the target, half greedily, half at temperature 1.

Every head of `HEADS` that `--heads` names is trained on the same rows in the same order. `--out`
gets `heads.safetensors`, the weights in bfloat16 as `<head>.<parameter>`, and `heads.json`: the
settings, the losses, and how often a draft of each place would be kept on text of the target's
that no head was trained on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from decoder import Decoder
from distill import HARD_WEIGHT, ROW, mixed_batches, written_by
from head import HEADS, Head, HeadShape, target_features, unroll
from pace import Pace
from recipes import RECIPES, Recipe
from safetensors.torch import save_file
from torch import Tensor
from train import MODELS, Loss, batches, documents, load_decoder, overrides, train

UNROLL = 4  # places of a round that a head learns, the first from the target's states
LATER = 0.8  # weight of a step's loss over that of the step before
STATE_WEIGHT = 0.5  # of the smooth L1 loss, beside the divergence in nats
WRITTEN_SHARE = 0.75  # of the rows of a batch: text that the target wrote
VALIDATION_ROWS = 256
PLACES = 8  # of a round, at which heads are measured
PACKED_TOKENS = 3_000_000


def pack(path: Path, num_tokens: int = PACKED_TOKENS, seed: int = 1) -> None:
    """Writes ids of training files, whole and in random order, as uint16 to a `.npy` file."""
    texts = documents("train")
    order = np.random.default_rng(seed).permutation(len(texts))
    taken: list[int] = []
    for index in order:
        taken += texts[index]
        if len(taken) >= num_tokens:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(taken[:num_tokens], dtype=np.uint16))


def new_head(shape: HeadShape, target: Decoder, recipe: Recipe) -> Head:
    """Returns a head that adds nothing to its state yet, with the target's final norm."""
    head = Head(shape)
    generator = torch.Generator().manual_seed(recipe.seed)
    for name, parameter in head.named_parameters():
        if name in ("o_proj.weight", "down_proj.weight"):
            parameter.data.zero_()
        elif parameter.ndim == 2:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(noise * recipe.init_std)
    head.norm.weight.data.copy_(target.model.norm.weight)
    return head.to(target.model.norm.weight.device)


@torch.compiler.disable  # the target's own layers would double what there is to compile
def taught(
    target: Decoder, shape: HeadShape, inputs: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the target's features and states, what a head is to say, and its entropy.

    What it is to say, [batch, length − steps, vocab_size], is p + HARD_WEIGHT · [likeliest token].
    """
    with torch.no_grad():
        features, states = target_features(target, shape, inputs)
        logits = F.linear(states[:, steps:], target.model.embed_tokens.weight).float()
        log_p = torch.log_softmax(logits, -1)
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1).mean()
        best = p.argmax(-1, keepdim=True)
        wanted = p.scatter_add_(-1, best, torch.full_like(p[..., :1], HARD_WEIGHT))
    return features, states, wanted, entropy


def output_loss(output: Tensor, states: Tensor, wanted: Tensor, matrix: Tensor) -> Tensor:
    """Returns the two losses of one step's outputs: of their tokens, in nats, and of their states.

    With p the target's distribution and b its likeliest token, the first is
    KL(p ‖ q) + HARD_WEIGHT · −log q(b) plus the entropy of p, which no weight changes:
    (1 + HARD_WEIGHT) · log Z − Σ (p + HARD_WEIGHT · [b]) · logits, one pass over the logits.
    The second is in units of the states' root mean square.

    Args:
        output, states: [batch, length, hidden_size].
        wanted: [batch, length, vocab_size], of `taught`.
        matrix: [vocab_size, hidden_size], the target's output matrix.
    """
    logits = F.linear(output, matrix).float()
    tokens = (1 + HARD_WEIGHT) * torch.logsumexp(logits, -1) - (wanted * logits).sum(-1)
    scale = states.float().square().mean().rsqrt()
    return torch.stack(
        (tokens.mean(), F.smooth_l1_loss(output.float() * scale, states.float() * scale))
    )


def head_loss(head: Head, target: Decoder, state_weight: float, steps: int) -> Loss:
    """Returns batch → (training loss, token loss of the first step less the entropy of p).

    Both are means over the steps, later ones weighted less; the batch's labels are not used.
    """
    matrix = target.model.embed_tokens.weight
    compiled = torch.compile(output_loss, dynamic=False) if matrix.is_cuda else output_loss
    weights = [LATER**turn for turn in range(steps)]

    def loss(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        del targets
        features, states, wanted, entropy = taught(target, head.shape, inputs, steps)
        cos, sin = (target.get_buffer(name)[: inputs.shape[1]] for name in ("cos", "sin"))
        outputs = unroll(head, features, target.embed(inputs), cos, sin, steps)
        losses = torch.stack(
            [compiled(output[:, steps:], states[:, steps:], wanted, matrix) for output in outputs]
        )
        mean = (losses.new_tensor(weights)[:, None] * losses).sum(0) / sum(weights)
        return mean[0] + state_weight * mean[1], losses[0, 0].detach() - entropy

    return loss


@torch.no_grad()
def kept(head: Head, target: Decoder, rows: Tensor, steps: int = PLACES) -> dict[str, Any]:
    """Returns how often a draft of each place 1 … `steps` would be kept, all before it kept.

    rows: [count, ROW] ids that the target wrote. Chains begin at every position, which rounds do
    not (they begin where drafts failed). `greedy` counts where the largest logits are of one
    token, `overlap` is Σ min(p, q) at temperature 1, each over all rows.
    """
    matrix = target.model.embed_tokens.weight
    with torch.autocast(rows.device.type, torch.bfloat16):
        features, states = target_features(target, head.shape, rows)
        cos, sin = (target.get_buffer(name)[: rows.shape[1]] for name in ("cos", "sin"))
        outputs = unroll(head, features, target.embed(rows), cos, sin, steps)
        wanted = F.linear(states[:, steps:], matrix).float()
        p, best = wanted.softmax(-1), wanted.argmax(-1)
        greedy, overlap = [], []
        for output in outputs:
            logits = F.linear(output[:, steps:], matrix).float()
            greedy.append(float((logits.argmax(-1) == best).float().mean()))
            overlap.append(float(torch.minimum(logits.softmax(-1), p).sum(-1).mean()))
    return {"greedy": greedy, "overlap": overlap}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pack", type=Path, help="write this .npy from models/corpus and end")
    parser.add_argument("--tokens", type=Path, help="the .npy that --pack wrote")
    parser.add_argument("--target", type=Path, default=MODELS / "quire-mini")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--state-weight", type=float, default=STATE_WEIGHT)
    parser.add_argument("--positions", type=int, default=65_536_000, help="budget of each head")
    parser.add_argument("--seconds", type=float, help="shorten each training to this time")
    parser.add_argument("--compile", action="store_true", help="the heads, too: for long runs")
    parser.add_argument("--written-rows", type=int, default=16_384, help="that the target writes")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", dest="changes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.pack is not None:
        pack(options.pack)
        return
    if options.tokens is None or options.out is None:
        parser.error("--tokens and --out are needed (or --pack)")
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("high")
    recipe = dataclasses.replace(RECIPES["shipped"], **overrides(options.changes))
    target = load_decoder("quire-mini", options.target, device).requires_grad_(False)
    tokens = torch.from_numpy(np.load(options.tokens).astype(np.int32)).to(device)
    trained = len(tokens) * 19 // 20  # behind it: prompts of the validation
    rows = recipe.batch_tokens // ROW
    steps = options.positions // recipe.batch_tokens
    torch.manual_seed(recipe.seed)  # the draws of the text at temperature 1
    began = time.perf_counter()
    fresh = written_by(target, tokens[trained:], VALIDATION_ROWS, recipe.seed + 100)
    data = mixed_batches(
        target,
        tokens[:trained],
        batches(tokens[:trained], rows, ROW, recipe.seed),
        ROW,
        recipe.seed,
        generated_rows=options.written_rows,
        share=WRITTEN_SHARE,
    )
    print(f"# text of {time.perf_counter() - began:.1f} s", flush=True)
    weights: dict[str, Tensor] = {}
    record: dict[str, Any] = {
        "settings": dataclasses.asdict(recipe)
        | {"unroll": UNROLL, "later": LATER, "state_weight": options.state_weight},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "corpus_tokens": len(tokens),
        "written_rows": options.written_rows,
        "heads": {},
    }
    for name, rows_of in zip(options.heads, tee(data, len(options.heads)), strict=True):
        head, began = new_head(HEADS[name], target, recipe), time.perf_counter()
        loss = head_loss(head, target, options.state_weight, UNROLL)
        print(f"# {name} {head.shape}", flush=True)
        pace = Pace(steps, options.seconds)
        log = train(head, loss, rows_of, recipe, pace, compiles=options.compile)
        head.to(torch.bfloat16).float()  # what is measured is what is saved
        weights |= {
            f"{name}.{key}": value.detach().to("cpu", torch.bfloat16).contiguous()
            for key, value in head.state_dict().items()
        }
        record["heads"][name] = {
            "shape": dataclasses.asdict(head.shape),
            "parameters": sum(p.numel() for p in head.parameters()),
            "positions": int(log[-1]["step"]) * recipe.batch_tokens,
            "seconds": round(time.perf_counter() - began, 1),
            "kept": kept(head, target, fresh),
            "log": log,
        }
        print(name, json.dumps(record["heads"][name]["kept"]), flush=True)
        # A run that is cut off leaves the heads that were ready.
        options.out.mkdir(parents=True, exist_ok=True)
        save_file(weights, options.out / "heads.safetensors", metadata={"format": "pt"})
        (options.out / "heads.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
