"""Trains the draft on the target's distribution instead of the next token alone.

A draft's worth is how often it names the token the target would take, so its loss is the
Kullback–Leibler divergence from the target's distribution to the draft's at every position, plus
a little cross-entropy against the target's most probable token. What the target writes is not
what the corpus holds (it repeats itself more), so a part of each batch is text that the target
generated, greedily or by sampling (Zhou et al., "DistillSpec: Improving speculative decoding via
knowledge distillation", report that text written by the models themselves and the choice of
divergence both matter for acceptance).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from decoder import Decoder, generate
from torch import Tensor

PROMPT = 128  # ids of training text that a generated row begins with
ROW = 512  # length of a generated row, prompt included
GENERATED_SHARE = 0.5  # of the rows of a batch
HARD_WEIGHT = 0.3


def distillation_loss(model: Decoder, teacher: Decoder):  # type: ignore[no-untyped-def]
    """Returns batch → (training loss, KL in nats); the labels of the batch are not used."""

    def loss(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        del targets
        with torch.no_grad():
            wanted = teacher(inputs).float()
            target_log = torch.log_softmax(wanted, dim=-1)
            best = wanted.argmax(-1)
        draft_log = torch.log_softmax(model(inputs).float(), dim=-1)
        kl = (target_log.exp() * (target_log - draft_log)).sum(-1).mean()
        hard = -draft_log.gather(-1, best[..., None]).mean()
        return kl + HARD_WEIGHT * hard, kl.detach()

    return loss


def written_by(teacher: Decoder, tokens: Tensor, rows: int, seed: int) -> Tensor:
    """Returns [rows, ROW] ids: training text continued by the teacher, half of it greedily."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens) - PROMPT, (rows,), generator=generator).to(tokens.device)
    prompts = tokens[starts[:, None] + torch.arange(PROMPT, device=tokens.device)].long()
    temperature = torch.zeros(rows, device=tokens.device)
    temperature[rows // 2 :] = 1.0
    size = 2048
    parts = [
        generate(teacher, prompts[at : at + size], ROW - PROMPT, temperature[at : at + size])
        for at in range(0, rows, size)
    ]
    return torch.cat(parts)[torch.randperm(rows, generator=generator).to(tokens.device)]


def mixed_batches(
    teacher: Decoder,
    tokens: Tensor,
    corpus: Iterator[Tensor],
    length: int,
    seed: int,
    *,
    generated_rows: int = 16_384,
    share: float = GENERATED_SHARE,
) -> Iterator[Tensor]:
    """Yields corpus batches with a share of the rows replaced by generated text.

    Generated rows are joined until they fill a batch row; teacher and draft both see the joined
    row, so their distributions stay comparable.
    """
    written = written_by(teacher, tokens, generated_rows, seed)
    joined = max(1, -(-(length + 1) // ROW))
    generator = torch.Generator().manual_seed(seed + 1)
    for batch in corpus:
        count = int(len(batch) * share)
        pick = torch.randint(len(written), (count, joined), generator=generator)
        rows = written[pick.to(written.device)].flatten(1)[:, : length + 1]
        yield torch.cat((batch[count:], rows))
