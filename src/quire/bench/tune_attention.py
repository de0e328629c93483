"""`python -m quire.bench.tune_attention`: measure the attention kernels' launch settings.

Writes the table of the GPU it runs on. Every candidate is timed on every case; the one
with the best geometric mean of rates, each relative to the best of its case, is taken. Only
head size 128 in 2-byte elements is measured: the other rows are the default table's, of
which the tests show that they fit.
"""

from __future__ import annotations

import itertools
import statistics
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch

from quire.attention.triton_backend import TritonAttention
from quire.bench.attention import (
    DECODE_CASES,
    DecodeCase,
    decode_cache,
    decode_seconds,
    prefill_rows,
)
from quire.kernels.tuning import TABLES, DecodeTuning, PrefillTuning, Tuning, table_path

T = TypeVar("T", DecodeTuning, PrefillTuning)

# Beside the benchmark's cases those of a small engine: one short sequence, and many.
CASES = (*DECODE_CASES, DecodeCase("1x384", 16, 1, 384), DecodeCase("64x640", 16, 64, 640),
         DecodeCase("32x2k", 32, 32, 2048))  # fmt: skip
DECODE = [
    DecodeTuning(tile, warps, stages, programs, min_keys=32)
    for (tile, warps, stages), programs in itertools.product(
        [(16, 1, 3), (16, 1, 4), (16, 1, 5), (32, 1, 2), (32, 1, 3), (32, 2, 3)], [264, 396, 528]
    )
]
PREFILL = [
    PrefillTuning(rows, keys, warps, stages)
    for rows, keys, warps, stages in [
        (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 4, 2), (128, 64, 8, 3), (128, 128, 8, 2),
    ]
]  # fmt: skip


def main() -> None:
    """Measure, print, and write the table."""
    decode = best(dict(decode_rates(DECODE)))
    prefill = best(dict(prefill_rates(PREFILL, decode)))
    path = table_path(torch.device("cuda"))
    rows = tomllib.loads((TABLES / "default.toml").read_text("utf-8"))["settings"]
    for row in rows:
        if (row["itemsize"], row["head_size"]) == (2, 128):
            row["decode"], row["prefill"] = vars(decode), vars(prefill)
    name = torch.cuda.get_device_name()
    head = (
        f"# Measured by quire.bench.tune_attention on one {name}; the first row that fits counts."
    )
    path.write_text("\n".join([head + "\n", *map(_toml, rows)]), "utf-8")
    print(f"wrote {path}")


def decode_rates(
    candidates: Iterable[DecodeTuning],
) -> Iterable[tuple[DecodeTuning, dict[str, float]]]:
    """Yield for each candidate its launches a second in every case."""
    cache, any_prefill = decode_cache(), PREFILL[0]
    for candidate in candidates:
        backend = TritonAttention(Tuning(candidate, any_prefill))
        yield candidate, {case.name: 1 / decode_seconds(case, cache, backend) for case in CASES}


def prefill_rates(
    candidates: Iterable[PrefillTuning], decode: DecodeTuning
) -> Iterable[tuple[PrefillTuning, dict[str, float]]]:
    """Yield for each candidate its TFLOP/s, fresh and from blocks."""
    for candidate in candidates:
        rows = prefill_rows(TritonAttention(Tuning(decode, candidate)))
        yield candidate, {row.case: row.value for row in rows}


def best(rates: Mapping[T, dict[str, float]]) -> T:
    """Return the candidate that is on geometric average nearest to the best of each case."""
    top = {case: max(rate[case] for rate in rates.values()) for case in next(iter(rates.values()))}
    scores = {
        candidate: statistics.geometric_mean(rate[case] / top[case] for case in top)
        for candidate, rate in rates.items()
    }
    for candidate, score in sorted(scores.items(), key=lambda item: -item[1]):
        shares = " ".join(f"{case} {rates[candidate][case] / top[case]:.2f}" for case in top)
        print(f"{score:.3f} {candidate}: {shares}")
    return max(scores, key=lambda candidate: scores[candidate])


def _toml(row: dict[str, Any]) -> str:
    """Write one row of a table."""
    lines = ["[[settings]]", f"itemsize = {row['itemsize']}", f"head_size = {row['head_size']}"]
    for kernel in ("decode", "prefill"):
        fields = ", ".join(f"{name} = {value}" for name, value in row[kernel].items())
        lines.append(f"{kernel} = {{ {fields} }}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
