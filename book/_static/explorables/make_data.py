"""Make the data of the explorables from the engine and from `quire.analysis`.

    python book/_static/explorables/make_data.py

writes `data/decode-stepper.json` (a trace of a real run), `data/latency-calculator.json`
(models, devices and the opening question), `data/sampler-playground.json` (the logits
of real next tokens), and what the modules `record_*.py` beside this one record, each from
scratch and the same every time. Run it after a change of the shipped model, of the
scheduler, of `hardware.toml` or of a formula; `tests/site/` fails until then.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from quire import LLM, Components, SamplingParams, Trace
from quire.analysis import (
    Hardware,
    catalog_json,
    decode_work,
    find_hardware,
    kv_bytes_per_token,
    load_hardware,
    predict,
    prefill_work,
    recompute_work,
    weight_bytes,
)
from quire.analysis.quantization import (
    INTEGER_SHARE,
    MAGIC_OPERATIONS,
    MOST_ROWS,
    NAIVE_OPERATIONS,
    PRODUCTS_A_LAYER,
    linear_weights,
    product_dtype,
)
from quire.models.config import ModelConfig
from quire.models.loader import resolve_checkpoint
from quire.quantization.scheme import Scheme
from quire.resources import load_measurement
from quire.sampling.sampler import SamplerOutput, TorchSampler
from quire.sampling.tensors import SamplingTensors

sys.path.insert(0, str(Path(__file__).parent))
from data_files import FOLDER, Maker, write_data
from model_rows import model_rows
from record_batching import batching_timeline, load_explorer
from record_cache import block_table_player, prefix_cache_explorer
from record_experts import expert_balancer
from record_kernels import online_softmax, tiles_and_l2
from record_parallelism import layout_planner
from record_speculation import shared_race, speculation_payoff

MODEL = "quire-mini"

# A prompt ends on a visible character: the tokenizer joins line ends with what follows.
STEPPER_PROMPT = """class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def __eq__(self, other):"""
STEPPER_TOKENS = 40

LATENCY_SCENARIO = {
    "model": "meta-llama/Llama-3.1-8B",
    "hardware": "h200-sxm-measured",
    "batch": 1,
    "prompt_tokens": 512,
    "output_tokens": 256,
    "weight_dtype": "bf16",
    "kv_dtype": "bf16",
}
LARGER_BATCH = 64

# Name and text of each prompt; the first is asked about.
SAMPLER_PROMPTS = (
    ("the start of a sum", "def mean(values):\n    total ="),
    ("an import", "import numpy as"),
    ("a constructor", "    def __init__(self"),
    ("a loop", "for i in range"),
    ("an error", "    raise"),
)
SAMPLER_QUESTION = {"prompt": 0, "top_p": 0.9}
GRID_ROW = ("model.layers.3.mlp.down_proj", 0, 16)  # a tensor, its row, how many weights of it
GRID_PULL = {"weight": 5, "to": 0.25}  # four times the largest of them

CROSSOVER_MODEL = "Qwen/Qwen3-8B"
CROSSOVER_ROWS = "linear-h200"  # bf16 products of one layer of that model
CROSSOVER_FORMATS = {"bf16": None, "FP8": "fp8", "INT8": "int8", "INT4": "int4"}
LOGIT_SCALE = 1024  # logits are stored as multiples of 1/1024, in 16 bits: |logit| < 32


def decode_stepper(model: str) -> dict[str, Any]:
    """Replayable trace of one greedy run in float32, with the work of every step."""
    trace = Trace()
    llm = LLM(model, dtype="float32", device="cpu", trace=trace)
    params = SamplingParams(max_tokens=STEPPER_TOKENS, temperature=0, ignore_eos=True)
    (output,) = llm.generate([STEPPER_PROMPT], params)
    prompt_ids, chosen = output.prompt_token_ids, list(output.outputs[0].token_ids)
    config, dtype = llm.model_config, "fp32"
    steps = []
    for step, token in zip(trace.steps, token_texts(llm, prompt_ids, chosen), strict=True):
        (entry,) = step.scheduled.entries
        context = entry.start + entry.num_tokens
        prefill = entry.start == 0
        cached = (
            prefill_work(config, 1, context, dtype, dtype)
            if prefill
            else decode_work(config, 1, context, dtype, dtype)
        )
        recomputed = recompute_work(config, 1, context, dtype)
        steps.append(
            {
                "phase": "prefill" if prefill else "decode",
                "start": entry.start,
                "token": token,
                "with": work_of(entry.num_tokens, cached.flops, cached.bytes_moved),
                "without": work_of(context, recomputed.flops, recomputed.bytes_moved),
            }
        )
    return {
        "model": Path(model).name,
        "command": f'LLM("{Path(model).name}").generate(prompt, '
        f"SamplingParams(max_tokens={STEPPER_TOKENS}, temperature=0, ignore_eos=True))",
        "dtype": dtype,
        "prompt_tokens": token_texts(llm, [], prompt_ids),
        "kv_bytes_per_token": int(kv_bytes_per_token(config, dtype)),
        "weight_bytes": int(weight_bytes(config, dtype)),
        "steps": steps,
    }


def work_of(positions: int, flops: float, bytes_moved: float) -> dict[str, int]:
    """One side of a step."""
    return {"positions": positions, "flops": int(flops), "bytes": int(bytes_moved)}


def token_texts(llm: LLM, before: list[int], token_ids: list[int]) -> list[str]:
    """Text that each token adds; the pieces join to the decoded whole."""
    assert llm.tokenizer is not None
    prefixes = [llm.tokenizer.decode([*before, *token_ids[:i]]) for i in range(len(token_ids) + 1)]
    return [after[len(ahead) :] for ahead, after in itertools.pairwise(prefixes)]


def latency_calculator(model: str) -> dict[str, Any]:
    """Models, devices and the opening question with its explanation."""
    shipped = json.loads((resolve_checkpoint(model) / "config.json").read_text("utf-8"))
    devices: dict[str, Hardware] = {}
    for device in load_hardware().values():
        devices[device.key] = device
        devices[device.measured().key] = device.measured()
    return {
        "models": model_rows({**catalog_json(), Path(model).name: shipped}),
        "hardware": {key: hardware_row(device) for key, device in devices.items()},
        "scenario": LATENCY_SCENARIO,
        "question": latency_question(),
    }


def hardware_row(device: Hardware) -> dict[str, Any]:
    """What the calculator needs of a device."""
    return {
        "name": device.name,
        "memory_bytes": device.memory_bytes,
        "bandwidth_bytes_per_s": device.bandwidth_bytes_per_s,
        "peak_flops": device.peak_flops,
        "tdp_watts": device.tdp_watts,
        "usd_per_hour": device.usd_per_hour,
    }


def latency_question() -> dict[str, str]:
    """The gate's question; its explanation is computed, never typed."""
    config = ModelConfig.from_dict(catalog_json()[LATENCY_SCENARIO["model"]])
    device = find_hardware("h200").measured()

    def limits(batch: int) -> Any:
        return predict(
            config,
            device,
            batch=batch,
            prompt_tokens=LATENCY_SCENARIO["prompt_tokens"],
            output_tokens=LATENCY_SCENARIO["output_tokens"],
            weight_dtype=LATENCY_SCENARIO["weight_dtype"],
            kv_dtype=LATENCY_SCENARIO["kv_dtype"],
        )

    one, many = limits(1), limits(LARGER_BATCH)
    bandwidth = device.bandwidth_bytes_per_s / 1e12
    return {
        "text": "Llama-3.1-8B in bf16 decodes one request on an H200, whose memory delivers "
        f"{bandwidth:.2f} TB/s (measured). If reading memory were all that takes time, how many "
        "tokens a second would it produce?",
        "label": "Tokens a second",
        "explanation": f"Each token reads {one.decode.bytes_moved / 1e9:.1f} GB, so at this "
        f"bandwidth it takes {one.tpot_s * 1e3:.2f} ms, however fast the arithmetic. At batch "
        f"{LARGER_BATCH} the same read serves {LARGER_BATCH} tokens: try it below; the TPOT "
        f"grows to {many.tpot_s * 1e3:.2f} ms only.",
    }


class RecordingSampler(TorchSampler):
    """The engine's sampler, keeping the logits it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, int]] = []

    def __call__(
        self,
        logits: torch.Tensor,
        sampling: SamplingTensors,
        drafts: torch.Tensor | None = None,
    ) -> SamplerOutput:
        self.seen.append((logits[0].clone(), int(sampling.positions[0])))
        return super().__call__(logits, sampling, drafts)


def sampler_playground(model: str) -> dict[str, Any]:
    """Logits over the whole vocabulary at each prompt, in fixed point."""
    sampler = RecordingSampler()
    llm = LLM(model, dtype="float32", device="cpu", components=Components(sampler=lambda: sampler))
    assert llm.tokenizer is not None
    for _, text in SAMPLER_PROMPTS:
        llm.generate([text], SamplingParams(max_tokens=1))
    return {
        "scale": LOGIT_SCALE,
        "question": SAMPLER_QUESTION,
        "vocabulary": [
            llm.tokenizer.decode([token]) for token in range(llm.model_config.vocab_size)
        ],
        "prompts": [
            {"name": name, "text": text, "position": position, "logits": pack_logits(logits)}
            for (name, text), (logits, position) in zip(SAMPLER_PROMPTS, sampler.seen, strict=True)
        ],
    }


def pack_logits(logits: torch.Tensor) -> str:
    """Centre on the mean, which no probability sees, and pack as little-endian int16."""
    centred = (logits - logits.mean()).numpy()
    fixed = np.rint(centred * LOGIT_SCALE)
    if np.abs(fixed).max() > np.iinfo(np.int16).max:
        raise ValueError(f"a logit of {np.abs(centred).max():.1f} needs a smaller LOGIT_SCALE")
    return base64.b64encode(fixed.astype("<i2").tobytes()).decode("ascii")


def quantization_grid(model: str) -> dict[str, Any]:
    """The first weights of a row, as the checkpoint holds them, and the one to pull."""
    tensor, row, count = GRID_ROW
    with safe_open(resolve_checkpoint(model) / "model.safetensors", "pt") as stored:
        weights = stored.get_slice(f"{tensor}.weight")[row : row + 1, :count][0]
    return {
        "model": Path(model).name,
        "tensor": tensor,
        "row": row,
        "weights": weights.double().tolist(),
        "pull": GRID_PULL,
    }


def quantization_crossover(model: str) -> dict[str, Any]:
    """The layer, the device and the formats of the roofline, and measured products of bf16.

    A launch takes what the measured layer of one row takes beyond reading its weights at the
    measured bandwidth; so model and measurement are equal there. No model is run.
    """
    config = ModelConfig.from_dict(catalog_json()[CROSSOVER_MODEL])
    device = find_hardware("h200").measured()
    schemes = {
        label: Scheme.named(name) if name else None for label, name in CROSSOVER_FORMATS.items()
    }
    weights = linear_weights(config) // config.num_layers
    measured = [
        [int(row["parameters"]["tokens"]), round(row["parameters"]["microseconds_per_layer"], 1)]
        for row in load_measurement(CROSSOVER_ROWS)["rows"]
    ]
    reading = 2 * weights / device.bandwidth_bytes_per_s
    return {
        "model": CROSSOVER_MODEL,
        "device": {
            "name": device.name,
            "bandwidth": device.bandwidth_bytes_per_s,
            "rates": {name: device.peak_flops[name] for name in ("bf16", "fp8")},
            "integerRate": device.peak("fp32") * INTEGER_SHARE,
        },
        "layer": {"weights": weights, "products": PRODUCTS_A_LAYER},
        "launch_us": round((measured[0][1] - reading * 1e6) / PRODUCTS_A_LAYER, 2),
        "operations": {"magic": MAGIC_OPERATIONS, "naive": NAIVE_OPERATIONS},
        "most_rows": MOST_ROWS,
        "formats": [
            {
                "label": label,
                "product": product_dtype(scheme, device),
                "scheme": scheme_row(scheme),
            }
            for label, scheme in schemes.items()
        ],
        "measured": {"source": CROSSOVER_ROWS, "bf16": measured},
    }


def scheme_row(scheme: Scheme | None) -> dict[str, Any] | None:
    """A scheme with the names of quantization.js."""
    if scheme is None:
        return None
    return {
        "kind": scheme.kind,
        "bits": scheme.bits,
        "groupSize": scheme.group_size,
        "symmetric": scheme.symmetric,
        "inputs": scheme.inputs,
    }


MAKERS: dict[str, Maker] = {
    "decode-stepper": decode_stepper,
    "latency-calculator": latency_calculator,
    "sampler-playground": sampler_playground,
    "block-table-player": block_table_player,
    "prefix-cache-explorer": prefix_cache_explorer,
    "batching-timeline": batching_timeline,
    "load-explorer": load_explorer,
    "shared-race": shared_race,
    "speculation-payoff": speculation_payoff,
    "quantization-grid": quantization_grid,
    "quantization-crossover": quantization_crossover,
    "tiles-and-l2": tiles_and_l2,
    "online-softmax": online_softmax,
    "layout-planner": layout_planner,
    "expert-balancer": expert_balancer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default=MODEL, help="shipped name or folder (%(default)s)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to")
    args = parser.parse_args()
    write_data(MAKERS, args.model, args.out)


if __name__ == "__main__":
    main()
