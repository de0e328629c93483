"""FP8 weights: E4M3 numbers with a scale for the matrix, a row, or a block of 128 × 128.

Blocks are how DeepSeek and Qwen publish their models: `weight_scale_inv`
[⌈N/128⌉, ⌈K/128⌉] multiplies, whatever its name says. The last block of a row or column may be
cut short, and the blocks of a matrix begin at its own first row: a layer that is fused of
several has several grids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.quantization.codes import Codes
from quire.quantization.formats.packing import find_input_scale, find_scale, find_shaped, groups_for
from quire.quantization.scheme import Scheme

E4M3 = torch.float8_e4m3fn


@dataclass(frozen=True)
class FP8:
    """An FP8 weight and its scales.

    Args:
        scheme: "fp8", 8 bits; `block_rows` 1 for a scale a row (or for the whole matrix).
        scale_name: the scales' name; "weight_scale_inv" of blocks.
    """

    scheme: Scheme
    scale_name: str = "weight_scale"

    def tensors(self) -> dict[str, bool]:
        """The weight, its scales, and the scale of the inputs where it is fixed."""
        names = {"weight": True, self.scale_name: True}
        return {**names, "input_scale": True} if self.scheme.inputs == "tensor" else names

    # docs: fp8 begin
    def read(self, stored: Mapping[str, Tensor], rows: int, columns: int) -> Codes:
        """Return the codes of a weight [rows, columns]; see `WeightFormat`."""
        size, block_rows = self.scheme.group_size, self.scheme.block_rows
        values = find_shaped(stored, "weight", E4M3, (rows, columns))
        num_blocks = (-(-rows // block_rows), groups_for(columns, size))
        shapes: tuple[tuple[int, ...], ...] = (num_blocks,)
        if size is None:
            shapes = (num_blocks, (rows,), (), (1,), (1, 1))  # a row's, or the whole matrix's
        scale = find_scale(stored, self.scale_name, shapes)
        if block_rows == 1:
            scale = scale.reshape(-1, num_blocks[1]).expand(rows, -1)
        else:
            scale = scale.repeat_interleave(block_rows, 0)[:rows]  # a block's, for each row of it
        return Codes(values, scale.contiguous(), None, 8, size)

    # docs: fp8 end

    def input_scale(self, stored: Mapping[str, Tensor]) -> Tensor | None:
        """Return the inputs' fixed scale where there is one; see `WeightFormat`."""
        return find_input_scale(stored, "input_scale") if self.scheme.inputs == "tensor" else None

    def __str__(self) -> str:
        """Name the format and its numbers."""
        return f"FP8 {self.scheme}"
