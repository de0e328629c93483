"""`quire bench experts`: a mixture of experts on one GPU, a layer alone and whole runs.

`layer-<tokens>` is the experts' part of a layer: what is chosen for each token is drawn evenly, and
differs from call to call. Beside it stand the same in torch's grouped products ("torch_grouped")
and the time that reading the touched experts takes at the rate of a copy ("read"), which a kernel
that only reads can pass. `<model>-step-<batch>` is a decode
step of so many requests, between two steps' tokens. The runs are those of `quire bench engine`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.analysis import Hardware
from quire.bench.engine import mix256, seconds_of, uniform_load
from quire.bench.measurement import Row
from quire.bench.timing import graph_seconds
from quire.errors import QuireError
from quire.kernels.experts import apply_experts
from quire.llm import LLM
from quire.models.config import ModelConfig
from quire.models.moe_config import MoEConfig
from quire.trace import Trace

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 16384)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXT, NUM_STEPS = 256, 32  # of a step: prompt tokens, and steps timed
CHOICES = 8  # different choices of experts that a captured graph goes through

# torch 2.13 has a public name for it.
_grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm


def run(model: ModelConfig, name: str, device: torch.device, hardware: Hardware) -> list[Row]:
    """Measure a layer's experts, then steps and runs of the whole model.

    Raises:
        QuireError: the device is no GPU; the model has no experts.
    """
    if device.type != "cuda" or model.moe is None:
        raise QuireError(
            f"bench experts runs a model with experts on a GPU; {name} on {device} is not that"
        )
    rows = layers(model.moe, model.hidden_size, device, hardware)
    torch.cuda.empty_cache()
    return rows + _runs(model, name, device)


@torch.inference_mode()
def layers(moe: MoEConfig, hidden: int, device: torch.device, hardware: Hardware) -> list[Row]:
    """Time the experts of one layer over the number of tokens."""
    shape = (moe.num_experts, 2 * moe.intermediate_size, hidden)
    gate_up = torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.02
    down = torch.randn_like(gate_up[:, : moe.intermediate_size]).mT.contiguous() * 0.02
    slots = torch.arange(moe.num_experts, device=device, dtype=torch.int32)
    an_expert = (gate_up[0].numel() + down[0].numel()) * gate_up.element_size()
    rows = []
    for tokens in TOKENS:
        x = torch.randn(tokens, hidden, device=device, dtype=torch.bfloat16)
        scores = torch.rand(CHOICES, tokens, moe.num_experts, device=device)
        ids = scores.topk(moe.experts_per_token).indices.int()
        weights = torch.softmax(torch.randn(ids.shape, device=device), dim=-1)
        touched = statistics.mean(len(choice.unique()) for choice in ids)

        def ours(i: int, x: Tensor = x, ids: Tensor = ids, weights: Tensor = weights) -> None:
            apply_experts(x, ids[i], weights[i], slots, gate_up, down)

        def theirs(i: int, x: Tensor = x, ids: Tensor = ids, weights: Tensor = weights) -> None:
            torch_grouped(x, ids[i], weights[i], gate_up, down)

        read = touched * an_expert / hardware.bandwidth_bytes_per_s * 1e6
        beside = {"torch_grouped": _us(theirs), "read": read}
        parameters: dict[str, float] = {"tokens": tokens, "experts_touched": touched}
        rows.append(Row(f"layer-{tokens}", "us", _us(ours), "us", beside, parameters))
    return rows


def torch_grouped(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`apply_experts` by torch's grouped products, every expert in its own slot."""
    num_tokens, top_k = ids.shape
    expert, order = ids.flatten().sort(stable=True)
    ends = torch.searchsorted(expert, torch.arange(len(down), device=x.device), right=True)
    both = _grouped_mm(x[order // top_k], gate_up.mT, offs=ends.int())
    gate, up = both.chunk(2, dim=-1)
    out = _grouped_mm(F.silu(gate) * up, down.mT, offs=ends.int())
    parts = torch.empty_like(out).index_copy_(0, order, out).view(num_tokens, top_k, -1)
    return (parts * weights[:, :, None].to(x.dtype)).sum(dim=1)


def _us(work: Callable[[int], object]) -> float:
    """Return the median microseconds of work in a captured graph that takes every choice once."""

    def every_choice() -> None:
        for i in range(CHOICES):
            work(i)

    return graph_seconds(every_choice) / CHOICES * 1e6


def _runs(model: ModelConfig, name: str, device: torch.device) -> list[Row]:
    trace = Trace()
    llm = LLM(
        model,
        device=device,
        max_model_len=2048,
        max_num_seqs=256,
        max_num_batched_tokens=16384,
        enable_prefix_caching=False,
        trace=trace,
    )
    rows = []
    for batch in BATCHES:
        load = uniform_load(batch, CONTEXT, NUM_STEPS + 1)
        llm.generate(*load, use_tqdm=False)
        trace.steps.clear()
        llm.generate(*load, use_tqdm=False)
        steps = [s for s in trace.steps if s.scheduled.num_tokens == len(s.scheduled.entries)]
        own = [s for s in steps if len(s.scheduled.entries) == batch]
        ms = statistics.median((b.end - a.end) * 1e3 for a, b in pairwise(own))
        parameters: dict[str, float] = {"batch": batch, "prompt_tokens": CONTEXT}
        rows.append(Row(f"{name}-step-{batch}", "ms_per_step", ms, "ms", {}, parameters))
    seconds = seconds_of(llm, uniform_load(1, 128, 256), 3)
    rows.append(Row(f"{name}-batch1", "ms_per_token", seconds / 256 * 1e3, "ms"))
    for label, load in {"mix256": mix256(), "64x512x256": uniform_load(64, 512, 256)}.items():
        seconds = seconds_of(llm, load, 1)
        rate = sum(params.output_limit for params in load[1]) / seconds
        rows.append(Row(f"{name}-{label}", "tokens_per_second", rate, "tokens/s"))
    return rows
