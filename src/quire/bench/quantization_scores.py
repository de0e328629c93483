"""What a changed model makes of held-out text, beside what the original made of it.

`quire quantize` judges one result, and runs both models with one layer in memory. Here many
results are compared with one original, whose hidden states are kept, and every position's KL.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.bench.quantization_variants import Changed, plain
from quire.models.decoder import DecoderLayer
from quire.quantize.source import Source


@dataclass(frozen=True)
class Scores:
    """What a changed model made of the texts, beside the original."""

    nats: Tensor  # float64 [num_texts], of all predicted tokens together
    kl: Tensor  # float64 [positions], nats from the original's distribution to the changed one's
    kept: float  # share of positions whose most probable token stays
    improved: float  # share of positions whose true token became more probable
    largest_logit_change: float
    bits_a_weight: float


class Judge:
    """The original's answers to some texts, with which changed models are compared."""

    def __init__(self, source: Source, texts: list[list[int]]) -> None:
        """Run the original over texts of token ids."""
        self.source = source
        self.texts = texts
        self._original = self._hidden(source, plain(source).layers)

    def _hidden(self, source: Source, layers: list[DecoderLayer]) -> list[Tensor]:
        """Return what leaves the last layer, [T - 1, hidden_size] a text."""
        states = []
        for token_ids in self.texts:
            hidden = source.embed(token_ids)
            for index, layer in enumerate(layers):
                hidden = source.run(layer, index, hidden)
            states.append(hidden[:-1])  # nothing follows the last token
        return states

    def scores(self, changed: Changed, source: Source | None = None) -> Scores:
        """Run a changed model over the texts.

        Args:
            changed: its layers.
            source: runs them, where that is not the original's.
        """
        nats, kls, kept, improved, largest = [], [], 0, 0, 0.0
        after = self._hidden(source or self.source, changed.layers)
        for token_ids, *states in zip(self.texts, self._original, after, strict=True):
            # In float64: in float32 a KL below 1e-7 is the rounding of its 4,096 terms.
            logits = [self.source.logits(hidden).double() for hidden in states]
            p, q = (x.log_softmax(-1) for x in logits)
            targets = torch.tensor(token_ids[1:])[:, None]
            first, second = (x.gather(-1, targets) for x in (p, q))
            nats.append(-second.sum())
            kls.append((p.exp() * (p - q)).sum(-1))
            kept += int((p.argmax(-1) == q.argmax(-1)).sum())
            improved += int((second > first).sum())
            largest = max(largest, float((logits[0] - logits[1]).abs().max()))
        kl = torch.cat(kls)
        share = 1 / len(kl)
        return Scores(
            torch.stack(nats), kl, kept * share, improved * share, largest, changed.bits_a_weight
        )
