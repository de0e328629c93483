"""The roofline: a step takes at least as long as its arithmetic and as its traffic.

Williams, Waterman and Patterson bound a kernel's rate by the lower of two ceilings, peak
arithmetic and bandwidth times arithmetic intensity [williams2009roofline]. Turned into a
time: the longer of FLOPs / peak and bytes / bandwidth. Explained in the chapter
"Autoregressive decoding".
"""

from __future__ import annotations

from quire.analysis.hardware import Hardware
from quire.analysis.work import Work


def roofline_time(
    flops: float,
    bytes_moved: float,
    hardware: Hardware,
    dtype: str,
    *,
    mfu: float = 1.0,
    mbu: float = 1.0,
) -> float:
    """Return the seconds of a step: max(flops / (mfu·peak), bytes / (mbu·bandwidth)).

    `mfu` (model FLOPs utilisation) and `mbu` (model bandwidth utilisation) are the shares
    of the two ceilings that a real engine reaches. At 1, their default, the result is a
    limit: no implementation that moves these bytes is faster.
    """
    compute = flops / (mfu * hardware.peak(dtype))
    memory = bytes_moved / (mbu * hardware.bandwidth_bytes_per_s)
    return max(compute, memory)


def binding_ceiling(work: Work, hardware: Hardware, dtype: str) -> str:
    """Return "compute" or "memory": which ceiling sets the time of `work`."""
    return "compute" if work.arithmetic_intensity > hardware.ridge_point(dtype) else "memory"


def achieved_mfu(flops: float, seconds: float, hardware: Hardware, dtype: str) -> float:
    """Return the model FLOPs utilisation of a measured step, in 0…1."""
    return flops / seconds / hardware.peak(dtype)


def achieved_mbu(bytes_moved: float, seconds: float, hardware: Hardware) -> float:
    """Return the model bandwidth utilisation of a measured step, in 0…1."""
    return bytes_moved / seconds / hardware.bandwidth_bytes_per_s
