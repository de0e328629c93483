"""`Codes`: a weight as small numbers on a grid, in whatever format it was stored.

Every checkpoint format is read into `Codes`, every quantization algorithm returns them, and
each way to multiply packs them as its kernel wants them. See the chapter "Quantization".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quire.errors import QuireError
from quire.parallel.part import Part


# docs: codes begin
@dataclass(frozen=True)
class Codes:
    """w[n, k] = (values[n, k] - zero[n, g]) * scale[n, g], g being the group of column k.

    Invariants (`check`): integer values lie in [0, 2**bits); `scale` and `zero` are [N, G], and
    every group in [0, G) has a column; `values` of FP8 (E4M3) have no zero.
    """

    values: Tensor  # uint8 or float8_e4m3fn [N, K]
    scale: Tensor  # float32 [N, G]; every number is one of the dtype that it is stored in
    zero: Tensor | None = None  # uint8 [N, G], the value that stands for 0; None: `middle`
    bits: int = 8
    group_size: int | None = None  # columns in a group, the last may have fewer; None: all K
    group_of: Tensor | None = None  # int64 [K], where columns of a group do not lie together

    @property
    def is_float(self) -> bool:
        """Whether the values are 8-bit floating-point numbers."""
        return self.values.dtype.is_floating_point

    @property
    def middle(self) -> int:
        """The integer that stands for 0 where there is no `zero`."""
        return 0 if self.is_float else 1 << (self.bits - 1)

    def groups(self) -> Tensor:
        """Return the group of each column, int64 [K]."""
        if self.group_of is not None:
            return self.group_of
        columns = self.values.shape[1]
        return torch.arange(columns, device=self.values.device) // (self.group_size or columns)

    def dequantize(self) -> Tensor:
        """Return the weight that the codes stand for, float32 [N, K]."""
        groups = self.groups()
        values = self.values.float()
        zero = self.middle if self.zero is None else self.zero.float()[:, groups]
        return (values - zero) * self.scale[:, groups]

    # docs: codes end

    def to(self, device: torch.device) -> Codes:
        """Return the codes on a device."""
        zero, group_of = self.zero, self.group_of
        return Codes(
            self.values.to(device),
            self.scale.to(device),
            None if zero is None else zero.to(device),
            self.bits,
            self.group_size,
            None if group_of is None else group_of.to(device),
        )

    @classmethod
    def stack(cls, parts: Sequence[Codes]) -> Codes:
        """Return the codes of weights that lie one above the other, as in a fused layer.

        Raises:
            ValueError: they differ in bits, groups or order of columns.
        """
        first = parts[0]
        for other in parts[1:]:
            same = (first.bits, first.group_size, first.values.dtype) == (
                other.bits,
                other.group_size,
                other.values.dtype,
            )
            if not same or not torch.equal(first.groups(), other.groups()):
                raise ValueError("parts of one matrix differ in bits, groups or order of columns")
        zero = None
        if any(part.zero is not None for part in parts):
            zero = torch.cat([part.whole_zero() for part in parts])
        return cls(
            torch.cat([part.values for part in parts]),
            torch.cat([part.scale for part in parts]),
            zero,
            first.bits,
            first.group_size,
            first.group_of,
        )

    def part(self, rows: Part, columns: Part) -> Codes:
        """Return what a rank keeps of the codes of a whole matrix, as views.

        Raises:
            QuireError: the columns' groups lie across ranks.
        """
        if rows == Part.whole(rows.total) and columns == Part.whole(columns.total):
            return self
        groups = self.scale.shape[1]
        if columns != Part.whole(columns.total) and groups > 1:
            size = self.group_size
            if self.group_of is not None or size is None or columns.size % size:
                raise QuireError(
                    f"a rank gets {columns.size} of {columns.total} columns, and the groups of "
                    f"{size} that share a scale lie across ranks"
                    f"{' in an order of their own' if self.group_of is not None else ''}: choose "
                    "fewer ranks, or quantize again with smaller groups in the columns' order"
                )
            of_groups = Part(groups, columns.begin // size, columns.size // size)
        else:
            of_groups = Part.whole(groups)
        zero = self.zero
        return replace(
            self,
            values=columns.of(rows.of(self.values), 1),
            scale=of_groups.of(rows.of(self.scale), 1),
            zero=None if zero is None else of_groups.of(rows.of(zero), 1),
        )

    def whole_zero(self) -> Tensor:
        """Return the value that stands for 0 in each group, uint8 [N, G]."""
        if self.zero is not None:
            return self.zero
        shape, device = self.scale.shape, self.scale.device
        return torch.full(shape, self.middle, dtype=torch.uint8, device=device)

    def check(self) -> None:
        """Raise AssertionError if an invariant does not hold."""
        rows, columns = self.values.shape
        groups = self.groups()
        assert groups.shape == (columns,)
        num_groups = self.scale.shape[1]
        assert self.scale.shape == (rows, num_groups)
        assert set(groups.tolist()) == set(range(num_groups))
        if self.is_float:
            assert self.zero is None
            assert self.bits == 8
        else:
            assert self.values.dtype == torch.uint8
            assert int(self.values.max()) < 1 << self.bits
        if self.zero is not None:
            assert self.zero.shape == self.scale.shape
            assert int(self.zero.max()) < 1 << self.bits
