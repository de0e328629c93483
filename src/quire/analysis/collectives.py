"""What talking costs: the seconds of a collective over a link, α + bytes / rate.

α is what an empty call takes, however small; the rate is that of the bytes which cross a rank's
end of the link. How often a buffer crosses depends on the algorithm and on the number of ranks.
Both constants are fitted to measured times, those of two ranks and those of four apart, as α grows
with the ranks that must meet. Explained in the chapter "Parallelism".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from quire.analysis.hardware import Hardware
from quire.errors import QuireError
from quire.resources import load_measurement

Algorithm = Literal["ring", "one-shot"]
T = TypeVar("T")


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


Ways = tuple[tuple[int | None, Collective], ...]  # each with the bytes up to which it serves


@dataclass(frozen=True)
class Link:
    """How the devices of one machine are joined, and how their ranks add up.

    `reduces` carries the sums of tensor parallelism: the collectives to choose from, of which one
    serves any number of bytes; `gathers` all-gathers. Both are by the ranks that were measured;
    other groups have the constants of the next smaller one. `assumed` says what was not measured.
    """

    name: str
    reduces: Mapping[int, Ways]
    gathers: Mapping[int, Collective]
    sends: Collective
    eager_call_s: float  # of a collective that Python launches, instead of a graph
    assumed: tuple[str, ...]  # what of this was not measured

    def reduce_seconds(self, num_bytes: float, size: int) -> float:
        """Return the seconds of a sum over `size` ranks of `num_bytes` each; of one rank 0."""
        return min(
            way.reduce_seconds(num_bytes, size)
            for most, way in _of(self.reduces, size)
            if most is None or num_bytes <= most
        )

    def gather_seconds(self, num_bytes: float, size: int) -> float:
        """Return the seconds until each of `size` ranks has the `num_bytes` of every other."""
        return _of(self.gathers, size).gather_seconds(num_bytes, size)


def _of(measured: Mapping[int, T], size: int) -> T:
    """Return what was measured for so many ranks, or for the next smaller number."""
    return measured[max(ranks for ranks in measured if ranks <= max(size, 2))]


# Four H200, each joined to each by NVLink 4, multicast off, bf16, in a CUDA graph.
MEASURED_IN = "collectives-h200-x4"
GROUPS = (2, 4)  # ranks

# What sums over peers' memory serve, see `quire.parallel.direct_comm`: those on the way into a norm
# of two ranks as many rows as these are of 4,096 numbers of 16 bits, and those in two shots.
NORMED_BYTES = 128 << 20
DIRECT_BYTES = 16 << 20
DECODE_BYTES = 2 << 20  # 256 rows of those; longer sums in norms are left out of their fit


def measured_times(kind: str, size: int) -> dict[str, dict[int, float]]:
    """Return the seconds of an exchange of `size` ranks in a graph, by its way and its bytes.

    Args:
        kind: "all-reduce", by the bytes that each rank adds; "all-gather", by those of all ranks.
        size: ranks.
    """
    found: dict[str, dict[int, float]] = {}
    for row in load_measurement(MEASURED_IN)["rows"]:
        if row["case"].startswith(f"{kind}-") and row["parameters"]["ranks"] == size:
            way = row["case"].partition("kb-")[2].removesuffix(f"-x{size}")
            if way != "launched":
                num_bytes = row["parameters"]["kilobytes"] * 1024
                found.setdefault(way, {})[num_bytes] = row["value"] * 1e-6
    return found


def sums_in_norms(size: int) -> dict[int, float]:
    """Return the seconds that a sum of `size` ranks adds to the norm behind it, by its bytes.

    One kernel does both. What the norm takes alone is what it adds to the fastest sum.
    """
    sums, found = measured_times("all-reduce", size), {}
    for row in load_measurement(MEASURED_IN)["rows"]:
        if row["case"].startswith("sum-norm-") and row["parameters"]["ranks"] == size:
            num_bytes = row["parameters"]["kilobytes"] * 1024
            apart = [ways[num_bytes] for ways in sums.values() if num_bytes in ways]
            if apart:
                norm = row["baselines"]["apart"] * 1e-6 - min(apart)
                found[num_bytes] = row["value"] * 1e-6 - norm
    return found


def fitted(points: Mapping[int, float], size: int, algorithm: Algorithm = "ring") -> Collective:
    """Return the two constants of sums of `size` ranks, from seconds by bytes.

    α is what the smallest sum took: those of a decode step are as small. The rate leaves the least
    sum of squared relative errors.
    """
    alpha, unit = points[min(points)], Collective(0.0, 1.0, algorithm)
    moved = {num_bytes: unit.reduce_seconds(num_bytes, size) for num_bytes in points}
    bytes_in = {n: moved[n] / seconds for n, seconds in points.items()}
    over = {n: 1 - alpha / seconds for n, seconds in points.items()}
    rate = sum(x * x for x in bytes_in.values()) / sum(bytes_in[n] * over[n] for n in points)
    return Collective(alpha, rate, algorithm, measured_ranks=(size,))


def _links() -> dict[str, Link]:
    sums = {size: measured_times("all-reduce", size) for size in GROUPS}
    nccl, two = (
        {size: fitted(sums[size][way], size) for size in GROUPS} for way in ("nccl", "two-shot")
    )
    one = {size: fitted(sums[size]["one-shot"], size, "one-shot") for size in GROUPS}
    normed = {}
    for size in GROUPS:
        of_decodes = {n: t for n, t in sums_in_norms(size).items() if n <= DECODE_BYTES}
        normed[size] = fitted(of_decodes, size, "one-shot")
    direct = {
        size: ((NORMED_BYTES, normed[size]), (DIRECT_BYTES, two[size]), (None, nccl[size]))
        for size in GROUPS
    }
    gathers = {}
    for size in GROUPS:
        of_all = measured_times("all-gather", size)["nccl"]
        # A rank's end moves (size - 1) / size of all ranks' bytes: half of what a sum's does.
        halved = {num_bytes / 2: seconds for num_bytes, seconds in of_all.items()}
        gathers[size] = fitted(halved, size)  # type: ignore[arg-type]
    assumed = ("sums of more than 4 ranks (the constants of 4)", "sends (all-gathers of 2)")

    def link(name: str, reduces: Mapping[int, Ways], eager_call_s: float) -> Link:
        return Link(f"NVLink 4, {name}", reduces, gathers, gathers[2], eager_call_s, assumed)

    def only(way: Mapping[int, Collective]) -> dict[int, Ways]:
        return {size: ((None, own),) for size, own in way.items()}

    return {
        "direct": link("quire's sums in norms", direct, 11e-6),
        "nccl": link("NCCL", only(nccl), 50e-6),
        "one-shot": link("one-shot", only(one), 11e-6),
        "two-shot": link("two-shot", only(two), 11e-6),
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
    eager_call_s = max(own.alpha_s, 50e-6)
    return Link(name, {2: ((None, own),)}, {2: own}, own, eager_call_s, ("all of it",))
