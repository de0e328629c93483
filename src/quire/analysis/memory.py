"""What a decoder keeps in memory: its parameters, its KV cache, the work of one step.

Everything follows from the sizes in `config.json`; nothing is loaded. Explained in the
chapter "Autoregressive decoding", section on memory arithmetic.

Symbols used in the docstrings: L layers, h hidden size, i intermediate size, V
vocabulary, H query heads, K KV heads, d head size, b bytes per element; of a mixture of
experts E experts a layer, k of them a token, m the intermediate size of one.
"""

from __future__ import annotations

from dataclasses import dataclass

from quire.models.config import ModelConfig

# Bytes per element. A 4-bit weight also needs scales (about 0.5 bit more in groups of
# 32 with fp16 scales); this table counts the payload alone.
DTYPE_BYTES: dict[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "fp4": 0.5,
    "int4": 0.5,
}
_LONG_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def short_dtype(dtype: str) -> str:
    """Return the short name of a dtype: `bfloat16` and `torch.bfloat16` give `bf16`.

    Raises:
        ValueError: a name that the table of sizes lacks.
    """
    name = dtype.removeprefix("torch.")
    name = _LONG_NAMES.get(name, name)
    if name not in DTYPE_BYTES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPE_BYTES)}")
    return name


def dtype_bytes(dtype: str) -> float:
    """Return the bytes of one element of `dtype`."""
    return DTYPE_BYTES[short_dtype(dtype)]


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a decoder by part. `head` is 0 when it shares the embedding's matrix."""

    embedding: int
    attention: int
    mlp: int  # experts and their routers included
    norm: int
    head: int

    @property
    def total(self) -> int:
        """All parameters that a checkpoint stores, shared ones once."""
        return self.embedding + self.attention + self.mlp + self.norm + self.head


def attention_parameters(config: ModelConfig) -> int:
    """Count the projections Q, K, V and O of all layers, with their biases.

    Q and O are h x Hd, K and V are h x Kd: per layer 2h·Hd + 2h·Kd weights. Grouped-query
    attention (K < H) shrinks K and V [ainslie2023gqa].
    """
    query, key_value = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    weights = 2 * config.hidden_size * (query + key_value)
    biases = (query + 2 * key_value) * config.qkv_bias + config.hidden_size * config.output_bias
    return config.num_layers * (weights + biases)


def dense_layers(config: ModelConfig) -> int:
    """Count the layers with one MLP for every token; the others have experts."""
    return config.num_layers - (0 if config.moe is None else len(config.moe.layers))


def expert_parameters(config: ModelConfig) -> int:
    """Count gate, up and down of one expert, 3·h·m; 0 where there are none."""
    return 0 if config.moe is None else 3 * config.hidden_size * config.moe.intermediate_size


def router_parameters(config: ModelConfig) -> int:
    """Count the routers of all layers with experts, h x E each."""
    moe = config.moe
    return 0 if moe is None else len(moe.layers) * config.hidden_size * moe.num_experts


def mlp_parameters(config: ModelConfig, experts: float | None = None) -> float:
    """Count gate, up and down of all layers, each h x i, with their biases.

    A layer of experts has a router and E times the parameters of one expert.

    Args:
        config: sizes of the model.
        experts: count so many of a layer's E experts; None: all of them.
    """
    weights = 3 * config.hidden_size * config.intermediate_size
    biases = (2 * config.intermediate_size + config.hidden_size) * config.mlp_bias
    dense = dense_layers(config) * (weights + biases)
    if config.moe is None:
        return dense
    held = config.moe.num_experts if experts is None else experts
    routed = len(config.moe.layers) * held * expert_parameters(config)
    return dense + router_parameters(config) + routed


def norm_parameters(config: ModelConfig) -> int:
    """Count RMSNorm scales: two of size h a layer, one at the end, two of size d for q/k norm."""
    per_layer = 2 * config.hidden_size + 2 * config.head_size * config.qk_norm
    return config.num_layers * per_layer + config.hidden_size


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count the parameters of `config` by part; equal to what transformers builds."""
    vocabulary = config.vocab_size * config.hidden_size
    return ParameterCount(
        embedding=vocabulary,
        attention=attention_parameters(config),
        mlp=int(mlp_parameters(config)),
        norm=norm_parameters(config),
        head=0 if config.tie_word_embeddings else vocabulary,
    )


def active_parameters(config: ModelConfig) -> int:
    """Count the parameters that one token meets: of experts k a layer, the rest all of it."""
    if config.moe is None:
        return count_parameters(config).total
    idle = config.moe.num_experts - config.moe.experts_per_token
    unmet = len(config.moe.layers) * idle * expert_parameters(config)
    return count_parameters(config).total - unmet


def experts_touched(config: ModelConfig, num_tokens: float) -> float:
    """Return how many experts of a layer a step over `num_tokens` tokens needs: E·(1-(1-k/E)ᵀ).

    The expectation if every token chose its k experts evenly and by itself. Tokens that
    prefer the same experts touch fewer.

    Raises:
        ValueError: a model without experts.
    """
    if config.moe is None:
        raise ValueError(f"{config.architecture} has no experts")
    share = config.moe.experts_per_token / config.moe.num_experts
    return config.moe.num_experts * (1 - (1 - share) ** num_tokens)


def weight_bytes(config: ModelConfig, dtype: str) -> float:
    """Return the bytes of all parameters stored as `dtype`."""
    return count_parameters(config).total * dtype_bytes(dtype)


def kv_bytes_per_token(config: ModelConfig, dtype: str) -> float:
    """Return the bytes that one token adds to the KV cache: 2·L·K·d·b.

    Two vectors (key and value) of K·d elements in each of L layers. Multi-head attention
    is K = H; grouped-query attention divides the cache by H / K [ainslie2023gqa].
    """
    elements = 2 * config.num_layers * config.num_kv_heads * config.head_size
    return elements * dtype_bytes(dtype)


def mla_kv_bytes_per_token(
    num_layers: int, kv_lora_rank: int, rope_head_size: int, dtype: str
) -> float:
    """Return the bytes that one token adds under multi-head latent attention (MLA).

    Each layer keeps one compressed vector of `kv_lora_rank` elements, from which keys and
    values are rebuilt, and one rotary key of `rope_head_size` shared by all heads:
    L·(d_c + d_r)·b [deepseek2024v2]. DeepSeek-V2 has L=60, d_c=512, d_r=64: 34,560
    elements, 69,120 bytes in bf16, where 128 full heads of 128 would take 3,932,160.
    """
    return num_layers * (kv_lora_rank + rope_head_size) * dtype_bytes(dtype)


def attended_tokens(config: ModelConfig, context: int) -> int:
    """Sum over the layers of the tokens a query sees in a context of `context` tokens.

    A full-attention layer sees all of them, a sliding-window layer at most its window.
    """
    return sum(min(context, window or context) for window in config.sliding_windows)


def kv_cache_bytes(config: ModelConfig, context: int, dtype: str) -> float:
    """Return the least cache that a sequence of `context` tokens needs, in bytes.

    Full attention: context · `kv_bytes_per_token`. A sliding-window layer needs its
    window only; an engine that keeps every token uses more than this.
    """
    per_layer_token = kv_bytes_per_token(config, dtype) / config.num_layers
    return attended_tokens(config, context) * per_layer_token


def activation_bytes(config: ModelConfig, num_tokens: int, dtype: str) -> float:
    """Return the activations of a step over `num_tokens` tokens at their peak, in bytes.

    Inference keeps no activations between layers, so the peak is inside one: the residual
    stream (h) beside the widest of {gate, up} (2i), {q, k, v, attention output}
    ((2H + 2K)·d) and, of k experts, {silu(gate) · up, output} (k·(m + h)). Logits are not in
    it: see `logit_bytes`.
    """
    widest = 2 * (config.num_heads + config.num_kv_heads) * config.head_size
    if dense_layers(config) > 0:
        widest = max(widest, 2 * config.intermediate_size)
    if config.moe is not None:
        row = config.moe.intermediate_size + config.hidden_size
        widest = max(widest, config.moe.experts_per_token * row)
    width = config.hidden_size + widest
    return num_tokens * width * dtype_bytes(dtype)


def logit_bytes(config: ModelConfig, batch: int) -> float:
    """Return the bytes of one float32 row of V logits per sequence, as samplers keep them."""
    return batch * config.vocab_size * dtype_bytes("fp32")
