"""What talking costs: the seconds of a collective over a link, α + bytes / rate.

α is what an empty call takes, however small; the rate is that of the bytes which cross a rank's
end of the link. How often a buffer crosses depends on the algorithm: `traffic`. With two ranks
each of them moves the buffer once, so that both constants of an all-reduce can be read from
measurements of two ranks. Explained in the chapter "Parallelism".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quire.analysis.hardware import Hardware
from quire.errors import QuireError

Algorithm = Literal["ring", "one-shot"]


# docs: collective begin
@dataclass(frozen=True)
class Collective:
    """One kind of exchange over one link: seconds = α + crossings · bytes / rate.

    `ring` stands for every algorithm that moves no byte more than it must (NCCL's rings, two-shot:
    reduce-scatter, then all-gather); in `one-shot` each rank reads the whole buffer of each other.
    """

    alpha_s: float  # of a call in a CUDA graph
    bytes_per_s: float  # through a rank's end of the link
    algorithm: Algorithm = "ring"
    measured_ranks: tuple[int, ...] = ()  # sizes of the groups it was measured with

    def reduce_seconds(self, num_bytes: float, size: int) -> float:
        """Return the seconds of a sum over `size` ranks of `num_bytes` each; of one rank 0."""
        if size == 1:
            return 0.0
        crossings = size - 1 if self.algorithm == "one-shot" else 2 * (size - 1) / size
        return self.alpha_s + crossings * num_bytes / self.bytes_per_s

    def gather_seconds(self, num_bytes: float, size: int) -> float:
        """Return the seconds until each of `size` ranks has the `num_bytes` of every other."""
        if size == 1:
            return 0.0
        return self.alpha_s + (size - 1) * num_bytes / self.bytes_per_s

    def send_seconds(self, num_bytes: float) -> float:
        """Return the seconds in which `num_bytes` go from one rank to another."""
        return self.alpha_s + num_bytes / self.bytes_per_s


# docs: collective end


@dataclass(frozen=True)
class Link:
    """How the devices of one machine are joined.

    `reduce` carries the sums of tensor parallelism. The exchanges that nobody has timed here,
    all-gather and send, have NCCL's constants: an assumption, and `assumed` says so.
    """

    name: str
    reduce: Collective
    other: Collective  # all-gather and send
    eager_call_s: float  # of a collective that Python launches, instead of a graph
    assumed: tuple[str, ...]  # what of this was not measured


# Two H200, 18 links of NVLink 4, multicast off, bf16, torch 2.11, in a CUDA graph, 2026-11-28.
# The points, in µs, are those of ALL_REDUCE_H200; a test says how far the two constants lie off.
_NCCL = Collective(18.6e-6, 265e9, measured_ranks=(2,))
_ONE_SHOT = Collective(6.3e-6, 182e9, "one-shot", measured_ranks=(2,))
_TWO_SHOT = Collective(6.1e-6, 325e9, measured_ranks=(2,))

KB, MB = 1024, 1024 * 1024
ALL_REDUCE_H200: dict[str, dict[int, float]] = {
    "nccl": {8 * KB: 18.1, 256 * KB: 20.2, MB: 25.6, 4 * MB: 45, 16 * MB: 95, 64 * MB: 266},
    "one-shot": {8 * KB: 6.3, 256 * KB: 8.2, MB: 12.9, 4 * MB: 30, 16 * MB: 97, 64 * MB: 369},
    "two-shot": {8 * KB: 6.1, 256 * KB: 7.4, MB: 9.8, 4 * MB: 20, 16 * MB: 58, 64 * MB: 212},
}

_MORE_RANKS = "all-reduce of more than 2 ranks (the constants of 2)"
_NOT_TIMED = "all-gather and send (NCCL's all-reduce)"
LINKS = {
    "nccl": Link("NVLink 4, NCCL", _NCCL, _NCCL, 50e-6, (_MORE_RANKS, _NOT_TIMED)),
    "one-shot": Link("NVLink 4, one-shot", _ONE_SHOT, _NCCL, 11e-6, (_MORE_RANKS, _NOT_TIMED)),
    "two-shot": Link("NVLink 4, two-shot", _TWO_SHOT, _NCCL, 11e-6, (_MORE_RANKS, _NOT_TIMED)),
}


def find_link(name: str, hardware: Hardware) -> Link:
    """Return a link by its key, or by its own constants, "20us:25GBps".

    Raises:
        QuireError: neither; or a link of NVLink 4 for a device that has none.
    """
    if name in LINKS:
        if not hardware.key.startswith(("h100", "h200")):
            raise QuireError(
                f"link={name!r} was measured over NVLink 4, which {hardware.name} lacks: give the "
                "constants of its own, such as 20us:25GBps"
            )
        return LINKS[name]
    alpha, separator, rate = name.partition("us:")
    try:
        if not separator or not rate.endswith("GBps"):
            raise ValueError
        own = Collective(float(alpha) / 1e6, float(rate.removesuffix("GBps")) * 1e9)
    except ValueError:
        raise QuireError(
            f"link={name!r}: must be one of {', '.join(LINKS)}, or microseconds a call and "
            "gigabytes a second, such as 20us:25GBps"
        ) from None
    if not (own.alpha_s >= 0 and own.bytes_per_s > 0):
        raise QuireError(f"link={name!r}: a call takes 0 or more, and the rate is above 0")
    return Link(name, own, own, max(own.alpha_s, 50e-6), ("all of it",))
