"""Rounding a layer's inputs to eight bits, so that a product has eight bits on both sides."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.quantization.rounding import FP8, LARGEST_FP8
from quire.quantization.scheme import Scheme

LARGEST = {torch.int8: 127.0, FP8: LARGEST_FP8}  # code of the largest element
SMALLEST_SCALE = 1e-12  # of inputs that are all zero


# docs: inputs begin
def round_inputs(
    x: Tensor, scheme: Scheme, fixed_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return 8-bit codes of inputs and what a code of 1 stands for.

    Args:
        x: [num_tokens, K].
        scheme: its `inputs` says which elements share a scale; its `kind` which codes.
        fixed_scale: float32 [1], for inputs "tensor".

    Returns:
        codes: int8 or float8_e4m3fn [num_tokens, K].
        scale: float32 [num_tokens, G], G groups of columns or 1.
    """
    kind = torch.int8 if scheme.kind == "int" else FP8
    x = x.float()
    if scheme.inputs == "tensor":
        assert fixed_scale is not None, "inputs of one scale, and the checkpoint gives none"
        scale = fixed_scale.expand(len(x), 1)
        codes = (x / scale).clamp(-LARGEST[kind], LARGEST[kind])
    elif scheme.inputs == "token":
        scale = x.abs().amax(1, keepdim=True).div_(LARGEST[kind]).clamp_(min=SMALLEST_SCALE)
        codes = x / scale
    else:
        assert scheme.group_size is not None, "inputs by group, and weights by row"
        groups = _in_groups(x, scheme.group_size)
        scale = groups.abs().amax(2).div_(LARGEST[kind]).clamp_(min=SMALLEST_SCALE)
        codes = (groups / scale[:, :, None]).flatten(1)[:, : x.shape[1]]
    return (codes.round() if kind == torch.int8 else codes).to(kind), scale


# docs: inputs end


def rounded_inputs(x: Tensor, scheme: Scheme, fixed_scale: Tensor | None = None) -> Tensor:
    """Return the inputs that the codes stand for, [num_tokens, K] in the dtype of x."""
    codes, scale = round_inputs(x, scheme, fixed_scale)
    if scale.shape[1] > 1:
        assert scheme.group_size is not None
        scale = scale.repeat_interleave(scheme.group_size, 1)[:, : x.shape[1]]
    return (codes.float() * scale).to(x.dtype)


def _in_groups(x: Tensor, size: int) -> Tensor:
    """Return [num_tokens, G, size]; a last group that is short is filled with zeros."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % size))
    return padded.view(len(x), -1, size)
