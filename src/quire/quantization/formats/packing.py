"""Bits out of 32-bit words, and the checks that every format makes of its tensors.

Files are little-endian, and so is every machine that torch is built for with CUDA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quire.errors import CheckpointError

WORD_BITS = 32


# docs: unpack begin
def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` numbers of each row of words, the lowest bits first.

    A number of 2, 4 or 8 bits never crosses a byte, so the words are read as bytes: that needs
    no 32-bit copy of every number.

    Args:
        words: int32 [rows, W].
        bits: of a number: 2, 4 or 8.
        count: numbers of a row; what a last word has beyond them is padding.

    Returns:
        uint8 [rows, count].
    """
    data = words.contiguous().view(-1).view(torch.uint8).view(len(words), -1)  # [rows, 4 W]
    parts = [(data >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, dim=-1).flatten(1)[:, :count]


# docs: unpack end


def words_for(count: int, bits: int) -> int:
    """Return how many 32-bit words hold `count` numbers."""
    return -(-count * bits // WORD_BITS)


def groups_for(columns: int, group_size: int | None) -> int:
    """Return the number of groups of a row; a last one may be short."""
    return 1 if group_size is None else -(-columns // group_size)


def find(stored: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a tensor that the checkpoint must have.

    Raises:
        CheckpointError: it has not.
    """
    if name not in stored:
        raise CheckpointError(
            f"{name} is missing beside {', '.join(sorted(stored)) or 'nothing'}; is a weight file "
            "missing, or does config.json belong to another checkpoint?"
        )
    return stored[name]


def find_shaped(
    stored: Mapping[str, Tensor], name: str, dtype: torch.dtype, shape: Sequence[int]
) -> Tensor:
    """Return a tensor of a given dtype and shape.

    Raises:
        CheckpointError: it is missing, or of another kind.
    """
    tensor = find(stored, name)
    if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
        raise CheckpointError(
            f"{name} is {_kind(tensor)} where the config's quantization asks for "
            f"{dtype} {list(shape)}; do config.json and weights belong together?"
        )
    return tensor


def find_scale(stored: Mapping[str, Tensor], name: str, shapes: Sequence[Sequence[int]]) -> Tensor:
    """Return a scale in float32, every number as the file has it, of one of some shapes.

    Raises:
        CheckpointError: it is missing, of another kind, or not finite.
    """
    tensor = find(stored, name)
    if not tensor.is_floating_point() or tuple(tensor.shape) not in {tuple(s) for s in shapes}:
        asked = " or ".join(str(list(shape)) for shape in shapes)
        raise CheckpointError(
            f"{name} is {_kind(tensor)} where the config's quantization asks for floating-point "
            f"numbers {asked}; do config.json and weights belong together?"
        )
    scale = tensor.float()
    if not bool(scale.isfinite().all()):
        raise CheckpointError(f"{name} holds numbers that are not finite; download it again")
    return scale


def find_input_scale(stored: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the one scale of a layer's inputs, float32 [1].

    Raises:
        CheckpointError: it is missing, or is not one positive number.
    """
    scale = find_scale(stored, name, ((), (1,), (1, 1))).reshape(1)
    if not bool(scale > 0):
        raise CheckpointError(f"{name} is {scale.item()}; a scale of inputs is positive")
    return scale


def group_of_columns(index: Tensor, group_size: int | None, num_groups: int) -> Tensor | None:
    """Return the group of each column, int64 [K]; None where groups lie in order.

    Raises:
        CheckpointError: a column's group is not there, or a group has no column.
    """
    groups = index.long()
    in_order = torch.arange(len(groups)) // (group_size or len(groups))
    if torch.equal(groups, in_order):
        return None
    if int(groups.min()) < 0 or int(groups.max()) >= num_groups:
        raise CheckpointError(
            f"the index of groups reaches from {int(groups.min())} to {int(groups.max())}; there "
            f"are {num_groups} groups"
        )
    if missing := set(range(num_groups)) - set(groups.unique().tolist()):
        raise CheckpointError(f"the index of groups gives group {min(missing)} no column")
    return groups


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
