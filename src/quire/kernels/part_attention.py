"""Attention to a part of the keys, and the merging of parts: a softmax in pieces.

Who has only some of a query's keys can give the softmax over those, and with it the logarithm of
the sum of its exponentials, the *log-sum-exp*. Two such results make that over the keys of both:
each weighs as much as its exponentials add up to (ring attention, Liu et al. 2023). A part without
keys has a log-sum-exp of -inf, and weighs nothing. Results of parts are kept in float32, whatever
the queries are, so that many of them are rounded once. See the chapter "Parallelism".
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.errors import QuireError
from quire.kernels.prefill import prefill, tokens_per_tile
from quire.kernels.runtime import jit, serves, tl, triton
from quire.kernels.tuning import PrefillTuning, tuning
from quire.kv.batch import AttentionBatch

MERGED_ROWS = 16  # pairs of token and head that a program merges


def attend_part(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attend with queries to one part of their keys.

    Args:
        q: [num_queries, num_heads, head_size]; tokens may be strided.
        k: [num_keys, num_kv_heads, head_size]; tokens may be strided. There may be no key.
        v: the same shape and strides.
        scale: of the scores.
        causal: query i sees the keys 0 … i, of as many as there are queries; else all of them.

    Returns:
        The attention, float32 of q's shape, 0 where a query sees no key; and the log-sum-exp of
        each query's and head's scores, float32 [num_queries, num_heads], -inf where it sees none.

    Raises:
        QuireError: causal, and not as many keys as queries; heads that do not share KV heads
            evenly; on a GPU, a head size that the kernel does not serve.
    """
    if causal and len(k) != len(q):
        raise QuireError(
            f"causal attention to a part takes one key a query, not {len(k)} keys for {len(q)} "
            "queries: cut off what is no query's own part, and attend to it with causal=False"
        )
    if q.shape[1] % k.shape[1] != 0:
        raise QuireError(
            f"{q.shape[1]} query heads do not share {k.shape[1]} KV heads evenly: give a number "
            "of query heads that is a multiple of it"
        )
    return (attend_part_triton if serves(q) else attend_part_torch)(q, k, v, scale, causal)


def attend_part_torch(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """`attend_part` in torch; it writes all scores down."""
    group = q.shape[1] // k.shape[1]
    keys, values = (x.float().repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
    scores = q.float().transpose(0, 1) @ keys.transpose(1, 2) * scale  # [heads, queries, keys]
    if causal:
        later = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).triu(1)
        scores.masked_fill_(later, -torch.inf)
    y, lse = scores.softmax(-1) @ values, scores.logsumexp(-1)
    return y.transpose(0, 1).contiguous(), lse.T.contiguous()


def attend_part_triton(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """`attend_part` by the kernel of prompts, with its tuned launch settings."""
    settings = tuning(q.device, q.shape[2], q.dtype.itemsize).prefill
    return attend_part_tuned(q, k, v, scale, causal, settings)


def attend_part_tuned(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, settings: PrefillTuning
) -> tuple[Tensor, Tensor]:
    """`attend_part` by the kernel of prompts, with these launch settings."""
    num_queries, num_heads, _ = q.shape
    y = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    lse = torch.empty(num_queries, num_heads, dtype=torch.float32, device=q.device)
    if num_queries == 0 or len(k) == 0:  # a descriptor of no key cannot be made
        return y.zero_(), lse.fill_(-torch.inf)
    size = tokens_per_tile(num_heads // k.shape[1], settings)
    # All lists are made on the device: a copy from the host would wait for what is queued.
    last = (num_queries - 1) // size * size  # comes first: under a mask it sees the most keys
    first = torch.arange(last, -1, -size, dtype=torch.int32, device=q.device)
    starts, key_starts = (
        torch.arange(0, 2 * len(x), len(x), dtype=torch.int32, device=q.device) for x in (q, k)
    )
    batch = AttentionBatch(
        query_starts=starts,
        rows=starts[:1],
        lengths=starts,  # never read, and the table neither, as the keys lie in no block
        block_table=starts[None],
        positions=starts,
        slots=starts,
        block_size=1,
        max_length=len(k),
        host=None,
    )
    tiles = torch.stack([torch.zeros_like(first), first], 1)
    prefill(y, q, (k, v), batch, tiles, scale, None, settings, lse, None if causal else key_starts)
    return y, lse


def merge(y: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Add the attention to one part of the keys to that to others, in place.

    In whatever order parts are merged, the result is the same but for its rounding.

    Args:
        y: float32 [num_queries, num_heads, head_size], contiguous: attention to the keys so far.
        lse: float32 [num_queries, num_heads], contiguous: its log-sum-exp.
        part: as `y`, of keys that are not among those.
        part_lse: as `lse`.

    Raises:
        ValueError: the shapes differ.
    """
    if part.shape != y.shape or not lse.shape == part_lse.shape == y.shape[:2]:
        raise ValueError(
            f"a part of shape {list(part.shape)} with log-sum-exps {list(part_lse.shape)} is none "
            f"of {list(y.shape)} with {list(lse.shape)}: merge parts of the same queries"
        )
    (merge_triton if serves(y) else merge_torch)(y, lse, part, part_lse)


def merge_torch(y: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """`merge` in torch."""
    both = torch.logaddexp(lse, part_lse)
    base = both.masked_fill(both == -torch.inf, 0)  # -inf less -inf is no number
    y.mul_((lse - base).exp()[..., None]).add_(part * (part_lse - base).exp()[..., None])
    lse.copy_(both)


def merge_triton(y: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """`merge` in one kernel, which reads and writes everything once."""
    num_rows, size = lse.numel(), y.shape[2]
    if num_rows == 0:
        return
    _merge_kernel[(triton.cdiv(num_rows, MERGED_ROWS),)](
        y,
        lse,
        part,
        part_lse,
        num_rows,
        size=size,
        block=triton.next_power_of_2(size),
        rows=MERGED_ROWS,
    )


@jit
def _merge_kernel(
    y,  # float32 [num_rows, size]; part: the same
    lse,  # float32 [num_rows]; part_lse: the same
    part,
    part_lse,
    num_rows,
    size: tl.constexpr,
    block: tl.constexpr,
    rows: tl.constexpr,
):
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    inside = row < num_rows
    ours = tl.load(lse + row, inside, other=float("-inf"))
    theirs = tl.load(part_lse + row, inside, other=float("-inf"))
    larger = tl.maximum(ours, theirs)
    base = tl.where(larger == float("-inf"), 0.0, larger)
    ours, theirs = tl.exp(ours - base), tl.exp(theirs - base)
    total = ours + theirs
    total = tl.where(total > 0, total, 1.0)  # 0: neither has a key

    column = tl.arange(0, block)
    place = row.to(tl.int64)[:, None] * size + column[None, :]
    mask = inside[:, None] & (column < size)[None, :]
    mixed = tl.load(y + place, mask) * (ours / total)[:, None]
    mixed += tl.load(part + place, mask) * (theirs / total)[:, None]
    tl.store(y + place, mixed, mask)
    # Every warp has read the rows' log-sum-exps for itself: none writes before all have.
    tl.debug_barrier()
    tl.store(lse + row, larger + tl.log(total), inside)
