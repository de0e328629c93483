"""Which `QuantMethod` a layer gets."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quire.layers.linear import MethodFactory, QuantMethod
from quire.quantization.cpu import CPUFloat32
from quire.quantization.unquantized import Unquantized


def unquantized(dtype: torch.dtype, device: torch.device) -> MethodFactory:
    """Return the factory for weights as they are, in this dtype on this device."""
    kind = CPUFloat32 if device.type == "cpu" and dtype == torch.float32 else Unquantized

    def method_for(names: Sequence[str]) -> QuantMethod:
        """Every layer gets the same."""
        return kind()

    return method_for
