"""Keys and values in eight bits: a code an element, a scale a token and head.

A key is multiplied with a query and a value with a weight as whole vectors, so that one scale
a vector can be taken out of the product: kernels multiply codes and scale what comes out. A
token's vectors are quantised once, when they are written, whatever comes after them. (KIVI,
Liu et al. 2024, scales keys by channel instead, which needs several tokens at once.) See the
chapter "The paged KV cache".
"""

from __future__ import annotations

import torch
from torch import Tensor

FORMATS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}  # by the name in EngineConfig
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # code of the largest element
SCALE_BYTES = 4  # float32
SMALLEST_SCALE = 1e-30  # a vector of zeros has codes of zero


# docs: quantize begin
def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return codes [..., head_size] of `dtype` and scales float32 [...] of vectors x.

    The largest element of a vector gets the largest code. An INT8 code is off by at most half
    a step, 1/254 of the vector's largest element; an FP8 code (E4M3, three bits of mantissa)
    by at most 1/16 of the element itself, except for the very smallest elements.
    """
    x = x.float()
    scale = x.abs().amax(-1) / LARGEST[dtype]
    codes = x / scale.clamp_min(SMALLEST_SCALE)[..., None]
    return (codes.round() if dtype == torch.int8 else codes).to(dtype), scale


def dequantize(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the vectors [..., head_size] that codes and scales [...] stand for."""
    return (codes.float() * scale[..., None]).to(dtype)


# docs: quantize end
