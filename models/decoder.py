"""The Qwen3 decoder as a training program: the same function as transformers', fewer kernels.

Parameter names are those of `Qwen3ForCausalLM`, so a state dict is a checkpoint. Two things
differ from a model written for reading: query, key and value share one matrix product, as do
gate and up, by joining their weights at run time; and logits are returned in the autocast type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3 decoder with tied embeddings."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 64
    vocab_size: int = 4096
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    def config(self) -> dict[str, object]:
        """Returns the `config.json` that transformers reads."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **asdict(self),
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": self.num_hidden_layers,
            "initializer_range": 0.02,
            "use_cache": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
            "torch_dtype": "bfloat16",
        }


SHAPES = {
    "quire-mini": Shape(8, 256, 1024, 4, 2),
    "quire-mini-draft": Shape(2, 128, 448, 2, 1),
}


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies rotary embedding; x: [batch, length, heads, head_dim], cos, sin: [length, half]."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)


Cache = list[tuple[Tensor, Tensor]]


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, head = shape.hidden_size, shape.head_dim
        self.q_proj = nn.Linear(width, shape.num_attention_heads * head, bias=False)
        self.k_proj = nn.Linear(width, shape.num_key_value_heads * head, bias=False)
        self.v_proj = nn.Linear(width, shape.num_key_value_heads * head, bias=False)
        self.o_proj = nn.Linear(shape.num_attention_heads * head, width, bias=False)
        self.q_norm = RMSNorm(head, shape.rms_norm_eps)
        self.k_norm = RMSNorm(head, shape.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None, start: int
    ) -> Tensor:
        batch, length, _ = x.shape
        heads, kv, size = (
            self.shape.num_attention_heads,
            self.shape.num_key_value_heads,
            self.shape.head_dim,
        )
        joined = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        mixed = F.linear(x, joined).view(batch, length, heads + 2 * kv, size)
        q, k, v = mixed.split((heads, kv, kv), dim=2)
        q = rotate(self.q_norm(q), cos, sin).transpose(1, 2)
        k = rotate(self.k_norm(k), cos, sin).transpose(1, 2)
        v = v.transpose(1, 2)
        if past is not None:
            past[0][:, :, start : start + length] = k
            past[1][:, :, start : start + length] = v
            k, v = past[0][:, :, : start + length], past[1][:, :, : start + length]
        several = bool(length > 1)  # TorchScript's tracer makes tensors of sizes
        if several and start > 0:
            seen = torch.ones(length, start + length, dtype=torch.bool, device=x.device).tril(start)
            out = F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)
        else:  # a single query sees every key
            out = F.scaled_dot_product_attention(q, k, v, is_causal=several, enable_gqa=True)
        joined_heads = out.transpose(1, 2).reshape(batch, length, heads * size)
        return F.linear(joined_heads, self.o_proj.weight)


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat((self.gate_proj.weight, self.up_proj.weight))
        gate, up = F.linear(x, joined).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down_proj.weight)


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None, start: int
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, past, start)
        mixed: Tensor = self.mlp(self.post_attention_layernorm(x))
        return x + mixed


class Body(nn.Module):
    def __init__(self, shape: Shape, layers: list[nn.Module]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class Decoder(nn.Module):
    """Token ids [batch, length] → logits [batch, length, vocab_size].

    `new_layer` makes one layer, called as `Layer` is; `moe_decoder.py` gives another kind.
    """

    def __init__(self, shape: Shape, new_layer: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        self.shape = shape
        make = new_layer or (lambda: Layer(shape))
        self.model = Body(shape, [make() for _ in range(shape.num_hidden_layers)])
        half = shape.head_dim // 2
        steps = torch.arange(half, dtype=torch.float64) / half
        angles = torch.outer(
            torch.arange(shape.max_position_embeddings, dtype=torch.float64),
            shape.rope_theta**-steps,
        )
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, ids: Tensor, cache: Cache | None = None, start: int = 0) -> Tensor:
        """With `cache`, keys and values of positions start … start+length−1 are written to it."""
        cos = self.get_buffer("cos")[start : start + ids.shape[1]]
        sin = self.get_buffer("sin")[start : start + ids.shape[1]]
        x = self.embed(ids)
        for index, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, cache[index] if cache else None, start)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def embed(self, ids: Tensor) -> Tensor:
        """Returns [batch, length, hidden_size], in the autocast type where autocast is on."""
        x: Tensor = self.model.embed_tokens(ids)
        if torch.is_autocast_enabled(ids.device.type):
            x = x.to(torch.get_autocast_dtype(ids.device.type))
        return x

    def checkpoint(self) -> dict[str, Tensor]:
        """Returns the weights under the names that a checkpoint carries."""
        return self.state_dict()

    def load_checkpoint(self, tensors: dict[str, Tensor]) -> None:
        """Takes over what `checkpoint` returned; a missing or unknown name is an error."""
        self.load_state_dict(tensors)

    def new_cache(self, batch: int, length: int, dtype: torch.dtype) -> Cache:
        """Returns one (keys, values) pair a layer, [batch, kv_heads, length, head_dim] each."""
        size = (batch, self.shape.num_key_value_heads, length, self.shape.head_dim)
        device = self.model.norm.weight.device
        return [
            (
                torch.zeros(size, dtype=dtype, device=device),
                torch.zeros(size, dtype=dtype, device=device),
            )
            for _ in self.model.layers
        ]


@torch.inference_mode()
def generate(model: Decoder, prompts: Tensor, new_tokens: int, temperature: Tensor) -> Tensor:
    """Continues equally long prompts; used to make the draft's training text.

    Args:
        prompts: [batch, length] ids.
        temperature: [batch]; 0 takes the most probable token.
    Returns:
        [batch, length + new_tokens] ids.
    """
    batch, length = prompts.shape
    ids = torch.empty(batch, length + new_tokens, dtype=prompts.dtype, device=prompts.device)
    ids[:, :length] = prompts
    with torch.autocast(prompts.device.type, torch.bfloat16):
        cache = model.new_cache(batch, length + new_tokens, torch.bfloat16)
        logits = model(prompts, cache)[:, -1].float()
        for at in range(length, length + new_tokens):
            # argmax(logits/T + Gumbel noise) is a sample from softmax(logits/T).
            noise = -torch.empty_like(logits).exponential_().log()
            ids[:, at] = (logits + temperature[:, None] * noise).argmax(-1)
            if at + 1 < length + new_tokens:
                logits = model(ids[:, at : at + 1], cache, at)[:, -1].float()
    return ids
