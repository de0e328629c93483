"""What forbids or favours a token by its id: one number added to its logit; -inf forbids.

`allowed_token_ids` and `logit_bias` are the same at every step of a request; `min_tokens` and
bad words depend on its output so far. All of them end in one tensor of numbers to add.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from quire.sampling.params import SamplingParams
from quire.sending import send

ANY = -1  # in the prefix of a word: matches whatever stands there
Pairs = tuple[Tensor, Tensor]  # rows and token ids, int64 [S] each


def fixed_bias(params: SamplingParams, vocab_size: int) -> Tensor | None:
    """Return what a request adds to its logits at every step, float32 [V]; None: nothing."""
    if params.allowed_token_ids is None and not params.logit_bias:
        return None
    bias = torch.zeros(vocab_size)
    if params.allowed_token_ids is not None:
        bias.fill_(-torch.inf)
        bias[params.allowed_token_ids] = 0
    if params.logit_bias:
        bias[list(params.logit_bias)] += torch.tensor(list(params.logit_bias.values()))
    return bias


def pack_words(words: Sequence[Sequence[int]]) -> Tensor | None:
    """Return token sequences as int64 [W, L], `ANY` in front of the shorter ones; None: no word."""
    if not words:
        return None
    length = max(len(word) for word in words)
    return torch.tensor([[ANY] * (length - len(word)) + list(word) for word in words])


def completing_tokens(
    words: Sequence[tuple[int, Tensor]],
    token_ids: Tensor,
    num_prompt_tokens: Tensor,
    num_tokens: Tensor,
    vocab_size: int,
) -> Pairs:
    """Return which tokens would complete a word in which row's output, a pair a word; V: none.

    Args:
        words: rows with their `pack_words`, on the device.
        token_ids: int64 [R, T], prompt and output of each row, then anything.
        num_prompt_tokens, num_tokens: int64 [R], where the prompt ends and where the row ends.
    """
    device = token_ids.device
    length = max(own.shape[1] for _, own in words)
    packed = torch.cat([pad(own, (length - own.shape[1], 0), value=ANY) for _, own in words])
    rows = send(torch.tensor([row for row, own in words for _ in range(len(own))]), device)
    places = num_tokens[:, None] + torch.arange(1 - length, 0, device=device)
    recent = token_ids.gather(1, places.clamp(min=0))  # [R, L-1]
    # What the prompt says is no part of a word; no token is ANY - 1.
    recent = torch.where(places >= num_prompt_tokens[:, None], recent, ANY - 1)
    prefixes = packed[:, :-1]
    matches = ((prefixes == ANY) | (prefixes == recent[rows])).all(dim=-1)
    return rows, torch.where(matches, packed[:, -1], vocab_size)


def bias_of_rows(
    fixed: Sequence[Tensor | None],
    forbidden: Sequence[Pairs],
    vocab_size: int,
    device: torch.device,
) -> Tensor:
    """Return what is added to the logits of R rows, float32 [R, V].

    Args:
        fixed: R of `fixed_bias`, on the device.
        forbidden: pairs of row and token id, on the device; V stands for no token.
    """
    # Token V, which does not exist, has a column behind the vocabulary.
    bias = torch.zeros((len(fixed), vocab_size + 1), device=device)
    for row, own in enumerate(fixed):
        if own is not None:
            bias[row, :vocab_size] = own
    never = torch.full((1,), -torch.inf, device=device)
    for rows, token_ids in forbidden:
        bias.index_put_((rows, token_ids), never)
    return bias[:, :vocab_size]
