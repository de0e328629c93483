"""compressed-tensors: what llm-compressor writes and vLLM reads first.

Integers lie in words ("pack-quantized") or in bytes ("int-quantized"), signed, with a scale for
the matrix, a row or a group of columns. In words a number is stored with half its range added,
so that it is not negative, and the lowest bits come first; eight zeros of a column of groups
share a word along the *rows*. FP8 numbers ("float-quantized") lie as in `fp8`.

Act-order leaves no trace if it is static ("weight" or "static" in the config): groups lie in
order. The older kind ("group") has the group of each column in `weight_g_idx`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.errors import CheckpointError
from quire.quantization.codes import Codes
from quire.quantization.formats.packing import (
    find,
    find_input_scale,
    find_scale,
    find_shaped,
    group_of_columns,
    groups_for,
    unpack,
    words_for,
)
from quire.quantization.scheme import Scheme


@dataclass(frozen=True)
class Integers:
    """Integers with their scales and zeros.

    Args:
        scheme: of the weight and of the layer's inputs.
        packed: whether the integers lie in words rather than a byte each.
        act_order: whether the columns of a group do not lie together.
    """

    scheme: Scheme
    packed: bool
    act_order: bool = False

    def tensors(self) -> dict[str, bool]:
        """The integers and their scales; where the scheme has them, zeros, order, inputs' scale.

        `weight_shape` says nothing that the model's config does not; it is compared with it.
        """
        names = {"weight_packed" if self.packed else "weight": True, "weight_scale": True}
        if self.packed:
            names["weight_shape"] = False
        names["weight_zero_point"] = not self.scheme.symmetric
        if self.act_order:
            names["weight_g_idx"] = True
        if self.scheme.inputs == "tensor":
            names["input_scale"] = True
        return names

    # docs: integers begin
    def read(self, stored: Mapping[str, Tensor], rows: int, columns: int) -> Codes:
        """Return the codes of a weight [rows, columns]; see `WeightFormat`."""
        bits, size = self.scheme.bits, self.scheme.group_size
        num_groups = groups_for(columns, size)
        if self.packed:
            shape = (rows, words_for(columns, bits))
            words = find_shaped(stored, "weight_packed", torch.int32, shape)
            self._compare_shape(stored, rows, columns)
            values = unpack(words, bits, columns)  # stored with half the range added: unsigned
        else:
            signed = find_shaped(stored, "weight", torch.int8, (rows, columns))
            values = self._unsigned(signed, "weight")
        scale = find_scale(stored, "weight_scale", _shapes(rows, num_groups, size))
        scale = scale.reshape(-1, num_groups).expand(rows, -1).contiguous()
        zero = self._zeros(stored, rows, num_groups)
        group_of = None
        if self.act_order:
            index = find(stored, "weight_g_idx")
            if index.shape != (columns,) or index.is_floating_point():
                raise CheckpointError(f"weight_g_idx is {list(index.shape)}, not [{columns}]")
            if not bool((index == -1).any()):  # as long as nobody has set it, groups are in order
                group_of = group_of_columns(index, size, num_groups)
        return Codes(values, scale, zero, bits, size, group_of)

    def _zeros(self, stored: Mapping[str, Tensor], rows: int, num_groups: int) -> Tensor | None:
        """Return the zero of each group, uint8 [N, G]; None where it is the middle."""
        if "weight_zero_point" not in stored and self.scheme.symmetric:
            return None
        bits, size = self.scheme.bits, self.scheme.group_size
        tensor = find(stored, "weight_zero_point")
        if tensor.dtype == torch.int32:  # in words along the rows
            shape = (words_for(rows, bits), num_groups)
            words = find_shaped(stored, "weight_zero_point", torch.int32, shape)
            zero = unpack(words.T, bits, rows).T.contiguous()
        else:
            shapes = _shapes(rows, num_groups, size)
            if tensor.dtype != torch.int8 or tuple(tensor.shape) not in shapes:
                raise CheckpointError(
                    f"weight_zero_point is {tensor.dtype} {list(tensor.shape)} where the config's "
                    f"quantization asks for a zero for each of {rows} x {num_groups} groups"
                )
            zero = self._unsigned(tensor, "weight_zero_point").reshape(-1, num_groups)
            zero = zero.expand(rows, -1).contiguous()
        if not self.scheme.symmetric:
            return zero
        if bool((zero != 1 << (bits - 1)).any()):
            raise CheckpointError(
                "weight_zero_point is not 0 in a symmetric weight; if it is asymmetric, set "
                "symmetric to false in config.json"
            )
        return None

    def _unsigned(self, signed: Tensor, name: str) -> Tensor:
        """Return signed numbers with half their range added, uint8."""
        half = 1 << (self.scheme.bits - 1)
        least, most = (int(value) for value in signed.aminmax())
        if least < -half or most >= half:
            raise CheckpointError(
                f"{name} reaches from {least} to {most}; integers of {self.scheme.bits} bits "
                f"reach from {-half} to {half - 1}"
            )
        return signed.contiguous().view(torch.uint8) + half  # modulo 256

    # docs: integers end

    def _compare_shape(self, stored: Mapping[str, Tensor], rows: int, columns: int) -> None:
        """Raise unless the shape that the checkpoint gives is the model's."""
        if "weight_shape" in stored and stored["weight_shape"].tolist() != [rows, columns]:
            raise CheckpointError(
                f"weight_shape says {stored['weight_shape'].tolist()} where the config asks for "
                f"{[rows, columns]}; do config.json and weights belong together?"
            )

    def input_scale(self, stored: Mapping[str, Tensor]) -> Tensor | None:
        """Return the inputs' fixed scale where there is one; see `WeightFormat`."""
        return find_input_scale(stored, "input_scale") if self.scheme.inputs == "tensor" else None

    def __str__(self) -> str:
        """Name the format and its numbers."""
        order = " in act-order" if self.act_order else ""
        return f"{'packed' if self.packed else 'plain'} integers {self.scheme}{order}"


def _shapes(rows: int, num_groups: int, group_size: int | None) -> tuple[tuple[int, ...], ...]:
    """Return the shapes that a number for each group, each row or the whole matrix may have."""
    if group_size is not None:
        return ((rows, num_groups),)
    return ((rows, 1), (rows,), (), (1,), (1, 1))
