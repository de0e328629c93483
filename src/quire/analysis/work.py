"""What a step computes and what it moves: FLOPs and bytes of prefill and decode.

Counted: every matrix product and every byte that must cross the memory bus at least
once. Not counted: norms, rotations, softmax and activations, which a fused kernel can
keep on the chip; so both counts are lower bounds. A multiply-add is two FLOPs.

Arithmetic and memory traffic are counted apart, as Pope et al. [pope2022scaling] do: 2 FLOPs
per weight and token, weights read once a step, the KV cache read once a step and sequence.
Explained in the chapter
"Autoregressive decoding", section on prefill and decode.
"""

from __future__ import annotations

from dataclasses import dataclass

from quire.analysis.memory import (
    attended_tokens,
    count_parameters,
    dense_layers,
    dtype_bytes,
    expert_parameters,
    experts_touched,
    kv_bytes_per_token,
    kv_cache_bytes,
    mlp_parameters,
    router_parameters,
)
from quire.models.config import ModelConfig


@dataclass(frozen=True)
class Work:
    """One step's arithmetic and memory traffic."""

    flops: float
    bytes_moved: float

    @property
    def arithmetic_intensity(self) -> float:
        """FLOPs per byte moved [williams2009roofline]."""
        return self.flops / self.bytes_moved


def layer_weights(config: ModelConfig) -> int:
    """Count the weights of the layers that multiply each token: L·(2h(H+K)d + 3hi).

    In a layer of experts that is the router and k experts, hE + 3khm, in place of 3hi.
    """
    query_and_kv = (config.num_heads + config.num_kv_heads) * config.head_size
    attention = config.num_layers * 2 * config.hidden_size * query_and_kv
    dense = dense_layers(config) * 3 * config.hidden_size * config.intermediate_size
    if config.moe is None:
        return attention + dense
    chosen = len(config.moe.layers) * config.moe.experts_per_token * expert_parameters(config)
    return attention + dense + router_parameters(config) + chosen


def head_flops(config: ModelConfig) -> int:
    """Return the FLOPs of one row of logits, 2hV; a tied matrix multiplies all the same."""
    return 2 * config.hidden_size * config.vocab_size


def attention_flops(config: ModelConfig, attended: int) -> int:
    """Return the FLOPs of QKᵀ and of the weighted sum of V for `attended` (query, key) pairs.

    Each of H heads takes 2d FLOPs a pair for the score and 2d for the sum: 4·H·d a pair.
    `attended` counts the pairs of all layers together.
    """
    return 4 * config.num_heads * config.head_size * attended


def causal_pairs(config: ModelConfig, num_tokens: int) -> int:
    """Count the (query, key) pairs of all layers when `num_tokens` attend causally.

    Token t (from 1) sees min(t, w) tokens under a window w, so a layer has T(T+1)/2 pairs
    for T ≤ w, and w(w+1)/2 + (T-w)·w beyond.
    """
    pairs = 0
    for window in config.sliding_windows:
        ramp = min(num_tokens, window or num_tokens)
        pairs += ramp * (ramp + 1) // 2 + (num_tokens - ramp) * ramp
    return pairs


def step_weight_bytes(config: ModelConfig, num_tokens: int, dtype: str) -> float:
    """Return the weight bytes that a step over `num_tokens` tokens must read.

    Every layer and the head's matrix once, whatever the batch. Of the embedding table a
    step reads one row of h a token; when the table is also the head, the head reads it whole.
    Of a layer's experts it reads those that a token was sent to, see `experts_touched`.
    """
    count = count_parameters(config)
    head = config.vocab_size * config.hidden_size
    mlp: float = count.mlp
    if config.moe is not None:
        mlp = mlp_parameters(config, experts_touched(config, num_tokens))
    read = count.attention + mlp + count.norm + head + num_tokens * config.hidden_size
    return read * dtype_bytes(dtype)


def decode_work(
    config: ModelConfig, batch: int, context: int, weight_dtype: str, kv_dtype: str
) -> Work:
    """Return the work of one decode step: one new token for each of `batch` sequences.

    `context` counts the tokens that the new one attends to, itself included. The weights
    are shared by the batch; each sequence brings its own FLOPs and its own KV cache, read
    whole, plus one token written.
    """
    flops = batch * (
        2 * layer_weights(config)
        + head_flops(config)
        + attention_flops(config, attended_tokens(config, context))
    )
    kv_read = batch * kv_cache_bytes(config, context, kv_dtype)
    kv_written = batch * kv_bytes_per_token(config, kv_dtype)
    weights = step_weight_bytes(config, batch, weight_dtype)
    return Work(flops, weights + kv_read + kv_written)


def prefill_work(
    config: ModelConfig, batch: int, prompt_tokens: int, weight_dtype: str, kv_dtype: str
) -> Work:
    """Return the work of computing `batch` prompts of `prompt_tokens` tokens in one step.

    Logits are needed for the last token of each prompt only. Fresh keys and values are
    used on the chip and written once.
    """
    num_tokens = batch * prompt_tokens
    flops = (
        2 * layer_weights(config) * num_tokens
        + batch * head_flops(config)
        + batch * attention_flops(config, causal_pairs(config, prompt_tokens))
    )
    kv_written = num_tokens * kv_bytes_per_token(config, kv_dtype)
    return Work(flops, step_weight_bytes(config, num_tokens, weight_dtype) + kv_written)


def recompute_work(config: ModelConfig, batch: int, context: int, weight_dtype: str) -> Work:
    """Return the work of one decode step without a KV cache: all of `context` again.

    A prefill of the whole sequence that keeps nothing, so no KV byte is read or written.
    """
    work = prefill_work(config, batch, context, weight_dtype, weight_dtype)
    kv_written = batch * context * kv_bytes_per_token(config, weight_dtype)
    return Work(work.flops, work.bytes_moved - kv_written)
