"""Bits per byte of a language model on whole texts.

Bits per byte is the total negative log-likelihood in nats, divided by ln 2 and by the number of
UTF-8 bytes of the text; unlike perplexity per token it compares models with different
tokenizers. Each text starts with `<|endoftext|>` (which is not scored) and is read through
windows of `WINDOW` tokens that start every `STRIDE` tokens: past the first window each scored
token sees at least WINDOW − STRIDE tokens before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WINDOW = 2048
STRIDE = 1024
Logits = Callable[[Tensor], Tensor]


def windows(length: int) -> list[tuple[int, int, int]]:
    """Splits positions 0 … length−1 into (start, stop, first scored position) triples.

    Position p is scored when its token is predicted from those before it, so the scored
    positions of all windows are 1 … length−1, each once.
    """
    out = [(0, min(WINDOW, length), 1)]
    while out[-1][1] < length:
        start = out[-1][0] + STRIDE
        out.append((start, min(start + WINDOW, length), out[-1][1]))
    return out


@torch.inference_mode()
def nats(logits: Logits, documents: Sequence[Sequence[int]], *, batch: int = 1) -> list[float]:
    """Returns the negative log-likelihood in nats of each document.

    Args:
        logits: ids [batch, length] on the model's device → logits [batch, length, vocab].
        documents: token ids of each document, the separator first.
        batch: windows scored at once; shorter ones are padded on the right, which a causal
            model cannot see.
    """
    pieces = [
        (index, *window)
        for index, document in enumerate(documents)
        for window in windows(len(document))
    ]
    pieces.sort(key=lambda piece: piece[2] - piece[1])
    totals = [0.0] * len(documents)
    for at in range(0, len(pieces), batch):
        group = pieces[at : at + batch]
        width = max(stop - start for _, start, stop, _ in group)
        ids = torch.zeros(len(group), width, dtype=torch.long)
        scored = torch.zeros(len(group), width, dtype=torch.bool)
        for row, (index, start, stop, first) in enumerate(group):
            ids[row, : stop - start] = torch.tensor(documents[index][start:stop])
            scored[row, first - start : stop - start] = True
        output = logits(ids)
        ids, scored = ids.to(output.device), scored.to(output.device)
        for row, (index, *_) in enumerate(group):
            keep = scored[row, 1:]
            loss = torch.nn.functional.cross_entropy(
                output[row, :-1][keep].float(), ids[row, 1:][keep], reduction="sum"
            )
            totals[index] += float(loss)
    return totals


def bits_per_byte(total_nats: float, num_bytes: int) -> float:
    return total_nats / math.log(2) / num_bytes
