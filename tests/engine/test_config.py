"""The dtype that a device gets when nobody names one."""

from __future__ import annotations

import pytest
import torch

from quire import devices


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),  # a T4, where torch calls emulated bfloat16 supported
        ((8, 0), torch.bfloat16),
        ((8, 9), torch.bfloat16),
        ((9, 0), torch.bfloat16),
        ((10, 0), torch.bfloat16),
    ],
)
def test_the_capability_decides_the_dtype(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "capability", lambda device: capability)
    assert devices.default_dtype(torch.device("cuda")) == dtype


def test_a_cpu_computes_in_float32_and_a_name_overrides() -> None:
    assert devices.default_dtype(torch.device("cpu")) == torch.float32
    assert devices.default_dtype(torch.device("cuda"), "float16") == torch.float16
    assert devices.default_dtype(torch.device("cpu"), torch.bfloat16) == torch.bfloat16
