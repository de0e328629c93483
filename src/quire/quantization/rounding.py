"""Rounding to nearest: the grid that a group of weights spans, and each weight's place on it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.quantization.codes import Codes
from quire.quantization.scheme import Scheme

FP8 = torch.float8_e4m3fn
LARGEST_FP8 = 448.0
SMALLEST_SCALE = 2.0**-24  # of a group of zeros; bfloat16 and float16 have it


# docs: grid begin
def grid(
    weight: Tensor, scheme: Scheme, scale_dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor | None]:
    """Return the scale, float32 [N, G], and zero, uint8 [N, G], of each group of a weight.

    Symmetric integers reach from -2**(bits-1) to 2**(bits-1) - 1, and the largest magnitude
    gets 2**(bits-1) - 1/2: the value that would lie half a step outside is cut there by as
    much as rounding costs anyway. Asymmetric ones span the group's least to its largest value,
    0 among them. The scale is rounded to `scale_dtype`, in which it is stored, before anything
    is divided by it.
    """
    groups = _in_groups(weight.float(), scheme.group_size)  # [N, G, columns]
    levels = 1 << scheme.bits
    if scheme.kind == "fp8":
        span = groups.abs().amax(-1) / LARGEST_FP8
    elif scheme.symmetric:
        span = groups.abs().amax(-1) / ((levels - 1) / 2)
    else:
        span = (groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)) / (levels - 1)
    scale = _shared(span, scheme.block_rows).clamp(min=SMALLEST_SCALE).to(scale_dtype).float()
    if scheme.kind == "fp8" or scheme.symmetric:
        return scale, None
    zero = (-groups.amin(-1).clamp(max=0) / scale).round().clamp(0, levels - 1)
    return scale, zero.to(torch.uint8)


def round_to_grid(weight: Tensor, scheme: Scheme, scale: Tensor, zero: Tensor | None) -> Codes:
    """Return the nearest code of each weight on a given grid."""
    columns = torch.arange(weight.shape[1], device=weight.device)
    groups = columns // (scheme.group_size or weight.shape[1])
    values = weight.float() / scale[:, groups]
    if scheme.kind == "fp8":
        values = values.clamp(-LARGEST_FP8, LARGEST_FP8).to(FP8)
        return Codes(values, scale, None, 8, scheme.group_size)
    middle = 1 << (scheme.bits - 1)
    values = values.round() + (middle if zero is None else zero.float()[:, groups])
    codes = values.clamp(0, (1 << scheme.bits) - 1).to(torch.uint8)
    return Codes(codes, scale, zero, scheme.bits, scheme.group_size)


def round_to_nearest(
    weight: Tensor, scheme: Scheme, scale_dtype: torch.dtype = torch.bfloat16
) -> Codes:
    """Return a weight's codes, each the nearest to its number: the plainest quantization."""
    return round_to_grid(weight, scheme, *grid(weight, scheme, scale_dtype))


# docs: grid end


def _in_groups(weight: Tensor, group_size: int | None) -> Tensor:
    """Return [N, G, columns]; a last group that is short is filled with its last column."""
    rows, columns = weight.shape
    size = group_size or columns
    missing = -columns % size
    if missing:
        weight = F.pad(weight[:, None], (0, missing), mode="replicate")[:, 0]
    return weight.view(rows, -1, size)


def _shared(span: Tensor, block_rows: int) -> Tensor:
    """Return the largest span of each block of rows, for every row of it."""
    if block_rows == 1:
        return span
    rows = len(span)
    padded = F.pad(span, (0, 0, 0, -rows % block_rows)).view(-1, block_rows, span.shape[1])
    return padded.amax(1).repeat_interleave(block_rows, 0)[:rows]
