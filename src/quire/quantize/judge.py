"""What quantization cost: the original and the quantized model on text that neither saw.

Both run side by side, layer by layer, in float32; the quantized one as its codes say. An
average hides that answers changed where the original was unsure, so the distance of the two
distributions is reported as well (KL, its mean and its tail) and how often the most probable
token is the same. See the chapter "Quantization".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.models.decoder import DecoderLayer
from quire.quantize.source import Source
from quire.quantize.texts import TextSequence

ROWS_AT_ONCE = 256  # positions whose logits are in memory at once
RESAMPLES = 10_000
FEWEST_DOCUMENTS = 8  # fewer say little of how documents differ: sequences are drawn


@dataclass(frozen=True)
class Judgement:
    """Numbers over all positions that predict a token."""

    num_sequences: int
    num_tokens: int
    num_bytes: int
    original_bits_per_byte: float
    quantized_bits_per_byte: float
    change: float  # of bits a byte, relative to the original's
    change_low: float  # 95 % of such texts lie above, by a bootstrap over documents
    change_high: float
    kl_mean: float  # nats, from the original's distribution to the quantized one's
    kl_99: float  # what one position in a hundred exceeds
    kept: float  # share of positions whose most probable token is the original's


def judge(
    source: Source,
    quantized_layer: Callable[[int], DecoderLayer],
    sequences: Sequence[TextSequence],
    said: Callable[[int], None],
) -> Judgement:
    """Compare the two models on sequences.

    Args:
        source: the original.
        quantized_layer: makes the quantized model's decoder layer of an index.
        sequences: of held-out text.
        said: called with each layer's index once it is done.
    """
    original = [source.embed(sequence.token_ids) for sequence in sequences]
    quantized = list(original)
    for index in range(source.config.num_layers):
        for make, states in ((source.layer, original), (quantized_layer, quantized)):
            layer = make(index)
            for i, hidden in enumerate(states):
                states[i] = source.run(layer, index, hidden)
            del layer  # before the next one is made: there is one in memory
        said(index)
    nats, kls, same = [], [], 0
    for sequence, first, second in zip(sequences, original, quantized, strict=True):
        scores = _Scores.of(source, first, second, sequence.token_ids)
        nats.append(scores.nats)
        kls.append(scores.kl)
        same += scores.same
    return _summary(sequences, torch.stack(nats), torch.cat(kls), same)


@dataclass
class _Scores:
    """Of one sequence: nats of all its tokens under both models, float64 [2]; KL a position."""

    nats: Tensor
    kl: Tensor  # [T - 1]
    same: int

    @classmethod
    def of(
        cls, source: Source, original: Tensor, quantized: Tensor, token_ids: list[int]
    ) -> _Scores:
        targets = torch.tensor(token_ids[1:], device=original.device)
        found = cls(torch.zeros(2, dtype=torch.float64), torch.empty(0), 0)
        for begin in range(0, len(targets), ROWS_AT_ONCE):
            end = min(begin + ROWS_AT_ONCE, len(targets))
            p, q = (
                source.logits(hidden[begin:end]).log_softmax(-1) for hidden in (original, quantized)
            )
            for i, scores in enumerate((p, q)):
                chosen = scores.gather(-1, targets[begin:end, None])
                found.nats[i] -= chosen.sum(dtype=torch.float64).cpu()
            found.kl = torch.cat([found.kl, (p.exp() * (p - q)).sum(-1).cpu()])
            found.same += int((p.argmax(-1) == q.argmax(-1)).sum())
        return found


def _summary(sequences: Sequence[TextSequence], nats: Tensor, kl: Tensor, same: int) -> Judgement:
    num_bytes = torch.tensor([s.num_bytes for s in sequences], dtype=torch.float64)
    bits = nats.sum(0) / math.log(2) / num_bytes.sum()
    low, high = change_interval(nats, [s.document for s in sequences])
    return Judgement(
        num_sequences=len(sequences),
        num_tokens=len(kl),
        num_bytes=int(num_bytes.sum()),
        original_bits_per_byte=float(bits[0]),
        quantized_bits_per_byte=float(bits[1]),
        change=float(bits[1] / bits[0] - 1),
        change_low=low,
        change_high=high,
        kl_mean=float(kl.double().mean()),
        kl_99=float(kl.double().quantile(0.99)),
        kept=same / len(kl),
    )


def change_interval(nats: Tensor, documents: Sequence[int], seed: int = 0) -> tuple[float, float]:
    """Return where the relative change of bits a byte lies with 95 % confidence.

    Whole documents are drawn, since the sequences of one are not independent, and both models
    see the same draw, so that what makes a text hard for both cancels.

    Args:
        nats: of each sequence under the original and the quantized model, float64 [S, 2].
        documents: the number of each sequence's document.
        seed: of the draws.
    """
    units = sorted(set(documents))
    if len(units) >= FEWEST_DOCUMENTS:
        place = {unit: i for i, unit in enumerate(units)}
        index = torch.tensor([place[document] for document in documents])
        nats = torch.zeros(len(units), 2, dtype=torch.float64).index_add_(0, index, nats)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(nats), (RESAMPLES, len(nats)), generator=generator)
    sums = nats[drawn].sum(1)  # the bytes of a draw divide both alike
    changes = sums[:, 1] / sums[:, 0] - 1
    low, high = changes.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
