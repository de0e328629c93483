"""The benches of quantized weights at a size that a CPU takes; times are not judged."""

from __future__ import annotations

import pytest
import torch

from quire.bench import quantization_runs, quantization_speed
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


def test_a_row_of_a_run() -> None:
    """One request is told in milliseconds a token, many in tokens a second."""
    one = quantization_runs.row_of("qwen3-8b-int4-batch1", 256, 0.512, 1.024)
    assert (one.value, one.unit, one.baselines) == (2.0, "ms", {"bf16": 4.0})
    many = quantization_runs.row_of("qwen3-8b-int4-mix256", 1000, 2.0, 4.0)
    assert (many.value, many.unit, many.baselines) == (500.0, "tokens/s", {"bf16": 250.0})
    assert one.parameters == many.parameters == {"speedup": 2.0}


def test_real_sizes_need_a_gpu() -> None:
    """A CPU is refused by name."""
    config = ModelConfig.from_folder(shipped_models()["quire-mini-draft"])
    with pytest.raises(QuireError, match="--device cuda"):
        quantization_speed.run(config, CPU)
    with pytest.raises(QuireError, match="--device cuda"):
        quantization_runs.run(config, "mini", CPU)
