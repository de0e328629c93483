"""The few tokens of a row that top-k, top-p and min-p may keep, found in one pass over it.

A row's logits are cut into groups. If the k-th largest of the groups' maxima is t, then at least k
logits are t or more, so that the k largest are among these; and they lie in the groups whose
maximum is t or more. Many programs share the pass that finds the maxima. Then one program a row
looks into the groups that count and lists what is t or more: of random logits and k = 50 about
50 of 151,936. The list is what is searched for the cutoff, and what is drawn from.

Top-p alone names no k: a program lists what is no less than the 256th largest maximum and sees
whether that holds enough probability. How much the row holds is known from the first pass. If it is
not enough, or if a list would be long, there is none, and the row itself is searched. Here are the
first pass and the data; the list is made in `quire.kernels.listing`.

The maxima are the delegates of Dr. Top-k (Gaihre et al. 2021, arXiv 2109.08219).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quire.kernels.runtime import jit, starts_early, tl, triton


@dataclass(frozen=True)
class ListTuning:
    """Sizes of the first pass and of a list."""

    part: int = 2048  # logits that a program of the first pass looks at
    group: int = 64
    few: int = 256  # groups that top-p alone looks into
    most: int = 1024  # groups worth looking into at all
    capacity: int = 4096  # candidates


LISTS = ListTuning()


@dataclass(frozen=True)
class Groups:
    """What the first pass finds of each row that is cut off; other rows are left unwritten."""

    maxima: Tensor  # float32 [R, G]: each group's largest logit, +inf where one is NaN
    tops: Tensor  # float32 [R, P]: each part's
    masses: Tensor  # float32 [R, G]: Σ exp((logit - top of the part) / T), where top-p is alone
    chosen: Tensor  # int32 [R, G]: room for the groups that a program looks into


@dataclass(frozen=True)
class Candidates:
    """A list a row of all tokens that may stay, in the order of their ids."""

    logits: Tensor  # [R, capacity], of the dtype of the rows
    token_ids: Tensor  # int32 [R, capacity]
    counts: Tensor  # int32 [R]: how many; 0 where there is no list, and all may stay

    @property
    def capacity(self) -> int:
        """The most candidates of a row."""
        return self.logits.shape[1]

    @classmethod
    def allocate(cls, logits: Tensor, tuning: ListTuning) -> Candidates:
        """Make room for the candidates of rows of logits [R, V]."""
        num_rows, vocab_size = logits.shape
        size = num_rows, min(tuning.capacity, vocab_size)
        return cls(
            logits.new_empty(size),
            logits.new_empty(size, dtype=torch.int32),
            logits.new_empty(num_rows, dtype=torch.int32),
        )


def find_groups(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    tuning: ListTuning,
) -> Groups:
    """Run the first pass; arguments as those of `quire.kernels.sampling.sample`."""
    num_rows, vocab_size = logits.shape
    num_parts = triton.cdiv(vocab_size, tuning.part)
    num_groups = num_parts * (tuning.part // tuning.group)
    groups = Groups(
        maxima=temperature.new_empty(num_rows, num_groups),
        tops=temperature.new_empty(num_rows, num_parts),
        masses=temperature.new_empty(num_rows, num_groups),
        chosen=logits.new_empty(num_rows, num_groups, dtype=torch.int32),
    )
    early = starts_early(logits)
    _groups_kernel[(num_rows, num_parts)](
        logits,
        logits.stride(0),
        temperature,
        top_k,
        top_p,
        min_p,
        groups.maxima,
        groups.tops,
        groups.masses,
        vocab_size=vocab_size,
        group=tuning.group,
        block=tuning.part,
        early=early,
        launch_pdl=early,
    )
    return groups


@jit
def is_cut(temperature, top_k, top_p, min_p):
    """Whether a row's token is drawn, and not from all tokens."""
    return (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0))


@partial(jit, any_alignment=("temperatures", "top_ks", "top_ps", "min_ps", "tops"))
def _groups_kernel(
    logits,
    stride,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    maxima,
    tops,
    masses,
    vocab_size: tl.constexpr,
    group: tl.constexpr,
    block: tl.constexpr,
    early: tl.constexpr,
):
    """One program a part of a row."""
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    index = tl.program_id(0)
    temperature = tl.load(temperatures + index)
    top_k = tl.load(top_ks + index)
    min_p = tl.load(min_ps + index)
    if is_cut(temperature, top_k, tl.load(top_ps + index), min_p):
        one = tl.arange(0, block // group)
        token = tl.program_id(1) * block + one[:, None] * group + tl.arange(0, group)[None, :]
        place = logits + index.to(tl.int64) * stride + token
        logit = tl.load(place, token < vocab_size, other=-float("inf")).to(tl.float32)
        # The maximum of numbers passes over NaN; that of infinity does not.
        logit = tl.where(logit == logit, logit, float("inf"))
        maximum = tl.max(logit, 1)
        top = tl.max(maximum)
        part = index * tl.num_programs(1) + tl.program_id(1)
        tl.store(maxima + part * (block // group) + one, maximum)
        tl.store(tops + part, top)
        if (top_k <= 0) & (min_p <= 0):
            scale = 1.4426950408889634 / tl.maximum(temperature, 1e-30)
            weight = tl.where(logit > -float("inf"), tl.exp2((logit - top) * scale), 0.0)
            tl.store(masses + part * (block // group) + one, tl.sum(weight, 1))
