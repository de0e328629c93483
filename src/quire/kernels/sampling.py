"""The next token of each row, chosen on the device without a sort and without the host.

Top-k, top-p and min-p are a cutoff a row (`quire.kernels.cutoff`). The draw is a race of all
tokens above it (`quire.kernels.noise`), run by many programs at once.

A row of logits may hold no distribution: one is NaN or +inf (a model's arithmetic overflowed),
or all are -inf (every token is forbidden). No token of the vocabulary would be right then, so
the row's is `NO_TOKEN`; whoever reads tokens on the host raises the error.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from quire.kernels.cutoff import apply_min_p, apply_top_k_top_p, row_cutoffs
from quire.kernels.noise import Purpose, exponential, exponential_of_row
from quire.kernels.runtime import jit, serves, starts_early, tl, triton

NO_TOKEN = -1


def greedy(logits: Tensor) -> Tensor:
    """Return the id of each row's largest logit, the lowest where several are; int64 [R].

    `NO_TOKEN` stands for a row with NaN or +inf in it, or with nothing above -inf.
    """
    return greedy_triton(logits) if serves(logits) else greedy_torch(logits)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """Draw a token for each row; returns int64 [R].

    Logits are divided by the temperature, then min-p, top-k and top-p remove tokens in this
    order; the draw is `quire.kernels.noise`'s race. Rows without a token are `greedy`'s.

    Args:
        logits: [R, V], of any floating dtype; the arithmetic is float32.
        temperature: float32 [R]; 0 takes the largest logit, whatever the rest says.
        top_k: int64 [R], 0 keeps all; of equal logits at the edge the lower ids stay.
        top_p: float32 [R], 1 keeps all.
        min_p: float32 [R], 0 keeps all. Each of the three may be None: it keeps all.
        seeds, positions: int64 [R], the keys of the noise.
    """
    choose = sample_triton if serves(logits) else sample_torch
    return choose(logits, temperature, top_k, top_p, min_p, seeds, positions)


def greedy_torch(logits: Tensor) -> Tensor:
    """`greedy` in torch."""
    tokens = logits.argmax(dim=-1)  # of NaN, where there is one
    largest = logits.gather(-1, tokens[:, None])[:, 0]
    return torch.where(largest.isfinite(), tokens, NO_TOKEN)


def sample_torch(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """`sample` in torch, with a sort."""
    logits = logits.float()
    scaled = _cut_off(logits, temperature, top_k, top_p, min_p)
    race = exponential(seeds, positions, Purpose.TOKEN, width=logits.shape[-1])
    # argmax(p / ε), in logarithms so that a low temperature cannot underflow.
    drawn = scaled - race.log()
    return greedy_torch(torch.where(temperature[:, None] == 0, logits, drawn))


def probabilities(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
) -> Tensor:
    """Return what `sample` draws from, float32 [R, V]; a greedy row holds a single 1.

    A row without a token has no positive number.
    """
    logits = logits.float()
    drawn = _cut_off(logits, temperature, top_k, top_p, min_p).softmax(dim=-1)
    best = greedy_torch(logits)[:, None]
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(temperature[:, None] == 0, (ids == best).float(), drawn)


def _cut_off(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
) -> Tensor:
    """Return logits over the temperature, and -inf where a token is removed."""
    scaled = apply_temperature(logits, temperature)
    if min_p is not None:
        scaled = apply_min_p(scaled, min_p)
    if top_k is not None or top_p is not None:
        scaled = apply_top_k_top_p(scaled, top_k, top_p)
    return scaled


def apply_temperature(logits: Tensor, temperature: Tensor) -> Tensor:
    """Divide each row by its temperature [R]; greedy rows (0) are left alone."""
    # Below 1e-30 a quotient may overflow to inf, the same for several tokens; at it,
    # any two float32 logits that differ are already worlds apart.
    divisor = torch.where(temperature == 0, 1.0, temperature.clamp(min=1e-30))
    return logits / divisor[:, None]


def greedy_triton(logits: Tensor) -> Tensor:
    """`greedy` in two kernels: the best of each part of a row, then the best of those."""
    return largest_of_parts(logits).best()


def largest_of_parts(logits: Tensor) -> Parts:
    """Return the largest logit of each part of each row of logits [R, V]."""
    parts = Parts(logits)
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
    return parts


def sample_triton(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """`sample` in four kernels: where each row is cut off (two), the race, the winner."""
    if top_k is None:
        top_k = torch.zeros_like(seeds)
    if top_p is None:
        top_p = torch.ones_like(temperature)
    if min_p is None:
        min_p = torch.zeros_like(temperature)
    cutoffs = row_cutoffs(logits, temperature, top_k, top_p, min_p)
    candidates = cutoffs.candidates
    parts = Parts(logits)
    _race_kernel[parts.grid](
        logits,
        logits.stride(0),
        temperature,
        cutoffs.logits,
        cutoffs.last_ties,
        candidates.logits,
        candidates.token_ids,
        candidates.counts,
        seeds.contiguous(),
        positions.contiguous(),
        parts.values,
        parts.token_ids,
        vocab_size=logits.shape[1],
        capacity=candidates.capacity,
        purpose=int(Purpose.TOKEN),
        block=_PART,
        early=parts.early,
        launch_pdl=parts.early,
    )
    return parts.best()


_PART = 2048  # logits a program looks at


class Parts:
    """The best value and token of each part of each row, and how to choose among them."""

    def __init__(self, logits: Tensor) -> None:
        """Make room for the parts of rows of logits [R, V]."""
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
    # The maximum of numbers passes over NaN; that of infinity does not.
    score = tl.where(score == score, score, float("inf"))
    _store_best(score, token, values, token_ids, vocab_size)


@partial(
    jit, any_alignment=("temperatures", "cutoffs", "last_ties", "counts", "seeds", "positions")
)
def _race_kernel(
    logits,
    stride,
    temperatures,
    cutoffs,
    last_ties,
    candidates,
    candidate_ids,
    counts,
    seeds,
    positions,
    values,
    token_ids,
    vocab_size: tl.constexpr,
    capacity: tl.constexpr,
    purpose: tl.constexpr,
    block: tl.constexpr,
    early: tl.constexpr,
):
    """argmax(logit / T - log E) over the tokens that stay, in one part of a row or of its list."""
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0)
    first = tl.program_id(1) * block
    place = first + tl.arange(0, block)
    count = tl.load(counts + row)
    if first < tl.where(count > 0, count, vocab_size):
        token = place
        if count > 0:
            listed = row.to(tl.int64) * capacity + place
            token = tl.load(candidate_ids + listed, place < count, other=vocab_size)
            score = tl.load(candidates + listed, place < count, other=-float("inf"))
        else:
            source = logits + row.to(tl.int64) * stride + token
            score = tl.load(source, token < vocab_size, other=-float("inf"))
        score = score.to(tl.float32)
        score = tl.where(score == score, score, float("inf"))  # NaN, as in `_largest_kernel`
        temperature = tl.load(temperatures + row)
        if temperature > 0:
            cutoff = tl.load(cutoffs + row)
            ties = (score == cutoff) & (token <= tl.load(last_ties + row))
            stays = (score > cutoff) | ties | (score == float("inf"))
            seed, position = tl.load(seeds + row), tl.load(positions + row)
            race = exponential_of_row(seed, position, purpose, token)
            score = score / tl.maximum(temperature, 1e-30) - tl.log(race)
            score = tl.where(stays, score, -float("inf"))
        _store_best(score, token, values, token_ids, vocab_size)
    else:  # behind the list; the token of a part that holds none is not looked at
        tl.store(values + row * tl.num_programs(1) + tl.program_id(1), -float("inf"))


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
    best = tl.max(value)
    first = tl.min(tl.where(value == best, part, block))
    token = tl.load(token_ids + row * num_parts + first).to(tl.int64)
    tl.store(tokens + row, tl.where(tl.abs(best) < float("inf"), token, -1))  # NO_TOKEN
