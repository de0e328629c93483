"""`quire bench kernel-ladders`: one operation after another, a kernel for each idea.

Rows `<operation>-<step>` are microseconds of a call in a CUDA graph, with inputs that together
are larger than the last-level cache; torch's own, a copy of as many bytes and the limit stand
beside each. Rows `cheat-…` are false times, rows `autotune-…` a wrong result, rows `ptx-…`
instructions of the compiled kernels. See the chapter "Triton kernels".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from quire.analysis import Hardware, find_hardware
from quire.bench.ladders import (
    autotune,
    cheats,
    decode,
    gemv,
    int4_gemv,
    launches,
    matmul,
    prefill,
    softmax,
)
from quire.bench.ladders.ladder import Ladder, rows
from quire.bench.measurement import Row
from quire.errors import QuireError

LADDERS: dict[str, Callable[[torch.device], Ladder[Any]]] = {
    "softmax": softmax.ladder,
    "softmax-wide": softmax.wide,
    "gemv": gemv.ladder,
    "int4-gemv": int4_gemv.ladder,
    "matmul": matmul.ladder,
    "wide-matmul": matmul.wide,
    "matmul-m64": matmul.few_rows,
    "deep-m64": matmul.deep,
    "decode": decode.ladder,
    "prefill": prefill.ladder,
}


def run(device: torch.device, names: Sequence[str] = tuple(LADDERS)) -> tuple[list[Row], str]:
    """Measure the ladders named, then cheats, autotune's trap and PTX counts.

    Returns:
        The rows, and a line for each step that has none; empty: all were measured.

    Raises:
        QuireError: not on a GPU, or no ladder of such a name.
    """
    if device.type != "cuda":
        raise QuireError("bench kernel-ladders times GPU kernels: use --device cuda")
    unknown = set(names) - set(LADDERS)
    if unknown:
        raise QuireError(f"no ladder {sorted(unknown)}: there are {', '.join(LADDERS)}")
    made: list[Row] = []
    unmeasured: list[str] = []
    ceilings = _ceilings(device)
    with torch.inference_mode():
        for name in names:
            print(f"{name} …", flush=True)
            made += rows(LADDERS[name](device), device, ceilings, unmeasured)
            torch.cuda.empty_cache()
        made += cheats.rows(device, ceilings) + autotune.rows(device)
    return made + launches.ptx_rows(), "\n".join(unmeasured)


def _ceilings(device: torch.device) -> Hardware | None:
    """Return the GPU with the ceilings that the book measured; None: it is not in the table."""
    words = torch.cuda.get_device_name(device).lower().replace("-", " ").split()
    name = next((word for word in words if word not in ("nvidia", "tesla")), "gpu")
    try:
        return find_hardware(name).measured()
    except ValueError:
        return None
