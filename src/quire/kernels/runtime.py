"""Where Triton's kernels serve, and what stands in for Triton where it is not installed.

Triton comes with torch's CUDA builds and not with the others. The torch twins must be
importable without it, so kernels take `jit` and `tl` from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None
if HAS_TRITON:
    import triton
    import triton.language as tl
else:
    triton = tl = None
# Tiles that TMA copies, told by the host; older ones have none.
HAS_DESCRIPTORS = HAS_TRITON and find_spec("triton.tools.tensor_descriptor") is not None
# Gluon, Triton's lower level, is experimental: older ones have other names.
HAS_GLUON = HAS_TRITON and tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6)
if HAS_GLUON:
    from triton.experimental import gluon


def jit(
    function: Callable[..., Any],
    *,
    any_alignment: Sequence[str] = (),
    any_number: Sequence[str] = (),
) -> Any:
    """Compile a kernel with Triton; without Triton it stays a function that nobody calls.

    Triton compiles anew for a pointer that is a multiple of 16 bytes and for one that is not,
    and for an integer that is 1 or a multiple of 16. `any_alignment` names the pointers where
    that is of no use: a program reads one number; `any_number` names such integers.
    """
    if not HAS_TRITON:
        return function
    return triton.jit(
        function, do_not_specialize=any_number, do_not_specialize_on_alignment=any_alignment
    )


def gluon_jit(function: Callable[..., Any], *, any_number: Sequence[str] = ()) -> Any:
    """Compile a kernel in Gluon, Triton's lower level; `any_number` as for `jit`."""
    return gluon.jit(function, do_not_specialize=any_number)


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """Return a device's compute capability, (0, 0) for what is no CUDA device."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def runs_triton(device: torch.device) -> bool:
    """Whether a device runs quire's Triton kernels: compute capability 8.0 and up.

    Below, on a T4, `tl.dot` compiles to scalar arithmetic, and torch's kernels are faster.
    """
    return HAS_TRITON and capability(device) >= (8, 0)


def serves(x: Tensor) -> bool:
    """Whether kernels run where `x` is."""
    return x.is_cuda and runs_triton(x.device)


def starts_early(x: Tensor) -> bool:
    """Whether a kernel may begin before the one in front of it has ended (from Hopper on).

    CUDA calls it programmatic dependent launch. A kernel so launched (`launch_pdl`) may read
    constants, weights above all, at once; before it reads what an earlier kernel wrote, or
    writes anything, it waits (`gdc_wait`) until all earlier kernels have ended and what they
    wrote can be seen. In every kernel at least one program waits, so that its end implies the end
    of all before it. One exception: a kernel that lets the next one in (`gdc_launch_dependents`)
    only after its own wait, or at its end, has seen all before it end. So what those wrote the next
    one may read at once. That follows from what waiting means; CUDA does not promise it.
    """
    return capability(x.device) >= (9, 0)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Collect the names of the kernels that Triton compiles, or loads from disk, meanwhile.

    Serving should meet none: `quire.runner.warm_up` has met them all before the first request.
    """
    names: list[str] = []

    def note(*, fn: Any, **_: Any) -> None:
        names.append(fn.name)

    before = triton.knobs.runtime.jit_post_compile_hook
    triton.knobs.runtime.jit_post_compile_hook = note
    try:
        yield names
    finally:
        triton.knobs.runtime.jit_post_compile_hook = before
