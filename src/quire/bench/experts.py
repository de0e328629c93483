"""`quire bench experts`: a mixture of experts on one GPU, a layer alone and whole runs.

`layer-<tokens>` is the experts' part of a layer: what is chosen for each token is drawn evenly, and
differs from call to call. Beside it stand the same in torch's grouped products ("torch_grouped")
and the time that reading the touched experts takes at the rate of a copy ("read"), which a kernel
that only reads can pass; of few tokens also the two ways that quire has ("pairs", "groups"),
whichever it takes. `choice-<tokens>` is the router's choice among given logits and the products,
which the programs of the pairs do both; beside it the choice in a kernel of its own ("apart").
`<model>-step-<batch>` is a decode step of so many requests, between two steps' tokens; the experts
that the model's own, random router sends them to were counted by an engine of their own. The runs
are those of `quire bench engine`.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.analysis import Hardware
from quire.bench.engine import OPTIONS, mix256, seconds_of, uniform_load
from quire.bench.measurement import Row
from quire.bench.timing import graph_seconds
from quire.config import EngineOptions
from quire.errors import QuireError
from quire.kernels.expert_groups import grouped_experts
from quire.kernels.expert_pairs import paired_experts, routed_pairs
from quire.kernels.expert_tiles import pair_tiles, prefers_pairs
from quire.kernels.experts import apply_experts
from quire.kernels.router import choose_experts
from quire.llm import LLM
from quire.messages import SchedulerOutput
from quire.models.config import ModelConfig
from quire.models.moe_config import MoEConfig
from quire.trace import Trace

TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256, 1024, 4096, 16384)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXT, NUM_STEPS = 256, 32  # of a step: prompt tokens, and steps timed
BOTH_WAYS = 16  # tokens up to which pairs and groups are both timed
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
        logits = torch.rand(CHOICES, tokens, moe.num_experts, device=device)
        ids = logits.topk(moe.experts_per_token).indices.int()
        weights = torch.softmax(torch.randn(ids.shape, device=device), dim=-1)
        touched = statistics.mean(len(choice.unique()) for choice in ids)
        layer = _Layer(moe, x, ids, weights, logits.to(x.dtype), slots, gate_up, down)
        read = touched * an_expert / hardware.bandwidth_bytes_per_s * 1e6
        beside = {"torch_grouped": _us(layer.torch_grouped), "read": read}
        if tokens <= BOTH_WAYS:
            beside |= {"pairs": _us(layer.pairs), "groups": _us(layer.groups)}
        parameters: dict[str, float] = {"tokens": tokens, "experts_touched": touched}
        rows.append(Row(f"layer-{tokens}", "us", _us(layer.ours), "us", beside, parameters))
        if prefers_pairs(tokens, moe.experts_per_token, moe.num_experts):
            beside = {"apart": _us(layer.choice_apart)}
            value = _us(layer.choice_in_pairs)
            rows.append(Row(f"choice-{tokens}", "us_with_choice", value, "us", beside, parameters))
    return rows


@dataclass(frozen=True)
class _Layer:
    """The experts of a layer in ways that compete; each is called with the number of a choice.

    x is [T, H]; ids, int32, and weights are [CHOICES, T, k], logits [CHOICES, T, E]; the rest is
    as `apply_experts` has it.
    """

    moe: MoEConfig
    x: Tensor
    ids: Tensor
    weights: Tensor
    logits: Tensor
    slots: Tensor
    gate_up: Tensor
    down: Tensor

    def ours(self, i: int) -> Tensor:
        """As an engine does it."""
        return apply_experts(self.x, self.ids[i], self.weights[i], *self._held)

    def torch_grouped(self, i: int) -> Tensor:
        """By torch's grouped products."""
        return torch_grouped(self.x, self.ids[i], self.weights[i], self.gate_up, self.down)

    def pairs(self, i: int) -> Tensor:
        """Each pair by itself."""
        tiles = pair_tiles(self.moe.experts_per_token, self.down)
        return paired_experts(self.x, self.ids[i], self.weights[i], *self._held, *tiles)

    def groups(self, i: int) -> Tensor:
        """The pairs of an expert together."""
        return grouped_experts(self.x, self.ids[i], self.weights[i], *self._held)

    def choice_apart(self, i: int) -> Tensor:
        """The choice, then each pair by itself."""
        top_k, renormalize = self.moe.experts_per_token, self.moe.renormalize
        ids, weights = choose_experts(self.logits[i], top_k, renormalize)
        return paired_experts(self.x, ids, weights, *self._held, *pair_tiles(top_k, self.down))

    def choice_in_pairs(self, i: int) -> Tensor:
        """The choice by the programs of the pairs."""
        top_k, renormalize = self.moe.experts_per_token, self.moe.renormalize
        tiles = pair_tiles(top_k, self.down)
        return routed_pairs(self.x, self.logits[i], top_k, renormalize, *self._held, *tiles)

    @property
    def _held(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.slots, self.gate_up, self.down


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
    options: EngineOptions = {**OPTIONS, "device": device}
    touched = experts_touched(model, BATCHES, **options)
    gc.collect()
    torch.cuda.empty_cache()
    trace = Trace()
    llm = LLM(model, **options, trace=trace)
    rows = []
    for batch in BATCHES:
        load = uniform_load(batch, CONTEXT, NUM_STEPS + 1)
        llm.generate(*load, use_tqdm=False)
        trace.steps.clear()
        llm.generate(*load, use_tqdm=False)
        own = [s for s in trace.steps if _is_decode(s.scheduled, batch)]
        ms = statistics.median((b.end - a.end) * 1e3 for a, b in pairwise(own))
        parameters: dict[str, float] = {
            "batch": batch,
            "prompt_tokens": CONTEXT,
            "experts_touched": touched[batch],
        }
        rows.append(Row(f"{name}-step-{batch}", "ms_per_step", ms, "ms", {}, parameters))
    llm.engine.trace = None  # which Python's garbage collector would walk through in long runs
    seconds = seconds_of(llm, uniform_load(1, 128, 256), 3)
    rows.append(Row(f"{name}-batch1", "ms_per_token", seconds / 256 * 1e3, "ms"))
    for label, load in {"mix256": mix256(), "64x512x256": uniform_load(64, 512, 256)}.items():
        seconds = seconds_of(llm, load, 1)
        rate = sum(params.output_limit for params in load[1]) / seconds
        rows.append(Row(f"{name}-{label}", "tokens_per_second", rate, "tokens/s"))
    return rows


def experts_touched(
    model: ModelConfig, batches: Sequence[int], **options: Unpack[EngineOptions]
) -> dict[int, float]:
    """Return the experts that a decode step reads, by batch: the mean of its steps and layers.

    The requests are those of the timed steps; the engine runs a step at a time and counts.
    """
    trace = Trace()
    counting: EngineOptions = {**options, "record_expert_loads": True, "overlap": False}
    llm = LLM(model, **counting, trace=trace)
    found = {}
    for batch in batches:
        prompts, params = uniform_load(batch, CONTEXT, NUM_STEPS + 1)
        for number, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
            llm.engine.add_request(f"{batch}-{number}", prompt, own)
        counts: list[int] = []
        before = llm.expert_loads()
        while llm.engine.has_requests:
            llm.engine.step()
            now = llm.expert_loads()
            if _is_decode(trace.steps[-1].scheduled, batch):
                each = (now - before).tokens.values()
                counts += [sum(tokens > 0 for tokens in layer) for layer in each]
            before = now
        found[batch] = statistics.mean(counts)
    return found


def _is_decode(step: SchedulerOutput, batch: int) -> bool:
    """Whether a step has one token of each of so many requests."""
    return step.num_tokens == len(step.entries) == batch
