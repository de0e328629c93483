"""`HeavyHitterAttention`: what a model loses when each head keeps a few tokens only.

H2O (Zhang et al. 2023) keeps the most recent tokens and, of the others, those that queries
have looked at most so far. Each KV head chooses for itself, so that what is dropped are
positions in blocks and no block is ever empty: in a paged cache that frees nothing without
moving keys together. Here it is a component that scores whole prompts, which is enough for a
perplexity to judge it:

    Components(attention=lambda: HeavyHitterAttention(heavy=64, recent=64))

See the chapter "The paged KV cache".
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.attention.torch_backend import TorchAttention, TorchMetadata
from quire.errors import QuireError
from quire.kv.layer import LayerKV


class HeavyHitterAttention(TorchAttention):
    """Attention of prompts, token after token, with eviction after each."""

    sees_sinks = False
    reads_scales = False

    def __init__(self, heavy: int, recent: int) -> None:
        """Keep `recent` tokens and `heavy` others, in every layer and KV head."""
        super().__init__()
        if heavy < 0 or recent < 1:
            raise QuireError(
                f"heavy={heavy}, recent={recent}: must be at least 0 and 1, a query sees itself"
            )
        self.heavy, self.recent = heavy, recent

    def forward(
        self,
        query: Tensor,
        kv: LayerKV,
        metadata: TorchMetadata,
        scale: float,
        fresh_kv: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend with queries [num_tokens, num_heads, head_size]; returns the same shape."""
        if metadata.decode is not None or not all(chunk.fresh for chunk in metadata.chunks):
            raise QuireError(
                "HeavyHitterAttention scores whole prompts: give max_tokens=1, "
                "max_num_batched_tokens of at least a prompt, no prefix caching, and no prompt of "
                "one token"
            )
        assert fresh_kv is not None
        output = torch.empty_like(query)
        for chunk in metadata.chunks:
            part = slice(chunk.begin, chunk.end)
            key, value = (x[part] for x in fresh_kv)
            output[part] = self._attend(query[part], key, value, scale)
        return output

    # docs: heavy-hitters begin
    def _attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        num_tokens, num_heads, head_size = query.shape
        num_kv_heads = key.shape[1]
        grouped = query.view(num_tokens, num_kv_heads, -1, head_size)
        scores = torch.einsum("tkgd,skd->tkgs", grouped * scale, key)
        weights = torch.zeros_like(scores)
        kept = torch.ones(num_kv_heads, num_tokens, dtype=torch.bool, device=query.device)
        attention = torch.zeros(num_kv_heads, num_tokens, device=query.device)  # each got so far
        for t in range(num_tokens):
            seen = scores[t, :, :, : t + 1].masked_fill(~kept[:, None, : t + 1], -torch.inf)
            weights[t, :, :, : t + 1] = seen.float().softmax(-1)
            attention[:, : t + 1] += weights[t, :, :, : t + 1].sum(1)
            old = t + 2 - self.recent  # positions before it are not recent at the next query
            if old > self.heavy:
                candidates = attention[:, :old].masked_fill(~kept[:, :old], torch.inf)
                kept.scatter_(1, candidates.argmin(1, keepdim=True), False)
        mixed = torch.einsum("tkgs,skd->tkgd", weights, value)
        return mixed.reshape(num_tokens, num_heads, head_size)

    # docs: heavy-hitters end
