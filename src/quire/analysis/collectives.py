"""What talking costs: the seconds of a collective over a link, α + bytes / rate.

α is what an empty call takes, however small; the rate is that of the bytes which cross a rank's
end of the link. How often a buffer crosses depends on the algorithm. With two ranks each of them
moves the buffer once, so that both constants of an all-reduce are read from a measurement of two
ranks. Explained in the chapter "Parallelism".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from quire.analysis.hardware import Hardware
from quire.errors import QuireError
from quire.resources import load_measurement

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
    """How the devices of one machine are joined, and how their ranks add up.

    `reduces` carries the sums of tensor parallelism: the collectives to choose from, each with the
    bytes up to which it serves; one has no limit. The exchanges that nobody has timed here,
    all-gather and send, have NCCL's constants: an assumption, and `assumed` says so.
    """

    name: str
    reduces: tuple[tuple[int | None, Collective], ...]
    other: Collective  # all-gather and send
    eager_call_s: float  # of a collective that Python launches, instead of a graph
    assumed: tuple[str, ...]  # what of this was not measured

    def reduce_seconds(self, num_bytes: float, size: int) -> float:
        """Return the seconds of a sum over `size` ranks of `num_bytes` each; of one rank 0."""
        return min(
            way.reduce_seconds(num_bytes, size)
            for most, way in self.reduces
            if most is None or num_bytes <= most
        )


MEASURED_IN = "parallel-h200-x2"  # two H200, NVLink 4, multicast off, bf16, in a CUDA graph

# What sums over peers' memory serve, see `quire.parallel.direct_comm`: those on the way into a norm
# as many rows as these are of 4,096 numbers of 16 bits, and those in two shots.
NORMED_BYTES = 128 << 20
DIRECT_BYTES = 16 << 20


def measured_sums() -> dict[str, dict[int, float]]:
    """Return the seconds of a sum of two ranks, by its way and its bytes."""
    found: dict[str, dict[int, float]] = {}
    for row in load_measurement(MEASURED_IN)["rows"]:
        if row["case"].startswith("all-reduce-"):
            way = row["case"].partition("kb-")[2]
            found.setdefault(way, {})[row["parameters"]["kilobytes"] * 1024] = row["value"] * 1e-6
    return found


def sums_in_norms() -> dict[int, float]:
    """Return the seconds that a sum of two ranks adds to the norm behind it, by its bytes.

    One kernel does both. What the norm takes alone is what it adds to the fastest sum.
    """
    sums, found = measured_sums(), {}
    for row in load_measurement(MEASURED_IN)["rows"]:
        size = row["parameters"].get("kilobytes", 0) * 1024
        apart = [ways[size] for ways in sums.values() if size in ways]
        if row["case"].startswith("sum-norm-") and apart:
            norm = row["baselines"]["apart"] * 1e-6 - min(apart)
            found[size] = row["value"] * 1e-6 - norm
    return found


def fitted(points: Mapping[int, float], algorithm: Algorithm = "ring") -> Collective:
    """Return the two constants of sums of two ranks, from seconds by bytes.

    α is what the smallest sum took: those of a decode step are as small. The rate leaves the least
    sum of squared relative errors. With two ranks a sum moves its bytes once.
    """
    alpha = points[min(points)]
    bytes_in = {size: size / seconds for size, seconds in points.items()}
    over = {size: 1 - alpha / seconds for size, seconds in points.items()}
    rate = sum(x * x for x in bytes_in.values()) / sum(bytes_in[n] * over[n] for n in points)
    return Collective(alpha, rate, algorithm, measured_ranks=(2,))


def _links() -> dict[str, Link]:
    sums = measured_sums()
    nccl, two = fitted(sums["nccl"]), fitted(sums["two-shot"])
    one = fitted(sums["one-shot"], "one-shot")
    normed = fitted(sums_in_norms(), "one-shot")
    direct = ((NORMED_BYTES, normed), (DIRECT_BYTES, two), (None, nccl))
    assumed = (
        "all-reduce of more than 2 ranks (the constants of 2)",
        "all-gather and send (NCCL's all-reduce)",
    )
    return {
        "direct": Link("NVLink 4, quire's sums in norms", direct, nccl, 11e-6, assumed),
        "nccl": Link("NVLink 4, NCCL", ((None, nccl),), nccl, 50e-6, assumed),
        "one-shot": Link("NVLink 4, one-shot", ((None, one),), nccl, 11e-6, assumed),
        "two-shot": Link("NVLink 4, two-shot", ((None, two),), nccl, 11e-6, assumed),
    }


LINKS = _links()


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
    return Link(name, ((None, own),), own, max(own.alpha_s, 50e-6), ("all of it",))
