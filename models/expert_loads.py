"""Counts the tokens that each expert receives and writes `measurements/expert-loads-cpu.json`.

    python models/expert_loads.py runs/moe

`runs/moe` is the folder that `sweep_moe.py` wrote: every `.tar` in it is a run, named by the
weight of its balance loss. The texts are those of `code_and_prose.py`. The gate (`moe_gate.py`)
counts with the training program, in bfloat16 on a GPU; here transformers' layers count, in float32
on the CPU. A token whose second and third expert are nearly equal may fall to either.

The rows: `aux-0.01-code-layer-0` with metric `max_over_mean` holds the sixteen counts as parameters
`expert_0` …, and `aux-0.01-layer-0` with metric `distance_code_prose` how far code and prose are
apart there. Layers and experts are numbered as in the names of the checkpoint.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from code_and_prose import texts
from evaluate import load_model
from evaluation_data import MODELS
from moe_gate import figures
from scoring import WINDOW
from tokenizer import load_tokenizer
from torch import Tensor

from quire.bench.measurement import Measurement, Row

ID = "expert-loads-cpu"
TITLE = "Tokens that each expert of quire-mini-moe receives, on code and on prose"
COMMAND = "python models/expert_loads.py runs/moe"


def load_run(archive: Path) -> Any:
    """Returns the model in a `.tar` of `sweep_moe.py`, as transformers' in float32."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
        return load_model(Path(folder) / archive.stem, "cpu")


def token_ids() -> dict[str, list[list[int]]]:
    """Returns the texts of each sort as token ids, the separator before each text."""
    tokenizer = load_tokenizer()
    return {
        sort: [[0, *encoding.ids] for encoding in tokenizer.encode_batch(group)]
        for sort, group in texts().items()
    }


@torch.inference_mode()
def count(model: Any, documents: Sequence[Sequence[int]]) -> Tensor:
    """Counts the tokens that each expert receives, [layers, experts] int64.

    A text longer than `WINDOW` tokens is cut into pieces that are read on their own, as
    `balance.tokens_per_expert` does.
    """
    config = model.config
    counts = torch.zeros(config.num_hidden_layers, config.num_experts, dtype=torch.int64)

    def hook(row: Tensor, _: Any, __: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, _, ids = output  # ids: [tokens, experts a token]
        row += torch.bincount(ids.flatten(), minlength=config.num_experts)

    handles = [
        layer.mlp.gate.register_forward_hook(partial(hook, row))
        for row, layer in zip(counts, model.model.layers, strict=True)
    ]
    for text in documents:
        for at in range(0, len(text), WINDOW):
            # Without the head, whose logits nobody reads.
            model.model(input_ids=torch.tensor([text[at : at + WINDOW]]), use_cache=False)
    for handle in handles:
        handle.remove()
    return counts


def rows(run: str, config: Any, found: dict[str, Any]) -> list[Row]:
    """Returns the rows of one run; `found` is what `moe_gate.figures` gives for its model."""
    out: list[Row] = []
    for layer in range(config.num_hidden_layers):
        about = {"balance_weight": config.router_aux_loss_coef, "layer": layer}
        for sort, loads in found["loads"].items():
            counts = loads[layer]
            parameters = {
                **about,
                "experts_per_token": config.num_experts_per_tok,
                "tokens": sum(counts) // config.num_experts_per_tok,
                "without_tokens": found["experts_without_tokens"][sort][layer],
                "distance_halves": found["distance_halves"][sort][layer],
                **{f"expert_{expert}": tokens for expert, tokens in enumerate(counts)},
            }
            ratio = found["max_over_mean"][sort][layer]
            case = f"{run}-{sort}-layer-{layer}"
            out.append(Row(case, "max_over_mean", ratio, "1", parameters=parameters))
        apart = found["distance_code_prose"][layer]
        out.append(Row(f"{run}-layer-{layer}", "distance_code_prose", apart, "1", parameters=about))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, help="what sweep_moe.py wrote")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    archives = sorted(options.runs.glob("aux-*.tar"), key=lambda path: float(path.stem[4:]))
    if not archives:
        raise SystemExit(f"no aux-*.tar in {options.runs}: sweep_moe.py --out writes them")
    torch.set_num_threads(options.threads)
    ids = token_ids()
    found: list[Row] = []
    for archive in archives:
        model = load_run(archive)
        record = figures(partial(count, model), code=ids["code"], prose=ids["prose"])
        found += rows(archive.stem, model.config, record)
        print(archive.stem, record["max_over_mean"], record["distance_code_prose"], flush=True)
    print(Measurement(ID, TITLE, COMMAND, found).save(MODELS.parent / "measurements"))


if __name__ == "__main__":
    main()
