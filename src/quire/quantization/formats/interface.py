"""`WeightFormat`: how a checkpoint stores one weight, and what it takes to read it.

A format is a value: two layers are stored alike if their formats are equal. See the chapter
"Quantization".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from quire.quantization.codes import Codes
from quire.quantization.scheme import Scheme


class WeightFormat(Protocol):
    """Swap point: how a checkpoint stores the weight of one shard of a linear layer."""

    @property
    def scheme(self) -> Scheme:
        """In which numbers the weight is kept, and to which the layer rounds its inputs."""
        ...

    def tensors(self) -> dict[str, bool]:
        """Return the last part of each tensor's name, "weight_packed" say; True: it must be there.

        The layer's bias is not among them: it is stored as in any checkpoint.
        """
        ...

    def read(self, stored: Mapping[str, Tensor], rows: int, columns: int) -> Codes:
        """Return the codes of a weight [rows, columns].

        Args:
            stored: the tensors of `tensors` that the checkpoint has. The codes may be views of
                them.
            rows: output features of the shard.
            columns: input features.

        Raises:
            CheckpointError: a tensor is missing, of another shape or dtype, or holds numbers
                that the format does not allow.
        """
        ...

    def input_scale(self, stored: Mapping[str, Tensor]) -> Tensor | None:
        """Return the scale of the layer's inputs, float32 [1], if the checkpoint gives one.

        Raises:
            CheckpointError: it should, and does not.
        """
        ...
