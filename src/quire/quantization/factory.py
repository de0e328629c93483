"""Which `QuantMethod` a layer gets."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quire.errors import QuireError, UnsupportedModelError
from quire.layers.linear import MethodFactory, QuantMethod
from quire.models.config import ModelConfig
from quire.quantization.checkpoint import QuantConfig
from quire.quantization.cpu import CPUFloat32
from quire.quantization.formats.interface import WeightFormat
from quire.quantization.gpu import EightBitsOnGPU, Int4OnGPU
from quire.quantization.online import Online
from quire.quantization.scheme import Scheme
from quire.quantization.unpacked import IntegersOnCPU, Unpacked, multiplies_integers
from quire.quantization.unquantized import Unquantized


def unquantized(dtype: torch.dtype, device: torch.device) -> MethodFactory:
    """Return the factory for weights as they are, in this dtype on this device."""
    kind = CPUFloat32 if device.type == "cpu" and dtype == torch.float32 else Unquantized

    def method_for(names: Sequence[str]) -> QuantMethod:
        """Every layer gets the same."""
        return kind()

    return method_for


def methods(
    config: ModelConfig, scheme: str | None, dtype: torch.dtype, device: torch.device
) -> MethodFactory:
    """Return the factory for a model's layers.

    Args:
        config: whose checkpoint may be quantized already.
        scheme: what to round a plain checkpoint to while it is loaded; None: nothing.

    Raises:
        QuireError: a scheme, and a checkpoint that is quantized already.
        CheckpointError, UnsupportedModelError: a `quantization_config` that makes no sense, or
            that quire lacks; experts that are or shall be quantized.
    """
    plain = unquantized(dtype, device)
    if config.moe is not None and (config.quantization is not None or scheme is not None):
        asked = "its quantization_config" if scheme is None else f"quantization={scheme!r}"
        raise UnsupportedModelError(
            f"{config.architecture} with {asked}: quantized experts are not supported; load the "
            "unquantized checkpoint, without the option"
        )
    if config.quantization is None:
        if scheme is None:
            return plain
        online = Online(Scheme.named(scheme))
        return lambda names: quantized(online, dtype, device)
    table = QuantConfig.of(config.quantization, config)
    if scheme is not None:
        raise QuireError(
            f"quantization={scheme!r} with a checkpoint that is quantized already "
            f"({table.method}): leave the option out, or load its unquantized original"
        )

    def method_for(names: Sequence[str]) -> QuantMethod:
        stored_as = table.for_shards(names)
        return plain(names) if stored_as is None else quantized(stored_as, dtype, device)

    return method_for


def quantized(stored_as: WeightFormat, dtype: torch.dtype, device: torch.device) -> QuantMethod:
    """Return what multiplies by weights of a format fastest, of what serves it."""
    if Int4OnGPU.serves(stored_as, dtype, device):
        return Int4OnGPU(stored_as)
    if EightBitsOnGPU.serves(stored_as, dtype, device):
        return EightBitsOnGPU(stored_as)
    if device.type == "cpu" and multiplies_integers(stored_as):
        return IntegersOnCPU(stored_as)
    return Unpacked(stored_as, unquantized(dtype, device))
