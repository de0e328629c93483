"""GPTQ: words packed along the columns, a zero a group that version 1 stores minus one.

The layout is AutoGPTQ's; GPTQModel, AutoRound and others write it too. `qweight` [K/8, N] has
eight columns of a row in a word, `qzeros` [G, N/8] eight rows of a group, `scales` is [G, N].
`g_idx` [K] is the group of each column: after act-order, neighbours may be of any group.

The zeros. Version 1 (`checkpoint_format` "gptq") stores the zero minus one. Its writers
(GPTQModel's `convert_gptq_v2_to_v1_format_module`, AutoRound's `pack_248_bits`) subtract from
the word as a whole, so a zero of 0 borrows from its neighbour: zeros 0, 5 are stored as 15, 3.
Only adding to the word as a whole gives them back; adding to each number gives 0, 4.
Version 2 ("gptq_v2") stores the zeros themselves. The label is not to be trusted where weights
are symmetric: Qwen3.5-27B-GPTQ-Int4 is of version 2 and says "gptq" (vllm-project/vllm, pull
request 38966). There the zero is known, 8 of 4 bits, and the stored number says how it was meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.errors import CheckpointError
from quire.quantization.codes import Codes
from quire.quantization.formats.packing import (
    find_scale,
    find_shaped,
    group_of_columns,
    groups_for,
    unpack,
    words_for,
)
from quire.quantization.scheme import Scheme


@dataclass(frozen=True)
class GPTQ:
    """How GPTQ's tools store a weight.

    Args:
        scheme: integers of 2, 4 or 8 bits, inputs as they are.
        version: of the zeros: 1, minus one, or 2.
        act_order: whether `g_idx` must be there. It is followed wherever it is.
    """

    scheme: Scheme
    version: int = 1
    act_order: bool = False

    def tensors(self) -> dict[str, bool]:
        """The words of weights and zeros, the scales, the group of each column."""
        return {"qweight": True, "qzeros": True, "scales": True, "g_idx": self.act_order}

    # docs: gptq begin
    def read(self, stored: Mapping[str, Tensor], rows: int, columns: int) -> Codes:
        """Return the codes of a weight [rows, columns]; see `WeightFormat`."""
        bits, size = self.scheme.bits, self.scheme.group_size
        num_groups = groups_for(columns, size)
        shape = (words_for(columns, bits), rows)
        words = find_shaped(stored, "qweight", torch.int32, shape)
        values = unpack(words.T, bits, columns)
        scale = find_scale(stored, "scales", ((num_groups, rows),)).T
        zero = self._zeros(stored, rows, num_groups)
        group_of = None
        if "g_idx" in stored or self.act_order:
            index = find_shaped(stored, "g_idx", torch.int32, (columns,))
            group_of = group_of_columns(index, size, num_groups)
        return Codes(values, scale.contiguous(), zero, bits, size, group_of)

    def _zeros(self, stored: Mapping[str, Tensor], rows: int, num_groups: int) -> Tensor | None:
        """Return the zero of each group, uint8 [N, G]; None where it is the middle."""
        bits = self.scheme.bits
        words = find_shaped(stored, "qzeros", torch.int32, (num_groups, words_for(rows, bits)))
        if not self.scheme.symmetric:
            if self.version == 1:
                words = words + _one_in_each(bits)  # as a whole: it undoes the borrows
            return unpack(words, bits, rows).T.contiguous()
        kinds = unpack(words, bits, rows).unique().tolist()
        middle = 1 << (bits - 1)
        if kinds not in ([middle], [middle - 1]):
            raise CheckpointError(
                f"qzeros holds {kinds[:8]} in a symmetric weight of {bits} bits, where each is "
                f"{middle}, or {middle - 1} in version 1; if the weight is asymmetric, set sym to "
                "false in config.json"
            )
        return None

    # docs: gptq end

    def input_scale(self, stored: Mapping[str, Tensor]) -> Tensor | None:
        """None: inputs stay as they are."""
        return None

    def __str__(self) -> str:
        """Name the format and its numbers."""
        order = " in act-order" if self.act_order else ""
        return f"GPTQ version {self.version} {self.scheme}{order}"


def _one_in_each(bits: int) -> int:
    """Return the word that has a one in each of its numbers: 0x11111111 of 4 bits."""
    return sum(1 << shift for shift in range(0, 32, bits))
