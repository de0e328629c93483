"""The next token of each row, chosen on the device without a sort and without the host.

Top-k, top-p and min-p are a cutoff a row (`quire.kernels.cutoff`). The draw is a race of all
tokens above it (`quire.sampling.noise`), run by many programs at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels.cutoff import row_cutoffs
from quire.kernels.runtime import jit, serves, starts_early, tl, triton
from quire.sampling.noise import Purpose, exponential
from quire.sampling.processors import apply_min_p, apply_temperature, apply_top_k_top_p


def greedy(logits: Tensor) -> Tensor:
    """Return the id of each row's largest logit, the lowest where several are; int64 [R]."""
    return greedy_triton(logits) if serves(logits) else greedy_torch(logits)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """Draw a token for each row; returns int64 [R].

    Logits are divided by the temperature, then min-p, top-k and top-p remove tokens in this
    order, as in `quire.sampling.processors`; the draw is `quire.sampling.noise`'s race.

    Args:
        logits: [R, V], of any floating dtype; the arithmetic is float32.
        temperature: float32 [R]; 0 takes the largest logit, whatever the rest says.
        top_k: int64 [R], 0 keeps all; of equal logits at the edge the lower ids stay.
        top_p: float32 [R], 1 keeps all.
        min_p: float32 [R], 0 keeps all.
        seeds, positions: int64 [R], the keys of the noise.
    """
    choose = sample_triton if serves(logits) else sample_torch
    return choose(logits, temperature, top_k, top_p, min_p, seeds, positions)


def greedy_torch(logits: Tensor) -> Tensor:
    """`greedy` in torch."""
    return logits.argmax(dim=-1)


def sample_torch(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """`sample` in torch, with a sort."""
    largest = logits.argmax(dim=-1)
    scaled = apply_min_p(apply_temperature(logits.float(), temperature), min_p)
    kept = apply_top_k_top_p(scaled, top_k, top_p)
    race = exponential(seeds, positions, Purpose.TOKEN, width=logits.shape[-1])
    # argmax(p / E), in logarithms so that a low temperature cannot underflow.
    drawn = (kept - race.log()).argmax(dim=-1)
    return torch.where(temperature == 0, largest, drawn)


def greedy_triton(logits: Tensor) -> Tensor:
    """`greedy` in two kernels: the best of each part of a row, then the best of those."""
    parts = _Parts(logits)
    _largest_kernel[parts.grid](
        logits,
        logits.stride(0),
        parts.values,
        parts.token_ids,
        vocab_size=logits.shape[1],
        block=_PART,
        early=parts.early,
        launch_pdl=parts.early,
    )
    return parts.best()


def sample_triton(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """`sample` in three kernels: where each row is cut off, the race, the winner."""
    parts = _Parts(logits)
    cutoff, last_tie = row_cutoffs(logits, temperature, top_k, top_p, min_p)
    _race_kernel[parts.grid](
        logits,
        logits.stride(0),
        temperature,
        cutoff,
        last_tie,
        seeds.contiguous(),
        positions.contiguous(),
        parts.values,
        parts.token_ids,
        vocab_size=logits.shape[1],
        purpose=int(Purpose.TOKEN),
        block=_PART,
        early=parts.early,
        launch_pdl=parts.early,
    )
    return parts.best()


_PART = 2048  # logits a program looks at


class _Parts:
    """The best value and token of each part of each row, and how to choose among them."""

    def __init__(self, logits: Tensor) -> None:
        num_rows, vocab_size = logits.shape
        self.grid = (num_rows, triton.cdiv(vocab_size, _PART))
        self.values = logits.new_empty(self.grid, dtype=torch.float32)
        self.token_ids = logits.new_empty(self.grid, dtype=torch.int32)
        self.early = starts_early(logits)

    def best(self) -> Tensor:
        """Return each row's best token, int64 [R]."""
        num_rows, num_parts = self.grid
        tokens = self.values.new_empty(num_rows, dtype=torch.int64)
        _best_kernel[(num_rows,)](
            self.values,
            self.token_ids,
            tokens,
            num_parts=num_parts,
            block=triton.next_power_of_2(num_parts),
            early=self.early,
            num_warps=1,
            launch_pdl=self.early,
        )
        return tokens


@jit
def _largest_kernel(
    logits,
    stride,
    values,
    token_ids,
    vocab_size: tl.constexpr,
    block: tl.constexpr,
    early: tl.constexpr,
):
    """One program a part of a row."""
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(1) * block + tl.arange(0, block)
    row = logits + tl.program_id(0).to(tl.int64) * stride
    score = tl.load(row + token, token < vocab_size, other=-float("inf")).to(tl.float32)
    _store_best(score, token, values, token_ids, vocab_size)


@jit
def _race_kernel(
    logits,
    stride,
    temperatures,
    cutoffs,
    last_ties,
    seeds,
    positions,
    values,
    token_ids,
    vocab_size: tl.constexpr,
    purpose: tl.constexpr,
    block: tl.constexpr,
    early: tl.constexpr,
):
    """argmax(logit / T - log E) over the tokens that stay, in one part of a row."""
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0)
    token = tl.program_id(1) * block + tl.arange(0, block)
    place = logits + row.to(tl.int64) * stride + token
    score = tl.load(place, token < vocab_size, other=-float("inf")).to(tl.float32)
    temperature = tl.load(temperatures + row)
    if temperature > 0:
        cutoff = tl.load(cutoffs + row)
        stays = (score > cutoff) | ((score == cutoff) & (token <= tl.load(last_ties + row)))
        race = _exponential(tl.load(seeds + row), tl.load(positions + row), purpose, token)
        score = score / tl.maximum(temperature, 1e-30) - tl.log(race)
        score = tl.where(stays, score, -float("inf"))
    _store_best(score, token, values, token_ids, vocab_size)


@jit
def _store_best(score, token, values, token_ids, vocab_size: tl.constexpr):
    best = tl.max(score)
    place = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(values + place, best)
    tl.store(token_ids + place, tl.min(tl.where(score == best, token, vocab_size)))


@jit
def _best_kernel(
    values, token_ids, tokens, num_parts: tl.constexpr, block: tl.constexpr, early: tl.constexpr
):
    """One program a row; parts are in the order of their tokens."""
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0)
    part = tl.arange(0, block)
    value = tl.load(values + row * num_parts + part, part < num_parts, other=-float("inf"))
    first = tl.min(tl.where(value == tl.max(value), part, block))
    tl.store(tokens + row, tl.load(token_ids + row * num_parts + first).to(tl.int64))


@jit
def _mix(x):
    """`noise.mix` on the uint32 it is about."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@jit
def _exponential(seed, position, purpose: tl.constexpr, token):
    """`noise.exponential` of one row: the same bits, up to the rounding of its logarithm."""
    key = _mix(seed.to(tl.uint32) ^ 0x9E3779B9)
    key = _mix(key ^ (seed >> 32).to(tl.uint32) ^ 0x7F4A7C15)
    key = _mix(key + position.to(tl.uint32) * 0x9E3779B1)
    key = _mix(key + purpose)
    bits = _mix(_mix(key + token.to(tl.uint32) * 0x9E3779B1) ^ key)
    uniform = tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 1 - 2.0**-24)
    # log1p(-u), which keeps its digits for a small u: what rounding took from 1 - u is given
    # back by the quotient.
    rest = 1 - uniform
    return tl.where(rest == 1, uniform, tl.log(rest) * (uniform / (rest - 1)))
