"""`Online`: a plain checkpoint whose layers are rounded while it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from quire.errors import CheckpointError
from quire.quantization.codes import Codes
from quire.quantization.rounding import round_to_nearest
from quire.quantization.scheme import Scheme


@dataclass(frozen=True)
class Online:
    """A `WeightFormat` for the weights of any checkpoint: each becomes the nearest code.

    A shard is rounded alone, so fused layers give the same numbers as separate ones.
    """

    scheme: Scheme

    def tensors(self) -> dict[str, bool]:
        """The plain weight."""
        return {"weight": True}

    def read(self, stored: Mapping[str, Tensor], rows: int, columns: int) -> Codes:
        """Round a weight to nearest.

        Raises:
            CheckpointError: the weight is missing, or of another shape.
        """
        weight = stored.get("weight")
        if weight is None or weight.shape != (rows, columns) or not weight.is_floating_point():
            found = "nothing" if weight is None else f"{list(weight.shape)} of {weight.dtype}"
            raise CheckpointError(
                f"weight is {found} where the config asks for floating-point numbers "
                f"[{rows}, {columns}]"
            )
        return round_to_nearest(weight, self.scheme)

    def input_scale(self, stored: Mapping[str, Tensor]) -> Tensor | None:
        """None: inputs are scaled as they come."""
        return None
