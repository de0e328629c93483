"""A ring of buffers in shared memory, from which some warps read what another copies there.

Tile number n of a ring lies in buffer n % depth. Two barriers stand at each buffer: `full` passes
once all bytes of a tile have come, `empty` once all its readers are done. Each passes once a
round, n // depth, and a wait names the round's parity. A ring is the tuple (buffers, full, empty).
For Gluon, on Hopper (CUTLASS calls it a pipeline); see the chapter "Triton kernels".
"""

from __future__ import annotations

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from quire.kernels.runtime import gluon_jit


@gluon_jit
def make_ring(dtype: gl.constexpr, shape: gl.constexpr, layout: gl.constexpr,
              readers: gl.constexpr):  # fmt: skip
    """Allocate a ring of shape [depth, ...] with `readers` that release each tile.

    A fence must follow, before other warps look at the barriers.
    """
    buffers = gl.allocate_shared_memory(dtype, shape, layout)
    depth: gl.constexpr = shape[0]
    full = gl.allocate_shared_memory(gl.int64, [depth, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [depth, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(depth):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=readers)
    return buffers, full, empty


@gluon_jit
def acquire(ring, n, num_bytes: gl.constexpr):
    """Wait until tile n may be written; returns its buffer, and the barrier that counts bytes."""
    buffers, full, empty = ring
    depth: gl.constexpr = buffers.shape[0]
    mbarrier.wait(empty.index(n % depth), n // depth & 1 ^ 1)  # of round 0 it lets through
    mbarrier.expect(full.index(n % depth), num_bytes)
    return buffers.index(n % depth), full.index(n % depth)


@gluon_jit
def arrived(ring, n):
    """Wait until tile n has come; returns its buffer."""
    buffers, full, _empty = ring
    depth: gl.constexpr = buffers.shape[0]
    mbarrier.wait(full.index(n % depth), n // depth & 1)
    return buffers.index(n % depth)


@gluon_jit
def release(ring, n):
    """Say that this reader, a group of warps, is done with tile n."""
    buffers, _full, empty = ring
    depth: gl.constexpr = buffers.shape[0]
    mbarrier.arrive(empty.index(n % depth), count=1)
