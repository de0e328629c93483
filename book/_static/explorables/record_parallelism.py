"""What the layout planner of the chapter "Parallelism" asks: models, devices, links, constants.

It evaluates `quire.analysis.layout_clock.steady`; so its data is what that function reads, and a
case to begin with, checked here to be one that teaches: two GPUs that share every matrix save a
request far less than half of its time, and two copies give a large batch more.

    python book/_static/explorables/record_parallelism.py

writes the file of `data/`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from data_files import write_data
from model_rows import model_rows

from quire.analysis import catalog_config, catalog_json, find_hardware
from quire.analysis.collectives import LINKS
from quire.analysis.hardware import Hardware
from quire.analysis.layout_clock import Machine, steady
from quire.analysis.rank_memory import (
    BLOCK_SIZE,
    COMMUNICATOR_BYTES,
    CONTEXT_BYTES,
    GRAPH_BYTES,
)
from quire.analysis.shares import Layout
from quire.analysis.step_parts import (
    KEY_BYTES,
    QUIRE,
    measured_products,
    reachable,
    reference_device,
)

DEVICES = ("h200", "h100")  # joined by NVLink 4
MODEL = "Qwen/Qwen3-8B"
SCENARIO = {
    "model": MODEL,
    "device": "h200",
    "link": "direct",
    "gpus": 2,
    "batch": 1,
    "context": 512,
}


def layout_planner(model: str) -> dict[str, Any]:
    """All that the explorable computes with; no model is run."""
    config = catalog_config(MODEL)
    assert config is not None
    machine = Machine(reachable(find_hardware("h200")), LINKS["direct"])
    one, two = (steady(config, Layout(tensor), machine, 1, 512) for tensor in (1, 2))
    assert 0.55 < two.decode.seconds / one.decode.seconds < 0.65
    copies, shared = (
        steady(config, Layout(*sizes), machine, 512, 512) for sizes in ((1, 1, 2), (2,))
    )
    assert copies.tokens_per_s > 1.05 * shared.tokens_per_s
    return {
        "models": model_rows(catalog_json()),
        "devices": {key: device_row(reachable(find_hardware(key))) for key in DEVICES},
        "links": {key: asdict(link) for key, link in LINKS.items()},
        "rates": {**asdict(QUIRE), "key_bytes": KEY_BYTES},
        "engine": {
            "block_size": BLOCK_SIZE,
            "utilization": 0.9,
            "most_tokens": machine.max_num_batched_tokens,
            "most_requests": machine.max_num_seqs,
            "reserved_bytes": GRAPH_BYTES + CONTEXT_BYTES,
            "communicator_bytes": COMMUNICATOR_BYTES,
        },
        "products": {
            "points": measured_products(None),
            "device": device_row(reference_device()),
            "source": "linear-h200",
        },
        "scenario": SCENARIO,
    }


def device_row(device: Hardware) -> dict[str, Any]:
    """What the planner needs of a device."""
    return {
        "name": device.name,
        "memory_bytes": device.memory_bytes,
        "bandwidth": device.bandwidth_bytes_per_s,
        "rate": device.peak("bf16"),
    }


MAKERS = {"layout-planner": layout_planner}

if __name__ == "__main__":
    write_data(MAKERS)
