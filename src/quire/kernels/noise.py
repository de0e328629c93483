"""Random numbers that depend on what they are for, never on where they are computed.

A draw is keyed by (seed, position, purpose): the same request gives the same tokens
alone, in a batch, in another row, or after a preemption. A stateful generator cannot do
that, since its next number depends on how many were taken before; so quire hashes the
key instead. The hash is built of 32-bit multiplications and shifts, which torch on any
device and a Triton kernel compute to the same bits.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from quire.kernels.runtime import jit, tl

_MASK = 0xFFFF_FFFF


class Purpose(IntEnum):
    """What a draw decides; two decisions at one position must not share their noise."""

    TOKEN = 1  # the next token
    ACCEPT = 2  # whether a draft token is accepted
    RESIDUAL = 3  # the token that replaces a rejected draft
    DRAFT = 4  # a draft of rejection sampling


def mix(x: Tensor) -> Tensor:
    """Scramble 32-bit values held in int64, one to one (MurmurHash3's finalizer).

    The products pass 2^63 and wrap around, which leaves their low 32 bits right.
    """
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x85EB_CA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2_AE35) & _MASK
    return x ^ (x >> 16)


def uniform(seeds: Tensor, positions: Tensor, purpose: Purpose, width: int) -> Tensor:
    """Return `width` numbers in (0, 1) for each (seed, position), float32 [rows, width].

    Args:
        seeds: int64 [rows].
        positions: int64 [rows], the position of the token being chosen.
        purpose: keeps the draws of one position apart.
        width: numbers a row, at token id 0 … width-1.
    """
    key = mix(seeds ^ 0x9E37_79B9)
    key = mix(key ^ (seeds >> 32) ^ 0x7F4A_7C15)
    key = mix(key + positions * 0x9E37_79B1)
    key = mix(key + int(purpose))
    lanes = torch.arange(width, device=seeds.device, dtype=torch.int64)
    bits = mix(mix(key[:, None] + lanes * 0x9E37_79B1) ^ key[:, None])
    # Half a step above 0 keeps log(0) out; near 0 float32 resolves all 2^32 values.
    return ((bits.to(torch.float32) + 0.5) * 2.0**-32).clamp_(max=1 - 2.0**-24)


def exponential(seeds: Tensor, positions: Tensor, purpose: Purpose, width: int) -> Tensor:
    """Return exponential variates of rate 1, float32 [rows, width], keyed like `uniform`.

    The smallest of independent exponentials with rates p_i is number i with probability
    p_i / Σp. So `argmax(p / exponential)` draws a token from unnormalised p without a
    sum or a search: the Gumbel-max trick (Kool et al. 2019), one logarithm
    earlier.
    """
    return -torch.log1p(-uniform(seeds, positions, purpose, width))


@jit
def exponential_of_row(seed, position, purpose: tl.constexpr, token):
    """`exponential` of one row, in a kernel: the same bits, up to the rounding of its logarithm."""
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


@jit
def _mix(x):
    """`mix` on the uint32 it is about."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)
