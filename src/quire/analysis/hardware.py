"""The devices the book reasons about, read from `hardware.toml`.

Two ceilings matter for decoding: the bandwidth of the device memory and the rate of dense
matrix products. Where the book measured a device's ceilings itself, `Hardware.measured()`
gives those in place of the data sheet's: the bandwidth of a copy and the rate of a square
product. Work of another shape can pass them by a little, so they are no strict limits.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from quire.analysis.memory import short_dtype

HARDWARE_FILE = Path(__file__).with_name("hardware.toml")


@dataclass(frozen=True)
class Hardware:
    """Ceilings of one device. Rates are dense and per second, memory is in bytes."""

    key: str
    name: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    peak_flops: dict[str, float]  # FLOP/s by short dtype name
    tdp_watts: float
    usd_per_hour: float
    measured_bandwidth_bytes_per_s: float | None = None
    measured_peak_flops: dict[str, float] = field(default_factory=dict)

    def measured(self) -> Hardware:
        """Return this device with the ceilings that the book measured, where it did."""
        if self.measured_bandwidth_bytes_per_s is None and not self.measured_peak_flops:
            return self
        return replace(
            self,
            key=f"{self.key}-measured",
            name=f"{self.name}, measured ceilings",
            bandwidth_bytes_per_s=self.measured_bandwidth_bytes_per_s or self.bandwidth_bytes_per_s,
            peak_flops={**self.peak_flops, **self.measured_peak_flops},
        )

    def compute_dtype(self, weight_dtype: str) -> str:
        """Return the dtype in which weights of `weight_dtype` are multiplied here.

        Their own where the device has it; else they are widened to the first of bf16,
        fp16 and fp32 that it has (so int4 weights run at the bf16 rate on an H200, and
        bf16 weights at the fp32 rate on a CPU).
        """
        for dtype in (short_dtype(weight_dtype), "bf16", "fp16", "fp32"):
            if dtype in self.peak_flops:
                return dtype
        raise ValueError(f"{self.name} lists no rate for {weight_dtype!r}, bf16, fp16 or fp32")

    def peak(self, dtype: str) -> float:
        """Return the dense rate for `dtype` in FLOP/s.

        Raises:
            ValueError: the device has no native path for `dtype`.
        """
        name = short_dtype(dtype)
        if name not in self.peak_flops:
            known = ", ".join(self.peak_flops)
            raise ValueError(f"{self.name} has no native {name} rate; it has {known}")
        return self.peak_flops[name]

    def ridge_point(self, dtype: str) -> float:
        """Return the arithmetic intensity, in FLOPs per byte, above which compute binds."""
        return self.peak(dtype) / self.bandwidth_bytes_per_s


@cache
def load_hardware() -> dict[str, Hardware]:
    """Read every device of `hardware.toml`, by its key, with data-sheet ceilings."""
    tables: dict[str, dict[str, Any]] = tomllib.loads(HARDWARE_FILE.read_text("utf-8"))
    names = set(Hardware.__dataclass_fields__) - {"key"}
    return {
        key: Hardware(key=key, **{name: row[name] for name in names & row.keys()})
        for key, row in tables.items()
    }


def find_hardware(name: str) -> Hardware:
    """Return the device whose key is `name` or the only one whose key starts with it.

    Raises:
        ValueError: none or several match; the message lists the keys.
    """
    devices = load_hardware()
    wanted = name.lower()
    matches = [key for key in devices if key == wanted] or [
        key for key in devices if key.startswith(wanted)
    ]
    if len(matches) != 1:
        found = "several devices" if matches else "no device"
        raise ValueError(f"{found} named {name!r}; choose one of {', '.join(devices)}")
    return devices[matches[0]]
