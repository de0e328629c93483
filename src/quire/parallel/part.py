"""`Part`: which rows, columns or heads of a matrix a rank keeps.

Tensor parallelism (Shoeybi et al. 2019, Megatron-LM) cuts a layer's first matrix by its rows
(outputs) and its second by its columns (inputs), so that a rank multiplies by both without
asking anybody and one sum over the ranks ends the layer. See the chapter "Parallelism".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from quire.errors import CheckpointError, QuireError
from quire.models.config import ModelConfig


# docs: part begin
@dataclass(frozen=True)
class Part:
    """Of `total` numbers along a dimension, the `size` from `begin` on.

    What lies beyond `total` is padding: it is stored nowhere, and zero.
    """

    total: int
    begin: int
    size: int

    @classmethod
    def whole(cls, total: int) -> Part:
        """All of them, as on a single rank."""
        return cls(total, 0, total)

    @property
    def stored(self) -> int:
        """How many of the part's numbers a checkpoint has."""
        return max(0, min(self.size, self.total - self.begin))

    def range(self) -> range:
        """Return the numbers themselves, of a part without padding."""
        return range(self.begin, self.begin + self.size)

    def times(self, width: int) -> Part:
        """Return the part in numbers of which each of these, heads say, has `width`."""
        return Part(self.total * width, self.begin * width, self.size * width)

    def of(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Return a view of the stored numbers of a whole tensor."""
        return tensor.narrow(dim, min(self.begin, self.total), self.stored)


# docs: part end


def cut(tensor: Tensor, parts: Sequence[Part]) -> Tensor:
    """Return a view of what a rank keeps of a checkpoint's tensor: a part along each dimension.

    Raises:
        CheckpointError: the tensor is not what the parts are of.
    """
    whole = [part.total for part in parts]
    if list(tensor.shape) != whole:
        raise CheckpointError(f"shape {list(tensor.shape)} where the config asks for {whole}")
    for dim, part in enumerate(parts):
        tensor = part.of(tensor, dim)
    return tensor


def even_part(total: int, rank: int, size: int) -> Part:
    """Return the part of rank `rank` of `size`; `total` is a multiple of `size`."""
    each = total // size
    return Part(total, rank * each, each)


def padded_part(total: int, rank: int, size: int) -> Part:
    """Return parts of equal size whatever `total` is: the last ones may be padded."""
    each = -(-total // size)
    return Part(total, rank * each, each)


# docs: heads begin
def query_heads(config: ModelConfig, rank: int, size: int) -> Part:
    """Return the query heads of a rank."""
    return even_part(config.num_heads, rank, size)


def kv_heads(config: ModelConfig, rank: int, size: int) -> Part:
    """Return the KV heads that the query heads of a rank read.

    Where there are fewer than ranks, several ranks keep a copy of the same head.
    """
    total = config.num_kv_heads
    return Part(total, rank * total // size, max(1, total // size))


# docs: heads end


def local_config(
    config: ModelConfig, size: int, *, expert_parallel: bool = False, num_redundant_experts: int = 0
) -> ModelConfig:
    """Return what one of `size` ranks has of a model: its heads and its share of the FFN.

    Args:
        expert_parallel: a rank has some experts whole, instead of a part of each.
        num_redundant_experts: copies of experts, on all ranks together.

    Raises:
        QuireError: the model cannot be cut into so many equal parts; the message names the number.
    """
    numbers, moe = {"num_attention_heads": config.num_heads}, config.moe
    if moe is None or len(moe.layers) < config.num_layers:
        numbers["intermediate_size"] = config.intermediate_size
    if moe is not None and expert_parallel:
        numbers["num_experts"] = moe.num_experts + num_redundant_experts
    elif moe is not None:
        numbers["moe_intermediate_size"] = moe.intermediate_size
    for name, number in numbers.items():
        if number % size:
            raise QuireError(
                f"tensor_parallel_size={size}: the model has {name}={number}, which {size} ranks "
                f"cannot share evenly; choose a divisor of {number}"
            )
    kv = config.num_kv_heads
    if kv % size and size % kv:
        raise QuireError(
            f"tensor_parallel_size={size}: the model has num_key_value_heads={kv}; {size} must "
            f"divide {kv}, or be a multiple of it so that heads can be copied"
        )
    if moe is not None and not expert_parallel:
        moe = replace(moe, intermediate_size=moe.intermediate_size // size)
    return replace(
        config,
        num_heads=config.num_heads // size,
        num_kv_heads=max(1, kv // size),
        intermediate_size=config.intermediate_size // size,
        moe=moe,
    )
