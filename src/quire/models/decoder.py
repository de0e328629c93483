"""`Decoder`: token ids in, hidden states out; logits on request.

One class covers Llama, Qwen2, Qwen3 and Mistral (Vaswani et al. 2017 in the pre-norm,
rotary, gated form they share); `ModelConfig` holds their differences.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quire.attention.interface import AttentionBackend
from quire.kv.storage import KVStorage, LayerKV
from quire.layers.attention import Attention, StepMetadata
from quire.layers.linear import Linear
from quire.layers.module import Layer
from quire.layers.norm import RMSNorm
from quire.layers.rope import RotaryTable
from quire.models.config import ModelConfig


class GatedMLP(Layer):
    """down(silu(gate(x)) · up(x)), with gate and up in one product."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        """Create the layer with its weights empty."""
        super().__init__()
        hidden, size, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        sizes = {"gate_proj": size, "up_proj": size}
        self.gate_up_proj = Linear(hidden, sizes, bias=bias, dtype=dtype, device=device)
        sizes = {"down_proj": hidden}
        self.down_proj = Linear(size, sizes, bias=bias, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x, [num_tokens, hidden_size]."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class DecoderLayer(Layer):
    """Attention, then the MLP, each added to the residual stream."""

    def __init__(
        self,
        config: ModelConfig,
        backend: AttentionBackend,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Create the layer with its weights empty."""
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.self_attn = Attention(config, backend, dtype, device)
        self.post_attention_layernorm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, dtype, device
        )
        self.mlp = GatedMLP(config, dtype, device)

    def forward(self, x: Tensor, kv: LayerKV, step: StepMetadata, layer: int) -> Tensor:
        """Apply to the residual stream x, [num_tokens, hidden_size]."""
        x = x + self.self_attn(self.input_layernorm(x), kv, step, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(Layer):
    """Embedding, layers, final norm; the head is a separate call."""

    def __init__(
        self,
        config: ModelConfig,
        backend: AttentionBackend,
        max_model_len: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Create the model with its weights empty; `quire.models.loader` fills them."""
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Parameter(
            torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device), False
        )
        self.layers = nn.ModuleList(
            DecoderLayer(config, backend, dtype, device) for _ in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        sizes = {"lm_head": config.vocab_size}
        self.lm_head = Linear(config.hidden_size, sizes, bias=False, dtype=dtype, device=device)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens
        self.rotary = RotaryTable(config.rope, config.head_size, max_model_len, dtype, device)

    def forward(self, token_ids: Tensor, storage: KVStorage, step: StepMetadata) -> Tensor:
        """Return the hidden states of a step's tokens, [num_tokens, hidden_size]."""
        step.rotary = self.rotary.lookup(step.positions)
        x = F.embedding(token_ids, self.embed_tokens)
        for layer, module in enumerate(self.layers):
            x = module(x, storage.layers[layer], step, layer)
        return self.norm(x)

    def compute_logits(self, hidden: Tensor, indices: Tensor) -> Tensor:
        """Return the float32 logits of the tokens at `indices`, [R, vocab_size]."""
        return self.lm_head(hidden[indices]).float()
