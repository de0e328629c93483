"""`quire bench quantization-speed` at a size that a CPU takes; times are not judged."""

from __future__ import annotations

import pytest
import torch

from quire.bench import quantization_speed
from quire.errors import QuireError
from quire.models.config import ModelConfig
from quire.resources import shipped_models

CPU = torch.device("cpu")


def test_products() -> None:
    """A row a format and number of tokens, each beside 16-bit weights and their quotient."""
    config = ModelConfig.from_folder(shipped_models()["quire-mini-draft"])
    rows = quantization_speed.products(config, CPU, torch.float32, 1, (1, 3))
    assert [row.case for row in rows] == [
        f"products-{scheme}-m{m}" for scheme in quantization_speed.FORMATS for m in (1, 3)
    ]
    for row in rows:
        ratio = row.baselines["16 bits"] / row.value
        assert row.parameters["speedup"] == pytest.approx(ratio)
        assert row.parameters["weights"] > 100_000


def test_real_sizes_need_a_gpu() -> None:
    """A CPU is refused by name."""
    config = ModelConfig.from_folder(shipped_models()["quire-mini-draft"])
    with pytest.raises(QuireError, match="--device cuda"):
        quantization_speed.run(config, "mini", CPU)
