"""The Qwen3-MoE decoder as a training program: every expert computes, a mask keeps the chosen.

A layer's feed-forward network is `num_experts` small gated MLPs and a router. Serving runs only the
`num_experts_per_tok` experts that the router chose; here all of them run as two matrix products
over one wide network, and an expert that was not chosen is multiplied by 0. That costs 8 times the
arithmetic of 2 experts of 16, but every shape is fixed, so the step compiles into few kernels, and
at this size the arithmetic is small. Value and gradient are those of the sparse layer: the router
learns from the weights of the chosen experts only.

Module names are those of `Qwen3MoeForCausalLM`, except that the experts of a layer are one 3-D
tensor a projection; `checkpoint` writes them as published checkpoints do, one matrix an expert.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from decoder import Attention, Decoder, RMSNorm, Shape
from torch import Tensor, nn


@dataclass(frozen=True)
class MoEShape(Shape):
    """Sizes of a Qwen3-MoE decoder in which every layer has experts.

    Attributes:
        intermediate_size: width of a dense layer, of which there are none; as in the published
            models it is the experts' width times the experts a token takes.
        moe_intermediate_size: width of one expert.
        router_aux_loss_coef: weight of the balance loss (`balance.py`) in training.
    """

    num_experts: int = 16
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 64
    router_aux_loss_coef: float = 0.0

    def config(self) -> dict[str, object]:
        """Returns the `config.json` that transformers reads.

        `norm_topk_prob` is written out because its default there is False.
        """
        return {
            **super().config(),
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "output_router_logits": False,
        }


QUIRE_MINI_MOE = MoEShape(4, 128, 128, 2, 1)


class Routing(NamedTuple):
    """What one layer's router said of each token."""

    probabilities: Tensor  # [batch, length, experts], float32: softmax over all experts
    chosen: Tensor  # [batch, length, experts], bool: True at the experts that the token takes


def choose(probabilities: Tensor, count: int) -> Tensor:
    """Marks the `count` largest entries of the last dimension, exactly `count` also at ties.

    Takes the largest `count` times instead of calling `topk`: over 16 experts that is one fused
    kernel when compiled.
    """
    experts = torch.arange(probabilities.shape[-1], device=probabilities.device)
    left = probabilities.detach()
    chosen = torch.zeros_like(left, dtype=torch.bool)
    for _ in range(count):
        best = left.argmax(-1, keepdim=True) == experts
        chosen = chosen | best
        left = left.masked_fill(best, -1.0)
    return chosen


class Experts(nn.Module):
    """The gated MLPs of one layer; gate_proj, up_proj: [experts, inner, width], down_proj its
    transpose."""

    def __init__(self, shape: MoEShape) -> None:
        super().__init__()
        count, width, inner = shape.num_experts, shape.hidden_size, shape.moe_intermediate_size
        self.gate_proj = nn.Parameter(torch.zeros(count, inner, width))
        self.up_proj = nn.Parameter(torch.zeros(count, inner, width))
        self.down_proj = nn.Parameter(torch.zeros(count, width, inner))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x: [batch, length, width], weights: [batch, length, experts], 0 where not chosen."""
        count, width, inner = self.down_proj.shape
        joined = torch.cat((self.gate_proj.flatten(0, 1), self.up_proj.flatten(0, 1)))
        gate, up = F.linear(x, joined).chunk(2, dim=-1)
        hidden = (F.silu(gate) * up).unflatten(-1, (count, inner))
        weighted = (hidden * weights[..., None].to(hidden.dtype)).flatten(-2)
        return F.linear(weighted, self.down_proj.transpose(0, 1).reshape(width, count * inner))


class MoE(nn.Module):
    def __init__(self, shape: MoEShape) -> None:
        super().__init__()
        self.count = shape.num_experts_per_tok
        self.gate = nn.Linear(shape.hidden_size, shape.num_experts, bias=False)
        self.experts = Experts(shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        # The router's product stays in float32: bfloat16 keeps 8 bits, and two experts whose
        # logits agree in 8 bits would be chosen by their index.
        with torch.autocast(x.device.type, enabled=False):
            probabilities = F.linear(x.float(), self.gate.weight.float()).softmax(-1)
        chosen = choose(probabilities, self.count)
        weights = probabilities * chosen
        weights = weights / weights.sum(-1, keepdim=True)
        mixed: Tensor = self.experts(x, weights)
        return mixed, Routing(probabilities, chosen)


class MoELayer(nn.Module):
    def __init__(self, shape: MoEShape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MoE(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def routed(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None, start: int
    ) -> tuple[Tensor, Routing]:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, past, start)
        mixed, routing = self.mlp(self.post_attention_layernorm(x))
        return x + mixed, routing

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None, start: int
    ) -> Tensor:
        return self.routed(x, cos, sin, past, start)[0]


class MoEDecoder(Decoder):
    """Token ids [batch, length] → logits [batch, length, vocab_size]."""

    shape: MoEShape

    def __init__(self, shape: MoEShape) -> None:
        super().__init__(shape, lambda: MoELayer(shape))

    def routed(self, ids: Tensor) -> tuple[Tensor, list[Routing]]:
        """Returns the logits and each layer's routing, in the order of the layers."""
        cos = self.get_buffer("cos")[: ids.shape[1]]
        sin = self.get_buffer("sin")[: ids.shape[1]]
        x = self.embed(ids)
        routings: list[Routing] = []
        for layer in self.model.layers:
            assert isinstance(layer, MoELayer)
            x, routing = layer.routed(x, cos, sin, None, 0)
            routings.append(routing)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight), routings

    def checkpoint(self) -> dict[str, Tensor]:
        """Splits `…experts.gate_proj` into `…experts.{e}.gate_proj.weight`, and so on."""
        tensors: dict[str, Tensor] = {}
        for name, tensor in self.state_dict().items():
            stem, projection = name.rsplit(".", 1)
            if stem.endswith(".experts"):
                for expert, matrix in enumerate(tensor):
                    tensors[f"{stem}.{expert}.{projection}.weight"] = matrix
            else:
                tensors[name] = tensor
        return tensors

    def load_checkpoint(self, tensors: dict[str, Tensor]) -> None:
        """Joins the experts' matrices again; a missing or unknown name is an error."""
        whole: dict[str, Tensor] = {}
        parts: dict[str, dict[int, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            stem, experts, rest = name.partition(".experts.")
            if not experts:
                whole[name] = tensor
                continue
            expert, projection, _ = rest.split(".")
            parts[f"{stem}.experts.{projection}"][int(expert)] = tensor
        for name, matrices in parts.items():
            whole[name] = torch.stack([matrices[expert] for expert in sorted(matrices)])
        self.load_state_dict(whole)
