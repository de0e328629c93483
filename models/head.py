"""`Head`: drafts from the target's own hidden states, with the target's embedding for both ends.

A draft model reads tokens alone. A head also reads what the target made of them (Li et al. 2024,
"EAGLE: Speculative sampling requires rethinking feature uncertainty", arXiv 2401.15077). At
position t its input is the hidden state of position t − 1 and the embedding of token t, which
together are all that is known there; its output stands for the target's hidden state of position
t, so that the target's output matrix turns it into the logits of token t + 1. Behind the last
known token there is no hidden state, and the head reads its own output instead.

The head is one layer: attention over the positions before (or none), then a gated feed-forward
network that reads the embedding once more. With `num_features` = 3 the target gives the states
behind three of its layers, joined by a matrix (EAGLE-3, Li et al. 2025, arXiv 2503.01840).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from decoder import Decoder, RMSNorm, rotate
from torch import Tensor, nn


@dataclass(frozen=True)
class HeadShape:
    """Sizes of a head; `hidden_size` and `vocab_size` are the target's.

    Attributes:
        num_heads: query heads, which share one key-value head; 0 has no attention.
        layers: behind which of the target's layers, counted from 1, its states are read; empty
            reads the last hidden state alone, behind the final norm.
    """

    intermediate_size: int
    num_heads: int = 0
    layers: tuple[int, ...] = ()
    hidden_size: int = 256
    head_dim: int = 64
    rms_norm_eps: float = 1e-6

    @property
    def feature_size(self) -> int:
        """Numbers that the target gives a position."""
        return self.hidden_size * max(1, len(self.layers))


HEADS = {
    "attention": HeadShape(256, num_heads=2),
    "recurrent": HeadShape(384),
    "three-layers": HeadShape(104, num_heads=2, layers=(2, 5, 8)),
}

KeyValue = tuple[Tensor, Tensor]  # [batch, length, head_dim] each


class Head(nn.Module):
    """One layer over (state before, token): see the top of this file."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        width, eps = shape.hidden_size, shape.rms_norm_eps
        if shape.layers:
            self.fuse_proj = nn.Linear(shape.feature_size, width, bias=False)
        self.state_norm = RMSNorm(width, eps)
        self.token_norm = RMSNorm(width, eps)
        if shape.num_heads:
            rows = shape.num_heads * shape.head_dim
            self.q_proj = nn.Linear(2 * width, rows, bias=False)
            self.k_proj = nn.Linear(2 * width, shape.head_dim, bias=False)
            self.v_proj = nn.Linear(2 * width, shape.head_dim, bias=False)
            self.o_proj = nn.Linear(rows, width, bias=False)
            self.qk_norm = RMSNorm(shape.head_dim, eps)  # of queries and keys together
            self.mlp_norm = RMSNorm(width, eps)
        self.gate_proj = nn.Linear(2 * width, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(2 * width, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, width, bias=False)
        self.norm = RMSNorm(width, eps)

    def fuse(self, features: Tensor) -> Tensor:
        """Returns [..., hidden_size] of what the target gives, [..., feature_size]."""
        fused: Tensor = self.fuse_proj(features) if self.shape.layers else features
        return fused

    def forward(
        self, state: Tensor, tokens: Tensor, cos: Tensor, sin: Tensor, cache: KeyValue | None
    ) -> Tensor:
        """Returns the outputs of consecutive positions, [batch, length, hidden_size].

        Args:
            state: [batch, length, hidden_size], of the position before each: fused, or an output.
            tokens: [batch, length, hidden_size], embeddings.
            cos, sin: [end, head_dim / 2], of the positions up to the last.
            cache: keys and values, [batch, capacity, head_dim] each, known up to these positions,
                whose own are written; None without attention.
        """
        state, token = self.state_norm(state), self.token_norm(tokens)
        normed = state
        if cache is not None:
            end, length = len(cos), state.shape[1]
            start = end - length
            x = torch.cat((state, token), -1)
            q, (cache[0][:, start:end], cache[1][:, start:end]) = self.query_key_value(
                x, cos[start:], sin[start:]
            )
            keys, values = cache[0][:, None, :end], cache[1][:, None, :end]
            seen = torch.ones(length, end, dtype=torch.bool, device=x.device).tril(start)
            heads = q.transpose(1, 2)
            out = F.scaled_dot_product_attention(heads, keys, values, seen, enable_gqa=True)
            state = state + self.o_proj(out.transpose(1, 2).flatten(2))
            normed = self.mlp_norm(state)
        return self.feed_forward(state, normed, token)

    def query_key_value(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, KeyValue]:
        """Returns q [batch, length, num_heads, head_dim] and k, v of x [batch, length, 2 hidden].

        cos, sin: [length, head_dim / 2], of the positions.
        """
        joined = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        heads, size = self.shape.num_heads, self.shape.head_dim
        mixed = F.linear(x, joined).unflatten(-1, (heads + 2, size))
        turned = rotate(self.qk_norm(mixed[:, :, : heads + 1]), cos, sin)
        return turned[:, :, :heads], (turned[:, :, heads], mixed[:, :, heads + 1])

    def feed_forward(self, state: Tensor, normed: Tensor, token: Tensor) -> Tensor:
        """Returns the head's output, [..., hidden_size]; the last norm is part of it."""
        joined = torch.cat((self.gate_proj.weight, self.up_proj.weight))
        gate, up = F.linear(torch.cat((normed, token), -1), joined).chunk(2, -1)
        output: Tensor = self.norm(state + self.down_proj(F.silu(gate) * up))
        return output


def target_features(target: Decoder, shape: HeadShape, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what a head reads of each position, [batch, length, feature_size], and what it
    shall say there: the last hidden state behind the final norm, [batch, length, hidden_size].
    """
    cos = target.get_buffer("cos")[: ids.shape[1]]
    sin = target.get_buffer("sin")[: ids.shape[1]]
    x, taken = target.embed(ids), []
    for number, layer in enumerate(target.model.layers, start=1):
        x = layer(x, cos, sin, None, 0)
        if number in shape.layers:
            # Its own scale differs from layer to layer: here it goes.
            taken.append(F.rms_norm(x, x.shape[-1:]))
    last = target.model.norm(x)
    return (torch.cat(taken, -1) if taken else last), last


def shifted(x: Tensor, by: int) -> Tensor:
    """Returns x [batch, length, …] moved `by` places to later positions, zeros in front."""
    if by == 0:
        return x
    return torch.cat((torch.zeros_like(x[:, :by]), x[:, :-by]), 1)


def attend(q: Tensor, past: list[KeyValue]) -> Tensor:
    """Attention of step j = len(past), whose keys of known positions are those of step 1.

    A chain that stands at position t in its step j has read the target's states up to position
    t − j and its own outputs behind them. So q[t] sees the keys of step 1 at positions up to
    t − j + 1, and one key each of the steps i = 2 … j, at position t − j + i.

    Args:
        q: [batch, length, heads, head_dim].
        past: keys and values of steps 1 … j, [batch, length, head_dim] each.
    Returns:
        [batch, length, heads · head_dim].
    """
    j, length = len(past), q.shape[1]
    keys, values = past[0]
    q = q.transpose(1, 2) * q.shape[-1] ** -0.5
    hidden = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(2 - j)
    scores = (q @ keys[:, None].mT).masked_fill(hidden, float("-inf"))
    own = [(shifted(k, j - i), shifted(v, j - i)) for i, (k, v) in enumerate(past[1:], start=2)]
    own_scores = [(q * k[:, None]).sum(-1, keepdim=True) for k, _ in own]
    weights = torch.softmax(torch.cat((scores, *own_scores), -1).float(), -1).to(q.dtype)
    out = weights[..., :length] @ values[:, None]
    for i, (_, v) in enumerate(own):
        out = out + weights[..., length + i, None] * v[:, None]
    return out.transpose(1, 2).flatten(2)


def unroll(
    head: Head, features: Tensor, tokens: Tensor, cos: Tensor, sin: Tensor, steps: int
) -> list[Tensor]:
    """Returns the head's outputs after 1 … `steps` drafts, as if a chain began at each position.

    Output j at position t is that of a chain whose drafts so far were all right: it has read the
    target's states up to position t − j, its own outputs behind them and the tokens up to t
    (training so is "training-time test" of EAGLE-3, and Zhang et al. 2024, "Learning harmonized
    representations for speculative sampling", arXiv 2408.15766). It stands for the hidden state
    of position t. The first `steps` positions know too little to count.

    Args:
        features: [batch, length, feature_size], of the target.
        tokens: [batch, length, hidden_size], embeddings.
        cos, sin: [length, head_dim / 2].
    """
    token = head.token_norm(tokens)
    state = head.fuse(features)
    outputs: list[Tensor] = []
    past: list[KeyValue] = []
    for _ in range(steps):
        state = head.state_norm(shifted(state, 1))
        normed = state
        if head.shape.num_heads:
            q, key_value = head.query_key_value(torch.cat((state, token), -1), cos, sin)
            past.append(key_value)
            state = state + head.o_proj(attend(q, past))
            normed = head.mlp_norm(state)
        state = head.feed_forward(state, normed, token)
        outputs.append(state)
    return outputs
