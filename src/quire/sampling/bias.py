"""What forbids or favours a token by its id: one number added to its logit; -inf forbids.

`allowed_token_ids` and `logit_bias` are the same at every step of a request; `min_tokens` and
bad words depend on its output so far. All of them end in one tensor of numbers to add.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quire.sampling.params import SamplingParams

ANY = -1  # in the prefix of a word: matches whatever stands there


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


def pack_words(words: Sequence[Sequence[int]], shape: tuple[int, int], vocab_size: int) -> Tensor:
    """Return token sequences as int64 [W, L], each ending in the last column.

    In front of a sequence stands `ANY`; a row without one matches always and would forbid
    token V, which does not exist.
    """
    packed = torch.full(shape, ANY)
    packed[:, -1] = vocab_size
    for row, word in zip(packed, words, strict=False):
        row[len(row) - len(word) :] = torch.tensor(word)
    return packed


def completing_tokens(
    words: Tensor, token_ids: Tensor, num_prompt_tokens: Tensor, num_tokens: Tensor, vocab_size: int
) -> Tensor:
    """Return which tokens would complete a word in the output, int64 [R, W]; V: none.

    Args:
        words: int64 [R, W, L] of `pack_words`.
        token_ids: int64 [R, T], prompt and output of each row, then anything.
        num_prompt_tokens, num_tokens: int64 [R], where the prompt ends and where the row ends.
    """
    length = words.shape[-1]
    places = num_tokens[:, None] + torch.arange(1 - length, 0, device=token_ids.device)
    recent = token_ids.gather(1, places.clamp(min=0))  # [R, L-1]
    # What the prompt says is no part of a word; no token is ANY - 1.
    recent = torch.where(places >= num_prompt_tokens[:, None], recent, ANY - 1)
    prefix, last = words[..., :-1], words[..., -1]
    matches = ((prefix == ANY) | (prefix == recent[:, None])).all(dim=-1)
    return torch.where(matches, last, vocab_size)


def bias_of_rows(
    fixed: Sequence[Tensor | None],
    forbidden: Sequence[Tensor],
    vocab_size: int,
    device: torch.device,
) -> Tensor:
    """Return what is added to the logits of R rows, float32 [R, V].

    Args:
        fixed: R of `fixed_bias`, on the device.
        forbidden: tensors int64 [R, K] of token ids; V stands for none.
    """
    # Token V, which does not exist, has a column behind the vocabulary.
    bias = torch.zeros((len(fixed), vocab_size + 1), device=device)
    for row, own in enumerate(fixed):
        if own is not None:
            bias[row, :vocab_size] = own
    for token_ids in forbidden:
        bias.scatter_(1, token_ids, -torch.inf)
    return bias[:, :vocab_size]
