"""Ring attention: a prompt's queries, keys and values are cut among ranks, and keys go round.

Each rank attends with its own queries to the keys that it holds, while it hands these on to the
next rank and receives those of the one before it. After as many hops as there are ranks every
query has met every key (Liu et al. 2023, "Ring Attention with Blockwise Transformers"). What the
hops give are parts of one softmax, merged by their log-sum-exps. See the page
"Stages, rings, machines".
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from quire.errors import QuireError
from quire.kernels.part_attention import attend_part, merge
from quire.parallel.comm import Comm
from quire.parallel.ring_layout import RingLayout


# docs: ring begin
def ring_attention(
    comm: Comm, q: Tensor, k: Tensor, v: Tensor, scale: float, layout: RingLayout
) -> Tensor:
    """Attend with a rank's queries to all keys of the prompt at and before them.

    Every rank of the group calls this with its own rows.

    Args:
        comm: this rank's end of the group.
        q: [num_rows, num_heads, head_size], of the positions `layout.rows(comm.rank)`.
        k: [num_rows, num_kv_heads, head_size], of the same positions.
        v: as k.
        scale: of the scores.
        layout: which rows of the prompt the ranks have: `Zigzag`, so that none waits for another.

    Returns:
        The attention, of q's shape and dtype.

    Raises:
        QuireError: the layout is one of other ranks, or of other rows than these.
    """
    _check(comm, q, k, v, layout)
    rounds = hops(comm, k, v, layout)
    _, keys, values = next(rounds)
    y, lse = attend_part(q, keys, values, scale, causal=True)  # own rows ascend, as positions do
    for source, keys, values in rounds:
        seen = layout.seen(comm.rank, source)
        if seen is not None:
            queries, part = seen
            own = attend_part(q[queries], keys[part], values[part], scale, causal=False)
            merge(y[queries], lse[queries], *own)
    return y.to(q.dtype)


def hops(
    comm: Comm, k: Tensor, v: Tensor, layout: RingLayout
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the ranks' keys and values, each with its rank: this one's, then those before it.

    While the caller attends to some, they travel on and the next ones come in, into the other of
    two buffers.
    """
    rank, size = comm.rank, comm.size
    if size == 1:
        yield rank, k, v
        return
    longest = max(layout.length(r) for r in range(size))
    buffers = k.new_empty(2, longest, 2, *k.shape[1:])  # keys and values are one message
    held = buffers[0, : len(k)]
    held[:, 0], held[:, 1] = k, v
    for hop in range(size - 1):
        source = (rank - hop) % size
        like = buffers[(hop + 1) % 2, : layout.length((source - 1) % size)]
        arriving = comm.pass_on(held, like)
        yield source, held[:, 0], held[:, 1]
        held = arriving.wait()
    yield (rank + 1) % size, held[:, 0], held[:, 1]


# docs: ring end


def _check(comm: Comm, q: Tensor, k: Tensor, v: Tensor, layout: RingLayout) -> None:
    if layout.size != comm.size:
        raise QuireError(
            f"a layout of {layout.size} ranks does not fit a group of {comm.size}: make it with "
            "size=comm.size"
        )
    expected = layout.length(comm.rank)
    if not len(q) == len(k) == len(v) == expected:
        raise QuireError(
            f"rank {comm.rank} has {len(q)} queries, {len(k)} keys and {len(v)} values, and its "
            f"layout of {layout.num_tokens} tokens has {expected} rows for it: take the rows "
            "layout.rows(rank) of each"
        )
