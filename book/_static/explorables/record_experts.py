"""What the expert balancer of the chapter "Parallelism" asks: recorded loads of quire-mini-moe.

It places experts as `quire.parallel.expert_placement` does; so its data is the tokens that each
expert received, and a case to begin with, checked here to be one that teaches: the fullest expert
has several times the mean, its rank in the order of numbers much less, and copies almost level it.

    python book/_static/explorables/record_experts.py

writes the file of `data/`.
"""

from __future__ import annotations

from typing import Any

from data_files import write_data

from quire.parallel.expert_placement import contiguous, packed, replicated
from quire.resources import load_measurement

SOURCE = "expert-loads-cpu"
RUN = "aux-0.01"  # the weight of the balance loss with which the shipped model was trained
KINDS = ("code", "prose")
KIND, LAYER, RANKS = "prose", 3, 4  # of the case to begin with


def recorded_loads() -> dict[str, list[list[int]]]:
    """Tokens that each expert received, by kind of text: [layers][experts]."""
    loads: dict[str, dict[int, list[int]]] = {kind: {} for kind in KINDS}
    for row in load_measurement(SOURCE)["rows"]:
        told = row["parameters"]
        count = sum(name.startswith("expert_") for name in told)
        for kind in KINDS:
            if row["case"] == f"{RUN}-{kind}-layer-{told['layer']}":
                loads[kind][told["layer"]] = [told[f"expert_{expert}"] for expert in range(count)]
    return {kind: [layers[layer] for layer in sorted(layers)] for kind, layers in loads.items()}


def expert_balancer(model: str) -> dict[str, Any]:
    """All that the explorable computes with; no model is run."""
    loads = recorded_loads()
    asked = loads[KIND][LAYER]
    experts = len(asked)
    assert max(asked) * experts > 3 * sum(asked)
    by_number = contiguous(experts, RANKS).imbalance(asked)
    assert 1.3 < by_number < 2
    assert packed(asked, RANKS).imbalance(asked) > 1.3
    assert replicated(asked, RANKS, experts + RANKS).imbalance(asked) < 1.05
    return {
        "model": "quire-mini-moe",
        "source": SOURCE,
        "loads": loads,
        "scenario": {"kind": KIND, "layer": LAYER, "ranks": RANKS, "spares": 0},
    }


MAKERS = {"expert-balancer": expert_balancer}

if __name__ == "__main__":
    write_data(MAKERS)
