"""The largest logit of a row whose logits lie on several ranks.

A rank gives its best token and that one's logit as one number of 64 bits, its key: the larger key
is the larger logit, or of equal logits the lower token. The largest key of all ranks names the
token that `quire.kernels.sampling.greedy` finds in the whole row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels.runtime import jit, serves, starts_early, tl, triton
from quire.kernels.sampling import NO_TOKEN, largest_of_parts

_LOW = 2**31 - 1  # the low half holds this less the token


def best_keys(logits: Tensor, first: int) -> Tensor:
    """Return the key of each row's largest logit, int64 [R].

    Args:
        logits: [R, own], of any floating dtype, of tokens `first`, `first` + 1, and so on.
        first: below 2^31 - own.
    """
    return best_keys_triton(logits, first) if serves(logits) else best_keys_torch(logits, first)


def best_tokens(keys: Tensor) -> Tensor:
    """Return the token of each row's largest key, int64 [R], from keys of N ranks, [N, R].

    `NO_TOKEN` stands for a row with NaN or +inf in it, or with nothing above -inf.
    """
    return best_tokens_triton(keys) if serves(keys) else best_tokens_torch(keys)


def best_keys_torch(logits: Tensor, first: int) -> Tensor:
    """`best_keys` in torch."""
    values = logits.float().nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    largest, token = (values + 0.0).max(dim=-1)  # which makes -0 the 0 that it equals
    bits = largest.view(torch.int32).long()
    # Of negative floats the larger has the smaller bits: all but the sign are turned over.
    rising = torch.where(bits < 0, bits ^ _LOW, bits)
    return (rising << 32) | (_LOW - first - token)


def best_tokens_torch(keys: Tensor) -> Tensor:
    """`best_tokens` in torch."""
    best = keys.amax(dim=0)
    rising = best >> 32
    bits = torch.where(rising < 0, rising ^ _LOW, rising)
    value = bits.int().view(torch.float32)
    return torch.where(value.isfinite(), _LOW - (best & 0xFFFF_FFFF), NO_TOKEN)


def best_keys_triton(logits: Tensor, first: int) -> Tensor:
    """`best_keys` in two kernels, as `greedy`."""
    parts = largest_of_parts(logits)
    num_rows, num_parts = parts.grid
    keys = logits.new_empty(num_rows, dtype=torch.int64)
    _best_key_kernel[(num_rows,)](
        parts.values,
        parts.token_ids,
        keys,
        first=first,
        num_parts=num_parts,
        block=triton.next_power_of_2(num_parts),
        early=parts.early,
        num_warps=1,
        launch_pdl=parts.early,
    )
    return keys


def best_tokens_triton(keys: Tensor) -> Tensor:
    """`best_tokens` in one kernel; keys are contiguous."""
    num_ranks, num_rows = keys.shape
    tokens = keys.new_empty(num_rows)
    early = starts_early(keys)
    _best_token_kernel[(num_rows,)](
        keys,
        tokens,
        num_rows,
        num_ranks=num_ranks,
        block=triton.next_power_of_2(num_ranks),
        early=early,
        num_warps=1,
        launch_pdl=early,
    )
    return tokens


@jit
def _best_key_kernel(
    values,
    token_ids,
    keys,
    first: tl.constexpr,
    num_parts: tl.constexpr,
    block: tl.constexpr,
    early: tl.constexpr,
):
    """One program a row; parts are in the order of their tokens."""
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0)
    part = tl.arange(0, block)
    inside = part < num_parts
    value = tl.load(values + row * num_parts + part, inside, other=-float("inf"))
    token = tl.load(token_ids + row * num_parts + part, inside, other=0)
    bits = (value + 0.0).to(tl.int32, bitcast=True)  # of 0 for -0, which equals it
    rising = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    key = (rising << 32) | (0x7FFFFFFF - first - token).to(tl.int64)
    tl.store(keys + row, tl.max(tl.where(inside, key, -(2**63))))


@jit
def _best_token_kernel(
    keys, tokens, num_rows, num_ranks: tl.constexpr, block: tl.constexpr, early: tl.constexpr
):
    """One program a row."""
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0)
    rank = tl.arange(0, block)
    key = tl.max(tl.load(keys + rank * num_rows + row, rank < num_ranks, other=-(2**63)))
    rising = (key >> 32).to(tl.int32)
    bits = tl.where(rising < 0, rising ^ 0x7FFFFFFF, rising)
    value = bits.to(tl.float32, bitcast=True)
    token = 0x7FFFFFFF - (key & 0xFFFFFFFF)
    tl.store(tokens + row, tl.where(tl.abs(value) < float("inf"), token, -1))  # NO_TOKEN
