"""The sum over ranks, the addition to the residual stream and RMSNorm, in one kernel.

A decode step sums a few rows after every half layer, and a norm follows each sum. As kernels of
their own they are three trips through a GPU's launch queue, and the sum keeps the product behind it
from fetching its weight. Here a program has one row: it writes its rank's numbers straight into
every peer's memory, waits for theirs in its own, and goes on to the norm with the sum in registers.

There are two ways to tell a number that has come from one that has not. A short message has a
count beside every number, in one word of 64 bits that arrives whole, so no number is waited for
twice (NCCL's LL protocol does so, and moves twice the bytes). A long one is written as it is, and
one count a row follows behind a fence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.kernels.runtime import jit, starts_early, tl, triton


@dataclass(frozen=True)
class Mailbox:
    """Memory of a rank that its peers write to, of the same layout on every rank.

    `words` is 64-bit [2, P, few_rows, size / 2], `rows` 32-bit [2, P, most_rows, size / 2] and
    `flags` 32-bit [2, P, most_rows], for the P peers in the order of their ranks. The two halves
    are used in turn: a rank that writes for the n-th time has been heard by all peers for the
    (n - 1)-th, which they sent when they had read all of the (n - 2)-th.
    """

    rank: int
    size: int  # ranks
    few_rows: int
    most_rows: int
    addresses: Tensor  # int64 [size]: of each rank's memory, on this rank's device
    counts: Tensor  # int32 [most_rows]: how often each row was summed, on this rank's device
    memory: Tensor  # this rank's own; it lives as long as the mailbox

    @staticmethod
    def num_bytes(size: int, few_rows: int, most_rows: int, columns: int) -> int:
        """Return how much memory each of `size` ranks needs, for rows of 16-bit numbers."""
        half = columns // 2
        return 2 * (size - 1) * (few_rows * half * 8 + most_rows * (half * 4 + 4))


def summed_add_rms_norm(
    part: Tensor, residual: Tensor, weight: Tensor, eps: float, mailbox: Mailbox
) -> tuple[Tensor, Tensor]:
    """Return the norm of residual and the sum of all ranks' parts, and that sum.

    Every rank adds in the order of the ranks and has the same bits. The sum takes the residual's
    place in memory.

    Args:
        part: [num_tokens, size], of 16-bit numbers, contiguous; at most `most_rows` tokens.
        residual: as part, and the same on all ranks.
        weight: [size], of the same dtype; size is even.
        eps: added to the mean square.
        mailbox: this rank's, and those of its peers.
    """
    num_rows, size = part.shape
    out = torch.empty_like(part)
    block = max(triton.next_power_of_2(size // 2), 128)  # a thread awaits four words at once
    packed = num_rows <= mailbox.few_rows
    early = starts_early(part)
    _summed_norm_kernel[(num_rows,)](
        part,
        residual,
        weight,
        out,
        eps,
        mailbox.addresses,
        mailbox.counts,
        rank=mailbox.rank,
        num_ranks=mailbox.size,
        few_rows=mailbox.few_rows,
        most_rows=mailbox.most_rows,
        half=size // 2,
        block=block,
        packed=packed,
        early=early,
        num_warps=num_warps(block, packed=packed),
        launch_pdl=early,
    )
    return out, residual


def num_warps(block: int, *, packed: bool) -> int:
    """Return the warps of a program that sums so many pairs.

    With a count beside each number all of a row should be on its way at once: 8 KB take 3.2 us
    with 16 warps and 3.7 with 8, on two H200s. Behind a fence 8 are as good, and faster from 256
    rows on.
    """
    return min(max(block // 128, 1), 16 if packed else 8)


@jit
def _pairs(numbers):
    return numbers.to(tl.pointer_type(tl.uint32))


@jit
def _low(pair, dtype: tl.constexpr):
    return (pair & 0xFFFF).to(tl.uint16).to(dtype, bitcast=True).to(tl.float32)


@jit
def _high(pair, dtype: tl.constexpr):
    return (pair >> 16).to(tl.uint16).to(dtype, bitcast=True).to(tl.float32)


@jit
def _pair(low, high, dtype: tl.constexpr):
    low = low.to(dtype).to(tl.uint16, bitcast=True).to(tl.uint32)
    return low | (high.to(dtype).to(tl.uint16, bitcast=True).to(tl.uint32) << 16)


@jit
def _box(address, type: tl.constexpr):
    return tl.multiple_of(address.to(tl.pointer_type(type)), 16)


@jit
def _await_words(place, count):
    """Return the low halves of 64-bit words, once each one's high half is its count."""
    return tl.inline_asm_elementwise(
        """{
        .reg .pred p;
        .reg .b32 a, b, c, d;
        AGAIN:
        ld.volatile.global.v2.b32 {$0, a}, [$4];
        ld.volatile.global.v2.b32 {$1, b}, [$5];
        ld.volatile.global.v2.b32 {$2, c}, [$6];
        ld.volatile.global.v2.b32 {$3, d}, [$7];
        setp.ne.b32 p, a, $8;
        setp.ne.or.b32 p, b, $9, p;
        setp.ne.or.b32 p, c, $10, p;
        setp.ne.or.b32 p, d, $11, p;
        @p bra AGAIN;
        }""",
        "=&r,=&r,=&r,=&r,l,l,l,l,r,r,r,r",
        [place, count],
        dtype=tl.uint32,
        is_pure=False,
        pack=4,
    )


@jit
def _await_count(place, count):
    """Return once a count has come, with all that its sender wrote before."""
    return tl.inline_asm_elementwise(
        """{
        .reg .pred p;
        AGAIN:
        ld.acquire.sys.global.b32 $0, [$1];
        setp.ne.b32 p, $0, $2;
        @p bra AGAIN;
        }""",
        "=&r,l,r",
        [place, count],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@jit
def _summed_norm_kernel(
    part,
    residual,
    weight,
    out,
    eps,
    addresses,
    counts,
    rank: tl.constexpr,
    num_ranks: tl.constexpr,
    few_rows: tl.constexpr,
    most_rows: tl.constexpr,
    half: tl.constexpr,
    block: tl.constexpr,
    packed: tl.constexpr,
    early: tl.constexpr,
):
    """One program a row; two numbers, 32 bits, are handled together."""
    row = tl.program_id(0)
    column = tl.arange(0, block)
    inside = column < half
    dtype: tl.constexpr = part.dtype.element_ty
    scale = tl.load(_pairs(weight) + column, inside, other=0)
    owners = ()
    for owner in tl.static_range(num_ranks):
        owners += (tl.load(addresses + owner),)  # type: ignore[assignment]
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    count = tl.load(counts + row) + 1
    turn = count & 1
    at = row.to(tl.int64) * half + column
    own = tl.load(_pairs(part) + at, inside, other=0)
    peers: tl.constexpr = num_ranks - 1
    words: tl.constexpr = 2 * peers * few_rows * half  # of 64 bits, in front of the rows
    pairs: tl.constexpr = 2 * words + 2 * peers * most_rows * half  # of 32, in front of the flags
    # docs: counts begin
    mark = count.to(tl.uint32, bitcast=True).to(tl.uint64) << 32
    for peer in tl.static_range(num_ranks):
        if peer != rank:
            here = rank - (rank > peer)  # among the peer's peers
            place = turn * peers + here
            if packed:
                letter = _box(owners[peer], tl.uint64) + place.to(tl.int64) * few_rows * half
                tl.store(letter + at, own.to(tl.uint64) | mark, inside)
            else:
                letter = _box(owners[peer], tl.uint32) + 2 * words
                tl.store(letter + place.to(tl.int64) * most_rows * half + at, own, inside)
    if not packed:
        tl.debug_barrier()  # all threads' numbers go before the count
        for peer in tl.static_range(num_ranks):
            if peer != rank:
                here = rank - (rank > peer)
                flag = _box(owners[peer], tl.int32) + pairs
                flag += (turn * peers + here) * most_rows + row
                tl.atomic_xchg(flag, count, sem="release", scope="sys")
    # docs: counts end
    before = tl.load(_pairs(residual) + at, inside, other=0)
    low = tl.zeros((block,), tl.float32)
    high = tl.zeros((block,), tl.float32)
    for source in tl.static_range(num_ranks):
        if source == rank:
            came = own
        else:
            there = source - (source > rank)
            place = turn * peers + there
            if packed:
                box = _box(owners[rank], tl.uint64) + place.to(tl.int64) * few_rows * half
                # Columns past the end wait for the first one's word.
                letter = box + tl.where(inside, at, row.to(tl.int64) * half)
                came = _await_words(letter, tl.zeros((block,), tl.int32) + count)
                came = tl.where(inside, came, 0)
            else:
                flag = _box(owners[rank], tl.int32) + pairs
                flag += (turn * peers + there) * most_rows + row
                _await_count(flag, count)
                letter = _box(owners[rank], tl.uint32) + 2 * words
                letter += place.to(tl.int64) * most_rows * half + at
                came = tl.load(letter, inside, other=0, volatile=True)
        low += _low(came, dtype)
        high += _high(came, dtype)
    low += _low(before, dtype)
    high += _high(before, dtype)
    tl.store(_pairs(residual) + at, _pair(low, high, dtype), inside)
    norm = tl.rsqrt(tl.sum(low * low + high * high) / (2 * half) + eps)
    low *= norm * _low(scale, dtype)
    high *= norm * _high(scale, dtype)
    tl.store(_pairs(out) + at, _pair(low, high, dtype), inside)
    tl.store(counts + row, count)
