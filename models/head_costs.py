"""What a draft costs: steps of the target, of the draft model and of heads, in microseconds.

All are traced and frozen by TorchScript, so that what is compared is arithmetic and memory and not
how much Python each has around it; they read a cache of `CONTEXT` tokens at batch 1, choose
the largest logit and run in turns. Of each the best turn counts: what else the machine does is
none of its cost.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
import torch.nn.functional as F
from decoder import Decoder
from head import Head
from torch import Tensor, nn

from quire.bench.measurement import Row

CONTEXT = 176  # tokens before a timed step
AGAIN = 3  # tokens of the last round that a head with attention computes anew: about a round's
PLACES = 8
TURNS = 60


class ModelStep(nn.Module):
    """The last of a decoder's tokens, from ids and its cache."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, *cache: Tensor) -> Tensor:
        """ids: [1, width]; cache: keys and values of each layer → the next tokens [1, width]."""
        pairs = list(zip(cache[::2], cache[1::2], strict=True))
        logits: Tensor = self.model(ids, pairs, CONTEXT)
        return logits.argmax(-1)


class HeadStep(nn.Module):
    """A head's draft, from its own last output or, of a round's first, the target's states."""

    def __init__(self, head: Head, target: Decoder, *, first: bool) -> None:
        super().__init__()
        self.head, self.first, self.embedding = head, first, target.model.embed_tokens
        self.width = AGAIN if first and head.shape.num_heads else 1
        end = CONTEXT + self.width
        self.register_buffer("cos", target.get_buffer("cos")[:end].clone())
        self.register_buffer("sin", target.get_buffer("sin")[:end].clone())

    def forward(self, states: Tensor, ids: Tensor, *cache: Tensor) -> tuple[Tensor, Tensor]:
        """states: [1, width, size]; ids: [1, width] → output [1, 1, hidden_size], token [1, 1]."""
        states = self.head.fuse(states) if self.first else states
        known = (cache[0], cache[1]) if cache else None
        cos, sin = self.get_buffer("cos"), self.get_buffer("sin")
        output = self.head(states, self.embedding(ids), cos, sin, known)[:, -1:]
        return output, F.linear(output, self.embedding.weight).argmax(-1)


def frozen(module: nn.Module, *inputs: Tensor) -> Callable[[], Any]:
    """Returns a call of the module's frozen trace on these inputs."""
    with warnings.catch_warnings():  # TorchScript is deprecated, and its traces are what is wanted
        warnings.simplefilter("ignore")
        trace = torch.jit.trace(module.eval(), inputs, check_trace=False)
        step = torch.jit.optimize_for_inference(torch.jit.freeze(trace))
    return lambda: step(*inputs)


def model_call(model: Decoder, width: int) -> Callable[[], Any]:
    cache = [torch.randn_like(x) for pair in model.new_cache(1, 256, torch.float32) for x in pair]
    return frozen(ModelStep(model), torch.arange(width)[None] + 100, *cache)


def head_call(head: Head, target: Decoder, *, first: bool) -> Callable[[], Any]:
    step = HeadStep(head, target, first=first)
    size = head.shape.feature_size if first else head.shape.hidden_size
    cache = [
        torch.randn(1, 256, head.shape.head_dim) for _ in range(2 * bool(head.shape.num_heads))
    ]
    states = torch.randn(1, step.width, size)
    return frozen(step, states, torch.arange(step.width)[None] + 100, *cache)


@dataclass(frozen=True)
class Costs:
    """Best times in microseconds: a step of one token, the verification of k drafts, k drafts."""

    target: float
    verify: dict[int, float]  # by k
    draft: dict[tuple[str, int], float]  # by who drafts and k
    parameters: dict[str, float]

    def round(self, who: str, k: int) -> float:
        """Returns the time of a round of k drafts, in steps of one token."""
        return (self.verify[k] + self.draft[who, k]) / self.target

    def rows(self) -> list[Row]:
        """Returns a row for each; the target's step of one token is the baseline."""
        times = {f"verify-k{k}": value for k, value in self.verify.items()}
        times |= {f"{who}-k{k}": value for (who, k), value in self.draft.items()}
        one = {"one_token": self.target}
        return [
            Row(f"cost-{name}", "microseconds", value, "us", one, dict(self.parameters))
            for name, value in times.items()
        ]


@torch.inference_mode()
def measure_costs(
    target: Decoder, draft: Decoder, heads: dict[str, Head], turns: int = TURNS
) -> Costs:
    """Times rounds: a verification, then k drafts, whose weights it has driven from the caches.

    The draft model computes two tokens for its first draft, as in quire; a head with attention
    as many as a round brings, since those before it were computed from its own outputs.
    """
    one, ks = model_call(target, 1), range(1, PLACES + 1)
    verify = {k: model_call(target, 1 + k) for k in ks}
    drafting = {"draft": (model_call(draft, 2), model_call(draft, 1))}
    drafting |= {
        name: (head_call(head, target, first=True), head_call(head, target, first=False))
        for name, head in heads.items()
    }
    alone, verified = math.inf, dict.fromkeys(ks, math.inf)
    drafted: dict[tuple[str, int], float] = {}
    for turn in range(-3, turns):  # TorchScript optimises in its first calls
        for k, (who, (first, step)) in product(ks, drafting.items()):
            times = [time.perf_counter()]
            for calls in ([one], [verify[k]], [first, *[step] * (k - 1)]):
                for call in calls:
                    call()
                times.append(time.perf_counter())
            if turn >= 0:
                took = [(b - a) * 1e6 for a, b in pairwise(times)]
                alone, verified[k] = min(alone, took[0]), min(verified[k], took[1])
                drafted[who, k] = min(drafted.get((who, k), math.inf), took[2])
    about = {"batch": 1, "context": CONTEXT, "turns": turns, "load": os.getloadavg()[0]}
    return Costs(alone, verified, drafted, about | {"threads": torch.get_num_threads()})
