"""`Scheme`: in which numbers a layer keeps its weight, and to which it rounds its inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from quire.errors import QuireError

# What a layer's inputs are rounded to before the product: nothing; a scale a token; a scale a
# token and group of columns; one scale that the checkpoint gives for all tokens.
Inputs = Literal["plain", "token", "group", "tensor"]


@dataclass(frozen=True)
class Scheme:
    """The numbers of a quantized layer.

    Args:
        kind: "int" or "fp8" (E4M3: four bits of exponent, three of mantissa).
        bits: of a weight.
        group_size: columns of a row that share a scale; None: the whole row.
        block_rows: rows that share the scale of a group: 1, or 128 in blocks of 128 × 128.
        symmetric: whether 0 is the middle of the integers and no zero is stored.
        inputs: what a layer's inputs are rounded to, in the weight's kind with 8 bits.
    """

    kind: Literal["int", "fp8"]
    bits: int
    group_size: int | None = None
    block_rows: int = 1
    symmetric: bool = True
    inputs: Inputs = "plain"

    @classmethod
    def named(cls, name: str) -> Scheme:
        """Return the scheme of a name: "int8", "fp8", "fp8_block", "int4" or such as those below.

        "int4" is "int4-g128": weights alone, a scale for 128 columns. "int4-g32-asym" has
        smaller groups with a zero each, "int4-channel" a scale a row, "int8-g128" weights of 8
        bits and inputs as they are.

        Raises:
            QuireError: no such scheme.
        """
        if not isinstance(name, str):
            raise QuireError(f"scheme {name!r}: must be a name, one of {', '.join(SCHEMES)} say")
        if name in SCHEMES:
            return SCHEMES[name]
        match = re.fullmatch(r"int([2-8])-(?:g(\d+)|channel)(-asym)?", name)
        size = int(match[2]) if match and match[2] else None
        if match is None or size == 0:
            raise QuireError(
                f"scheme {name!r}: must be one of {', '.join(SCHEMES)}, or int<bits>-g<columns> or "
                "int<bits>-channel with 2 to 8 bits, with -asym behind for a zero a group "
                "('int4-g32-asym')"
            )
        return cls("int", int(match[1]), size, symmetric=match[3] is None)

    def bits_a_weight(self, scale_bits: int = 16) -> float:
        """Return the bits of a weight with its share of a group's scale and zero."""
        if self.group_size is None:
            return self.bits
        zero_bits = 0 if self.symmetric else self.bits
        return self.bits + (scale_bits + zero_bits) / (self.group_size * self.block_rows)

    def __str__(self) -> str:
        """Return the shortest name that `named` takes for it, or a description."""
        for name, scheme in SCHEMES.items():
            if scheme == self:
                return name
        if self.kind == "int" and self.inputs == "plain":
            size = "channel" if self.group_size is None else f"g{self.group_size}"
            return f"int{self.bits}-{size}" + ("" if self.symmetric else "-asym")
        return (
            f"{self.kind}{'' if self.kind == 'fp8' else self.bits} with groups of "
            f"{self.group_size or 'a row'} and inputs rounded by {self.inputs}"
        )


SCHEMES = {
    "int8": Scheme("int", 8, inputs="token"),
    "int4": Scheme("int", 4, 128),
    "fp8": Scheme("fp8", 8, inputs="token"),
    "fp8_block": Scheme("fp8", 8, 128, block_rows=128, inputs="group"),
}
