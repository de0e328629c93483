"""AWQ: words packed along the rows, eight of them in an order of the kernel's own.

The layout is AutoAWQ's "gemm": `qweight` [K, N/8] has eight rows of a column in a word,
`qzeros` [G, N/8] likewise, `scales` is [G, N]. The i-th number of a word, from the lowest bits,
is row 0, 2, 4, 6, 1, 3, 5, 7 of the eight: so a GPU that takes every other nibble with one mask
gets neighbours. Zeros are stored as they are: w = (value - zero) * scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.errors import CheckpointError, UnsupportedModelError
from quire.quantization.codes import Codes
from quire.quantization.formats.packing import find_scale, find_shaped, groups_for, unpack
from quire.quantization.scheme import Scheme

BITS = 4
IN_A_WORD = 32 // BITS
PLACE_OF_ROW = (0, 4, 1, 5, 2, 6, 3, 7)  # in a word, of each of eight rows


@dataclass(frozen=True)
class AWQ:
    """How AutoAWQ stores a weight for its kernel "gemm"; see the module.

    Args:
        scheme: integers of 4 bits, inputs as they are.
    """

    scheme: Scheme

    def tensors(self) -> dict[str, bool]:
        """The words of weights and zeros, and the scales."""
        return {"qweight": True, "qzeros": not self.scheme.symmetric, "scales": True}

    # docs: awq begin
    def read(self, stored: Mapping[str, Tensor], rows: int, columns: int) -> Codes:
        """Return the codes of a weight [rows, columns]; see `WeightFormat`.

        Raises:
            UnsupportedModelError: a shape that the format does not hold.
        """
        size = self.scheme.group_size
        if rows % IN_A_WORD or columns % (size or columns):
            raise UnsupportedModelError(
                f"a weight of {rows} x {columns} in AWQ: its rows must be a multiple of "
                f"{IN_A_WORD} and its columns of the group, {size}"
            )
        num_groups, words = groups_for(columns, size), rows // IN_A_WORD
        weight = find_shaped(stored, "qweight", torch.int32, (columns, words))
        scale = find_scale(stored, "scales", ((num_groups, rows),)).T.contiguous()
        zero = None
        if "qzeros" in stored or not self.scheme.symmetric:
            zero = self._unpack(find_shaped(stored, "qzeros", torch.int32, (num_groups, words)))
        if self.scheme.symmetric and zero is not None:
            if bool((zero != 1 << (BITS - 1)).any()):
                raise CheckpointError(
                    f"qzeros holds {zero.unique().tolist()[:8]} where zero_point is false, so that "
                    f"each is {1 << (BITS - 1)}; set zero_point to true in config.json"
                )
            zero = None
        return Codes(self._unpack(weight), scale, zero, BITS, size)

    def _unpack(self, words: Tensor) -> Tensor:
        """Return the numbers of words [count, N/8] as uint8 [N, count]."""
        places = unpack(words, BITS, words.shape[1] * IN_A_WORD)
        by_row = places.view(len(words), -1, IN_A_WORD)[:, :, PLACE_OF_ROW]
        return by_row.flatten(1).T.contiguous()

    # docs: awq end

    def input_scale(self, stored: Mapping[str, Tensor]) -> Tensor | None:
        """None: inputs stay as they are."""
        return None

    def __str__(self) -> str:
        """Name the format and its numbers."""
        return f"AWQ {self.scheme}"
