"""`Layer`: a part of a decoder, and what it does while a checkpoint is loaded.

A layer names the tensors it takes from a checkpoint, so that the loader knows no kind of
layer: fused projections, experts, packed weights and a rank's shard differ in their takers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quire.errors import CheckpointError
from quire.parallel.part import Part, cut

RANDOM_STD = 0.02  # of random weights: as models are initialised for training


@dataclass(frozen=True)
class Taker:
    """What one tensor of a checkpoint is given to.

    `take` gets a view of a mapped file: a slice of it is free, and only the bytes that are
    copied are read. It may be kept until `finish_load`, and no longer.
    """

    take: Callable[[Tensor], None]
    required: bool = True  # a checkpoint without the tensor is incomplete


class Layer(nn.Module):
    """An `nn.Module` that loads itself, calls straight into `forward` and finds its parts at once.

    torch looks for hooks at every call, and keeps parameters and submodules in dictionaries
    that Python only searches after everything else. A step of quire-mini makes more than
    eighty calls and twice as many look-ups: together 8 % of the step on two CPU
    threads (interleaved runs with and without this class).
    """

    def __call__(self, *args: Any) -> Any:
        """Call `forward`; hooks are not supported."""
        return self.forward(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        """Register a parameter or submodule as torch does, and keep it in reach as well."""
        super().__setattr__(name, value)
        if isinstance(value, nn.Module | nn.Parameter):
            self.__dict__[name] = value

    @property
    def parts(self) -> list[Layer]:
        """The layers that this one is made of, in order."""
        return [child for child in self.children() if isinstance(child, Layer)]

    def takes(self) -> dict[str, Taker]:
        """Map the checkpoint's name of every tensor that this layer wants to what takes it."""
        return {name: taker for part in self.parts for name, taker in part.takes().items()}

    def finish_load(self) -> None:
        """Transform the weights, now that they are all there."""
        for part in self.parts:
            part.finish_load()

    def fill_random(self, generator: torch.Generator) -> None:
        """Fill the weights at random, in place of a checkpoint."""
        for part in self.parts:
            part.fill_random(generator)


class LayerList(Layer, nn.ModuleList):
    """Layers in order."""


def empty_parameter(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> nn.Parameter:
    """Return a parameter to be filled by a checkpoint; inference wants no gradient."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


def check_fits(place: Tensor, tensor: Tensor) -> None:
    """Raise CheckpointError unless a checkpoint's tensor is of a place's shape and kind."""
    if place.shape != tensor.shape:
        raise CheckpointError(
            f"shape {list(tensor.shape)} where the config asks for {list(place.shape)}"
        )
    if place.is_floating_point() != tensor.is_floating_point():
        raise CheckpointError(f"{tensor.dtype} where the config asks for {place.dtype}")


def copy_checked(place: Tensor, tensor: Tensor) -> None:
    """Copy a checkpoint's tensor into its place, in the place's dtype and device.

    Raises:
        CheckpointError: it does not fit.
    """
    check_fits(place, tensor)
    place.copy_(tensor)


def leave(tensor: Tensor) -> None:
    """Take a checkpoint's tensor that another rank keeps."""


def copy_part(place: Tensor, tensor: Tensor, parts: Sequence[Part]) -> None:
    """Copy the parts that a rank keeps, one a dimension, of a checkpoint's tensor.

    Padding becomes zero.

    Raises:
        CheckpointError: the whole tensor is not what the parts are of.
    """
    own = cut(tensor, parts)
    if any(part.stored < part.size for part in parts):
        place.zero_()
    for dim, part in enumerate(parts):
        place = place.narrow(dim, 0, part.stored)
    copy_checked(place, own)
